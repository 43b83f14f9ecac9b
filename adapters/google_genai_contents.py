"""What Gemini is sent and what it answers, read and written as JSON: `generateContent` and `streamGenerateContent`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memlayer.codec import Message, Piece

__all__ = ["CONTENTS", "GOES_ON", "Contents", "body", "first_candidate"]


class Contents:
    """The body of a request to `generateContent` and `streamGenerateContent`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        messages: list[Message] = []
        for place, content in enumerate(_contents(request)):
            message = _message(content, place)
            if messages and messages[-1].role == message.role == "assistant":
                # A chat keeps a streamed reply as a content for each event.
                message = Message("assistant", messages.pop().text + message.text, place)
            messages.append(message)
        return messages

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        contents = _contents(request)
        for place, block in blocks.items():
            content = contents[place]
            contents[place] = {**content, "parts": [*(content.get("parts") or []), {"text": block}]}
        return {**request, "contents": contents}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any] | None:
        if request.get("cachedContent"):
            return None
        system = request.get("systemInstruction") or {"role": "user"}
        return {**request, "systemInstruction": {**system, "parts": [*(system.get("parts") or []), {"text": block}]}}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        said = body(response)
        first = first_candidate(said)
        parts = (first.get("content") or {}).get("parts") or []
        stopped = first.get("finishReason")
        return Piece(
            text=_joined(parts, ""),
            calls=stopped == "CONTINUATION" or any("functionCall" in part for part in parts),
            refused=stopped not in _SAID or bool((said.get("promptFeedback") or {}).get("blockReason")),
            ended=stopped is not None,
        )

    def event(self, event: Any) -> Piece:
        return self.reply(event)


CONTENTS = Contents()

# Everything else is a filter of some kind, or a reply that went wrong.
_SAID = frozenset({None, "FINISH_REASON_UNSPECIFIED", "STOP", "MAX_TOKENS", "CONTINUATION"})

# For a reply that goes on in the next request: this one's text is not all of it.
GOES_ON = {"candidates": [{"finishReason": "CONTINUATION"}]}


def body(response: Any) -> Mapping[str, Any]:
    if isinstance(response, Mapping):
        return response
    said: Mapping[str, Any] = json.loads(response.body) if response.body else {}
    return said


def first_candidate(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first candidate; the others are not what was said."""
    return next((one for one in said.get("candidates") or [] if not one.get("index")), {})


def _contents(request: Mapping[str, Any]) -> list[Any]:
    contents = request.get("contents")
    return list(contents) if isinstance(contents, list) else [contents] if isinstance(contents, dict) else []


def _message(content: Mapping[str, Any], place: int) -> Message:
    parts = content.get("parts") or []
    if content.get("role") == "model":
        return Message("assistant", _joined(parts, ""), place)
    text = _joined(parts, "\n")
    if content.get("role") == "function" or (not text and any("functionResponse" in part for part in parts)):
        return Message("tool", "", place)
    return Message("user", text, place)


def _joined(parts: list[Any], between: str) -> str:
    return between.join(part["text"] for part in parts if part.get("text") and not part.get("thought"))
