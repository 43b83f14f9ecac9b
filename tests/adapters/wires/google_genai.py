"""The wire format of Gemini's generateContent and streamGenerateContent, as the Gemini API and Vertex speak it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.adapters.loopback import Answer, Request, sse


def text(said: str, *, thought: bool = False, signature: str | None = None) -> dict[str, Any]:
    """A text part; reasoning is a text part that says so."""
    part: dict[str, Any] = {"text": said}
    if thought:
        part["thought"] = True
    if signature is not None:
        part["thoughtSignature"] = signature
    return part


def function_call(name: str, /, **args: Any) -> dict[str, Any]:
    """A part in which the model calls a function."""
    return {"functionCall": {"name": name, "args": args}}


def whole(*parts: str | dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    """A reply with one candidate. `more` goes into the candidate."""
    content = {"role": "model", "parts": [text(part) if isinstance(part, str) else part for part in parts]}
    candidate: dict[str, Any] = {"content": content, "index": 0, **more}
    if finish is not None:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-test", "responseId": "r1"}


def choices(*said: str) -> dict[str, Any]:
    """A reply with several candidates."""
    candidates = [{**whole(one)["candidates"][0], "index": number} for number, one in enumerate(said)]
    return {**whole(), "candidates": candidates}


def blocked(reason: str = "SAFETY") -> dict[str, Any]:
    """The prompt was blocked: there is no candidate."""
    return {"promptFeedback": {"blockReason": reason}, "usageMetadata": {"totalTokenCount": 1}}


def stopped(said: str, reason: str = "SAFETY") -> dict[str, Any]:
    """A reply that a filter cut off."""
    return whole(said, finish=reason)


def failed(status: int = 503, message: str = "try again") -> Answer:
    """An error of the provider."""
    return Answer({"error": {"code": status, "message": message, "status": "UNAVAILABLE"}}, status=status)


def chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A whole reply as the events of a stream: texts word by word, other parts one by one, the end in the last one."""
    events = []
    for candidate in body.get("candidates", []):
        for part in candidate["content"]["parts"]:
            words = re.findall(r"\S+\s*|\s+", part.get("text", "")) or [None]
            for word in words:
                piece = part if word is None else {**part, "text": word}
                one = {"content": {"role": "model", "parts": [piece]}, "index": candidate["index"]}
                events.append({**body, "candidates": [one]})
        ending = {key: value for key, value in candidate.items() if key != "content"}
        if events:
            events[-1]["candidates"][0].update(ending)
        else:
            events.append({**body, "candidates": [ending]})
    return events or [body]


class Chatbot:
    """Answers requests with the replies in turn, whole or streamed as each one asks; the last one again and again.

    Args:
        replies: a text; what `whole` and its siblings make; or an Answer.
        cut: a stream breaks off after so many events.
    """

    def __init__(self, *replies: str | dict[str, Any] | Answer, cut: int | None = None) -> None:
        self._replies = list(replies)
        self._cut = cut
        self._asked = 0

    def __call__(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if path.endswith(":countTokens"):
            return Answer({"totalTokens": 3})
        if path.endswith((":embedContent", ":batchEmbedContents")):
            return Answer({"embeddings": [{"values": [0.5]}]})
        if not path.endswith(("enerateContent",)):
            return Answer({})
        reply = self._replies[min(self._asked, len(self._replies) - 1)]
        self._asked += 1
        if isinstance(reply, Answer):
            return reply
        body = whole(reply) if isinstance(reply, str) else reply
        if path.endswith(":streamGenerateContent"):
            return Answer(self._streamed(chunks(body)), kind="text/event-stream")
        return Answer(body)

    def _streamed(self, events: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        for number, event in enumerate(events):
            if number == self._cut:
                raise ConnectionError
            yield from sse([(None, event)])


def parts(body: dict[str, Any]) -> list[str]:
    """The texts of a request that was sent, one for each text part of its contents, in order."""
    return [part["text"] for content in body["contents"] for part in content["parts"] if "text" in part]


def question(*said: str) -> dict[str, Any]:
    """A request as a client sends it."""
    return {"contents": [{"role": "user", "parts": [text(one) for one in said]}]}


def shown(body: dict[str, Any]) -> str:
    """A request in one line, to look for a word in all of it."""
    return json.dumps(body, ensure_ascii=False)
