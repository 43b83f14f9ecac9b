"""The wire format of Ollama's /api/chat and /api/generate: JSON, or a stream of JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.adapters.loopback import Answer, Request

MODEL = "llama-test"
CREATED = "2026-11-25T10:00:00Z"


def function_call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A tool call of the model's."""
    return {"function": {"name": name, "arguments": arguments}}


def whole(
    text: str = "", *, thinking: str | None = None, calls: Iterable[dict[str, Any]] = (), reason: str = "stop"
) -> dict[str, Any]:
    """A reply of /api/chat."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking is not None:
        message["thinking"] = thinking
    if calls := list(calls):
        message["tool_calls"] = calls
    return {"model": MODEL, "created_at": CREATED, "message": message, "done": True, "done_reason": reason}


def generated(body: dict[str, Any]) -> dict[str, Any]:
    """The same reply as /api/generate gives it."""
    message = body["message"]
    reply = {key: value for key, value in body.items() if key != "message"}
    reply["response"] = message["content"]
    if "thinking" in message:
        reply["thinking"] = message["thinking"]
    if body["done"]:
        reply["context"] = [1, 2, 3]
    return reply


def failed(status: int = 503, message: str = "try again") -> Answer:
    """An error of the server."""
    return Answer({"error": message}, status=status)


def chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A whole reply of /api/chat as the lines of a stream: thinking, words, tool calls, the end."""
    message = body["message"]
    pieces: list[dict[str, Any]] = []
    if "thinking" in message:
        pieces.append({"role": "assistant", "content": "", "thinking": message["thinking"]})
    for word in re.findall(r"\S+\s*|\s+", message["content"]):
        pieces.append({"role": "assistant", "content": word})
    if "tool_calls" in message:
        pieces.append({"role": "assistant", "content": "", "tool_calls": message["tool_calls"]})
    open_ended = {"model": MODEL, "created_at": CREATED, "done": False}
    end = {**body, "message": {"role": "assistant", "content": ""}}
    return [*({**open_ended, "message": piece} for piece in pieces), end]


class Chatbot:
    """Answers requests with the replies in turn, whole or streamed as each one asks; the last one again and again.

    Args:
        replies: a text; what `whole` makes; or an Answer.
        cut: a stream breaks off after so many lines.
    """

    def __init__(self, *replies: str | dict[str, Any] | Answer, cut: int | None = None) -> None:
        self._replies = list(replies)
        self._cut = cut
        self._asked = 0

    def __call__(self, request: Request) -> Answer:
        if request.path not in ("/api/chat", "/api/generate"):
            return Answer({"embeddings": [[0.5]], "models": []})
        reply = self._replies[min(self._asked, len(self._replies) - 1)]
        self._asked += 1
        if isinstance(reply, Answer):
            return reply
        body = whole(reply) if isinstance(reply, str) else reply
        form = generated if request.path == "/api/generate" else dict
        # The server streams where a request says nothing.
        if request.body.get("stream", True):
            return Answer(self._streamed([form(chunk) for chunk in chunks(body)]), kind="application/x-ndjson")
        return Answer(form(body))

    def _streamed(self, lines: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        for number, line in enumerate(lines):
            if number == self._cut:
                raise ConnectionError
            yield json.dumps(line).encode() + b"\n"


def texts(body: dict[str, Any]) -> list[str]:
    """The texts of a request that was sent, in order: of its messages, or its prompt."""
    if "prompt" in body:
        return [body["prompt"]]
    return [message["content"] for message in body["messages"] if message.get("content")]
