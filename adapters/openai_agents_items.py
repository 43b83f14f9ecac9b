"""The codec of the OpenAI Agents SDK: what it sends to a model, whichever that is, are items of OpenAI's responses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece, content_text, text_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents import ModelResponse
    from agents.run import ModelInputData

__all__ = ["ModelInputs"]


class ModelInputs:
    """The codec of `ModelInputData`, `stateful` where OpenAI keeps it, and of `ModelResponse`."""

    def __init__(self, *, stateful: bool = False) -> None:
        self._stateful = stateful

    def messages(self, request: ModelInputData) -> list[Message]:
        return [_message(item, place) for place, item in enumerate(request.input)]

    def insert(self, request: ModelInputData, blocks: Mapping[int, str]) -> ModelInputData:
        items: list[Any] = list(request.input)
        for place, block in blocks.items():
            parts = text_parts(items[place].get("content"), kind="input_text")
            items[place] = {**items[place], "content": [*parts, {"type": "input_text", "text": block}]}
        return replace(request, input=items)

    def instruct(self, request: ModelInputData, block: str) -> ModelInputData:
        told = request.instructions
        return replace(request, instructions=f"{told}\n\n{block}" if told else block)

    def is_stateful(self, request: ModelInputData) -> bool:
        return self._stateful

    def reply(self, response: ModelResponse) -> Piece:
        parts = [part for item in response.output for part in getattr(item, "content", None) or []]
        kinds = {item.type for item in response.output}
        return Piece(
            text="".join(part.text or "" for part in parts if part.type == "output_text"),
            # With a result beside it, OpenAI ran the tool itself.
            calls=any(kind in _CALLS and f"{kind}_output" not in kinds for kind in kinds),
            refused=any(part.type == "refusal" for part in parts),
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        return Piece()  # The hooks see an answer whole, also where it is streamed.


def _message(item: Any, place: int) -> Message:
    if (item.get("type") or "message") == "message":
        return Message(role=_ROLES.get(item.get("role"), "tool"), text=content_text(item.get("content")), place=place)
    done = str(item["type"]).endswith(("_output", "_response"))
    return Message(role="tool" if done else "assistant", text="", place=place)


_ROLES: Mapping[Any, Any] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}

# What the program has to do before the model goes on; a handoff is a function call too.
_CALLS = frozenset({
    "function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "mcp_approval_request",
})  # fmt: skip
