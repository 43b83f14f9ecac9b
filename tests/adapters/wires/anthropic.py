"""The wire format of Anthropic's messages, whole and streamed.

with Loopback(wire.Chatbot("No peanuts.")) as server:
    client = Anthropic(base_url=server.url, api_key="none")
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.adapters.loopback import Answer, sse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.adapters.loopback import Request

MODEL = "claude-test"


@dataclass
class Chatbot:
    """Answers every request of one server.

    Attributes:
        reply: what it says, or a function of the request that gives it.
        tools: what it calls before it says anything, (name, input) each, unless the request ends with their results.
        says_with_tools: what it says in the same breath as its calls.
        refusal: with this it stops with the reason "refusal".
        thinking: what it thinks before it replies.
        stop: the reason to stop of an ordinary reply.
        failures: to so many requests, the first ones, it answers with `status` instead.
        cut: after so many pieces of text the connection of a stream breaks.
        error: with `cut`, the server says so in the stream instead of breaking the connection.
    """

    reply: str | Callable[[Request], str] = "Noted."
    tools: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    says_with_tools: str = ""
    refusal: str | None = None
    thinking: str | None = None
    stop: str = "end_turn"
    failures: int = 0
    status: int = 500
    cut: int | None = None
    error: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, request: Request) -> Answer:
        with self._lock:
            self.failures -= 1
            if self.failures >= 0:
                return failure(self.status)
        path = request.path.partition("?")[0]
        if path.endswith("/messages/count_tokens"):
            return Answer({"input_tokens": 7})
        if path.endswith("/messages"):
            return self._message(request)
        return failure(404)

    def _message(self, request: Request) -> Answer:
        content, stop = self._content(request)
        if request.body.get("stream"):
            return Answer(sse(self._events(request, content, stop)), kind="text/event-stream")
        return Answer(self._whole(request, content, stop))

    def _content(self, request: Request) -> tuple[list[dict[str, Any]], str]:
        content: list[dict[str, Any]] = []
        if self.thinking is not None:
            content.append({"type": "thinking", "thinking": self.thinking, "signature": "c2lnbmVk"})
        if self.refusal is not None:
            return [*content, {"type": "text", "text": self.refusal}], "refusal"
        if self.tools and not _answers_a_tool(request.body["messages"][-1]):
            if self.says_with_tools:
                content.append({"type": "text", "text": self.says_with_tools})
            calls = [
                {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}
                for number, (name, given) in enumerate(self.tools)
            ]
            return [*content, *calls], "tool_use"
        said = self.reply if isinstance(self.reply, str) else self.reply(request)
        return [*content, {"type": "text", "text": said}], self.stop

    def _whole(self, request: Request, content: list[Any], stop: str | None) -> dict[str, Any]:
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": request.body.get("model", MODEL),
            "content": content, "stop_reason": stop, "stop_sequence": None,
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }  # fmt: skip

    def _events(self, request: Request, content: list[Any], stop: str) -> Iterator[tuple[str | None, Any]]:
        def event(kind: str, **fields: Any) -> tuple[str, Any]:
            return kind, {"type": kind, **fields}

        yield event("message_start", message=self._whole(request, [], None))
        yield event("ping")
        for index, block in enumerate(content):
            yield event("content_block_start", index=index, content_block=_opened(block))
            for delta in self._deltas(block):
                yield event("content_block_delta", index=index, delta=delta)
            if self.error and self.cut is not None and block["type"] == "text":
                yield event("error", error={"type": "overloaded_error", "message": "Overloaded"})
                return
            yield event("content_block_stop", index=index)
        yield event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": 3})
        yield event("message_stop")

    def _deltas(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if block["type"] == "thinking":
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": block["signature"]}
        elif block["type"] == "tool_use":
            given = json.dumps(block["input"])
            for part in (given[:3], given[3:]):
                yield {"type": "input_json_delta", "partial_json": part}
        else:
            for number, piece in enumerate(pieces(block["text"])):
                if number == self.cut and not self.error:
                    raise ConnectionAbortedError
                if number == self.cut:
                    return
                yield {"type": "text_delta", "text": piece}


def failure(status: int = 500) -> Answer:
    """An error; a client that may try again does so at once."""
    error = {"type": "error", "error": {"type": "api_error", "message": "not now"}}
    return Answer(error, status=status, headers={"retry-after-ms": "1"})


def pieces(text: str) -> list[str]:
    """A text word by word; joined they are the text."""
    words = text.split(" ")
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)] if text else []


def _opened(block: dict[str, Any]) -> dict[str, Any]:
    """A block as it is when it begins."""
    empty: dict[str, dict[str, Any]] = {
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
        "text": {"text": ""},
    }
    return {**block, **empty[block["type"]]}


def _answers_a_tool(message: Any) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)
