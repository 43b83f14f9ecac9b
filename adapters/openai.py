"""OpenAI, chat completions and responses: `wrap(OpenAI(), memory)`, sync, async and Azure, and compatible servers.

Chat: a block is a part `{"type": "text"}` of the latest message of the user's. Responses: a part `input_text` of the
latest item of the user's; with `previous_response_id` or `conversation`, where OpenAI keeps the items, it is put into
`instructions` instead, which hold for one request. The request that begins such a chain cannot be told from a lone one:
its block stays in it (`placement="system"` avoids that). An answer that is fetched later (`background=True`) is not
remembered, only the user's turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memlayer.adapters.stainless import remembering
from memlayer.adapters.stainless_replies import field, plain
from memlayer.codec import Message, Messages, Piece, content_text, text_parts

if TYPE_CHECKING:
    from memlayer.adapters.stainless import Codecs
    from memlayer.injector import Injector

__all__ = ["CHAT", "RESPONSES", "Chat", "Responses", "wrap"]


def wrap(client: Any, injector: Injector) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is."""
    return remembering(client, injector, _CODECS)


class Chat:
    """The body of a request to `/chat/completions`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        return _LIST.messages(_listed(request, "messages"))

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        return {**request, "messages": _LIST.insert(_listed(request, "messages"), blocks)}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any]:
        return {**request, "messages": _LIST.instruct(_listed(request, "messages"), block)}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        choice = _first(response)
        return _piece(choice, field(choice, "message"), ended=True)

    def event(self, event: Any) -> Piece:
        # The last chunk has the usage and no choice.
        choice = _first(event)
        return _piece(choice, field(choice, "delta"), ended=field(choice, "finish_reason") is not None)


class Responses:
    """The body of a request to `/responses`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        items = request.get("input")
        if isinstance(items, str):
            return [Message(role="user", text=items, place=0)]
        return [_item(item, place) for place, item in enumerate(_listed(request, "input"))]

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        said = request["input"]
        items = [{"role": "user", "content": said}] if isinstance(said, str) else _listed(request, "input")
        for place, block in blocks.items():
            parts = text_parts(items[place].get("content"), kind="input_text")
            items[place] = {**items[place], "content": [*parts, {"type": "input_text", "text": block}]}
        return {**request, "input": items}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any]:
        instructions = request.get("instructions")
        return {**request, "instructions": f"{instructions}\n\n{block}" if instructions else block}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return any(request.get(name) is not None for name in ("previous_response_id", "conversation"))

    def reply(self, response: Any) -> Piece:
        output = field(response, "output") or []
        kinds = {field(item, "type") for item in output}
        parts = [part for item in output if field(item, "type") == "message" for part in field(item, "content") or []]
        cut = field(field(response, "incomplete_details"), "reason")
        return Piece(
            text="".join(field(part, "text") or "" for part in parts if field(part, "type") == "output_text"),
            # With a result beside it, OpenAI ran the tool itself.
            calls=any(kind in _CALLS and f"{kind}_output" not in kinds for kind in kinds),
            refused=cut == "content_filter" or any(field(part, "type") == "refusal" for part in parts),
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        kind = field(event, "type")
        if kind == "response.output_text.delta":
            return Piece(text=field(event, "delta") or "")
        if kind in ("response.completed", "response.incomplete"):
            whole = self.reply(field(event, "response"))
            return Piece(calls=whole.calls, refused=whole.refused, ended=True)
        if kind in ("response.refusal.delta", "response.refusal.done"):
            return Piece(refused=True)
        if kind in ("response.failed", "error"):
            return Piece(broken=True)
        # What was said before a tool is called is not the reply, also where the stream breaks off after it.
        added = field(field(event, "item"), "type") if kind == "response.output_item.added" else None
        return Piece(calls=added in ("function_call", "custom_tool_call"))


_LIST = Messages()

# What the program has to do before the model goes on.
_CALLS = frozenset({
    "function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "mcp_approval_request",
})  # fmt: skip


def _listed(request: Mapping[str, Any], name: str) -> list[Any]:
    """A copy of the list; what is no list is no conversation."""
    value = request.get(name)
    return [plain(one) for one in value] if isinstance(value, list | tuple) else []


def _first(response: Any) -> Any:
    """The first choice; other choices of the same request are not what was said."""
    return next((one for one in field(response, "choices") or [] if (field(one, "index") or 0) == 0), None)


def _piece(choice: Any, said: Any, *, ended: bool) -> Piece:
    text = field(said, "content") or field(field(said, "audio"), "transcript")
    finish = field(choice, "finish_reason")
    return Piece(
        text=text if isinstance(text, str) else "",
        calls=bool(field(said, "tool_calls") or field(said, "function_call")) or finish in _GOES_ON,
        refused=bool(field(said, "refusal")) or finish == "content_filter",
        ended=ended,
    )


_GOES_ON = ("tool_calls", "function_call")


def _item(item: Any, place: int) -> Message:
    kind = item.get("type") or "message"
    if kind == "message":
        role = item.get("role")
        known = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
        return Message(role=known.get(role, "tool"), text=content_text(item.get("content")), place=place)  # type: ignore[arg-type]
    return Message(role="tool" if kind.endswith(("_output", "_response")) else "assistant", text="", place=place)


CHAT = Chat()
RESPONSES = Responses()
_CODECS: Codecs = (("/chat/completions", CHAT), ("/responses", RESPONSES))
