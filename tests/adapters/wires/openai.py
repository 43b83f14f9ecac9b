"""The wire format of OpenAI: chat completions, responses and embeddings, whole and streamed.

with Loopback(wire.Chatbot("No peanuts.")) as server:
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
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

MODEL = "gpt-test"


@dataclass
class Chatbot:
    """Answers every request of one server.

    Attributes:
        reply: what it says, or a function of the request that gives it.
        tools: what it calls first, (name, arguments) each, unless the request ends with their results.
        says_with_tools: what it says in the same breath as its calls.
        refusal: with this it refuses instead of replying.
        reasoning: what it thinks before it replies (responses only).
        finish: how a chat choice ends: stop, length or content_filter; a response is incomplete with anything but stop.
        failures: to so many requests, the first ones, it answers with `status` instead.
        cut: after so many pieces of text the connection of a stream breaks.
        error: with `cut`, the server says so in the stream instead of breaking the connection.
    """

    reply: str | Callable[[Request], str] = "Noted."
    tools: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    says_with_tools: str = ""
    refusal: str | None = None
    reasoning: str | None = None
    finish: str = "stop"
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
        if path.endswith("/chat/completions"):
            return self._chat(request)
        if path.endswith("/responses"):
            return self._response(request)
        if path.endswith("/embeddings"):
            return embeddings(request)
        return failure(404)

    def _said(self, request: Request) -> str:
        return self.reply if isinstance(self.reply, str) else self.reply(request)

    def _pieces(self, text: str) -> Iterator[str]:
        """A text word by word, up to the cut."""
        for number, piece in enumerate(pieces(text)):
            if number == self.cut and not self.error:
                raise ConnectionAbortedError
            if number == self.cut:
                return
            yield piece

    @property
    def _breaks(self) -> bool:
        return self.error and self.cut is not None

    # ---------------------------------------------------------------- chat completions

    def _chat(self, request: Request) -> Answer:
        body = request.body
        last = body["messages"][-1] if body["messages"] else {"role": "user"}
        calls = self.tools if last["role"] not in ("tool", "function") else []
        if body.get("stream"):
            return Answer(sse(self._chat_events(request, calls)), kind="text/event-stream")
        message: dict[str, Any] = {"role": "assistant", "content": self._said(request), "refusal": None}
        finish = self.finish
        if self.refusal is not None:
            message |= {"content": None, "refusal": self.refusal}
        elif calls:
            message |= {
                "content": self.says_with_tools or None,
                "tool_calls": [_chat_call(*numbered) for numbered in enumerate(calls)],
            }
            finish = "tool_calls"
        choices = [
            {"index": number, "message": _nth(message, number), "finish_reason": finish, "logprobs": None}
            for number in range(body.get("n") or 1)
        ]
        return Answer({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body.get("model", MODEL),
            "choices": choices, "usage": _CHAT_USAGE,
        })  # fmt: skip

    def _chat_events(self, request: Request, calls: list[Any]) -> Iterator[tuple[str | None, Any]]:
        body = request.body
        numbers = range(body.get("n") or 1)
        usage = (body.get("stream_options") or {}).get("include_usage")

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> tuple[None, Any]:
            choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
            return None, _chunk(body, [choice]) | ({"usage": None} if usage else {})

        for number in numbers:
            yield chunk(number, {"role": "assistant", "content": ""})
        if self.refusal is not None:
            for piece in self._pieces(self.refusal):
                yield chunk(0, {"refusal": piece})
        elif calls:
            for piece in pieces(self.says_with_tools):
                yield chunk(0, {"content": piece})
            for number, call in enumerate(calls):
                whole = _chat_call(number, call)
                arguments = whole["function"].pop("arguments")
                opened = {**whole, "index": number, "function": {**whole["function"], "arguments": ""}}
                yield chunk(0, {"tool_calls": [opened]})
                for part in (arguments[:3], arguments[3:]):
                    yield chunk(0, {"tool_calls": [{"index": number, "function": {"arguments": part}}]})
        else:
            for piece in self._pieces(self._said(request)):
                for number in numbers:
                    yield chunk(number, {"content": piece})
        if self._breaks:
            yield None, {"error": {"message": "The server had an error", "type": "server_error", "code": None}}
            return
        for number in numbers:
            yield chunk(number, {}, "tool_calls" if calls and self.refusal is None else self.finish)
        if usage:
            yield None, _chunk(body, []) | {"usage": _CHAT_USAGE}
        yield None, "[DONE]"

    # ---------------------------------------------------------------- responses

    def _response(self, request: Request) -> Answer:
        if request.body.get("stream"):
            return Answer(sse(self._response_events(request)), kind="text/event-stream")
        return Answer(self._whole(request, self._output(request)))

    def _output(self, request: Request) -> list[dict[str, Any]]:
        items = request.body.get("input")
        last = items[-1] if isinstance(items, list) and items else {}
        output: list[dict[str, Any]] = []
        if self.reasoning is not None:
            summary = [{"type": "summary_text", "text": self.reasoning}]
            output.append({"id": "rs_1", "type": "reasoning", "summary": summary})
        if self.refusal is not None:
            output.append(_message([{"type": "refusal", "refusal": self.refusal}]))
        elif self.tools and last.get("type") != "function_call_output":
            if self.says_with_tools:
                output.append(_message([_output_text(self.says_with_tools)]))
            output += [_function_call(*numbered) for numbered in enumerate(self.tools)]
        else:
            output.append(_message([_output_text(self._said(request))]))
        return output

    def _whole(self, request: Request, output: list[dict[str, Any]], status: str | None = None) -> dict[str, Any]:
        body = request.body
        status = status or ("completed" if self.finish == "stop" else "incomplete")
        return {
            "id": "resp_1", "object": "response", "created_at": 1, "model": body.get("model", MODEL),
            "status": status, "error": None, "instructions": body.get("instructions"), "metadata": {}, "output": output,
            "incomplete_details": {"reason": self.finish} if status == "incomplete" else None,
            "parallel_tool_calls": True, "previous_response_id": body.get("previous_response_id"), "temperature": 1.0,
            "tool_choice": "auto", "tools": body.get("tools") or [], "top_p": 1.0,
            "text": body.get("text") or {"format": {"type": "text"}},
            "truncation": "disabled", "usage": _RESPONSE_USAGE if status != "in_progress" else None,
        }  # fmt: skip

    def _response_events(self, request: Request) -> Iterator[tuple[str | None, Any]]:
        number = -1

        def event(kind: str, **fields: Any) -> tuple[str, Any]:
            nonlocal number
            number += 1
            return kind, {"type": kind, "sequence_number": number, **fields}

        output = self._output(request)
        yield event("response.created", response=self._whole(request, [], "in_progress"))
        for index, item in enumerate(output):
            at = {"output_index": index, "item_id": item["id"]}
            if item["type"] == "function_call":
                yield event(
                    "response.output_item.added",
                    output_index=index,
                    item={**item, "arguments": "", "status": "in_progress"},
                )
                yield event("response.function_call_arguments.delta", **at, delta=item["arguments"])
                yield event(
                    "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
                )
            elif item["type"] == "reasoning":
                yield event("response.output_item.added", output_index=index, item={**item, "summary": []})
            else:
                yield event(
                    "response.output_item.added",
                    output_index=index,
                    item={**item, "content": [], "status": "in_progress"},
                )
                (part,) = item["content"]
                kind = part["type"]
                key = "refusal" if kind == "refusal" else "text"
                more: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
                yield event("response.content_part.added", **at, content_index=0, part={**part, key: ""})
                for piece in self._pieces(part[key]):
                    yield event(f"response.{kind}.delta", **at, content_index=0, delta=piece, **more)
                if self._breaks:
                    failed = self._whole(request, [], "failed") | {"error": {"code": "server_error", "message": "no"}}
                    yield event("response.failed", response=failed)
                    return
                yield event(f"response.{kind}.done", **at, content_index=0, **{key: part[key]}, **more)
                yield event("response.content_part.done", **at, content_index=0, part=part)
            yield event("response.output_item.done", output_index=index, item=item)
        whole = self._whole(request, output)
        yield event(f"response.{whole['status']}", response=whole)


def failure(status: int = 500) -> Answer:
    """An error; a client that may try again does so at once."""
    error = {"message": "not now", "type": "server_error", "param": None, "code": None}
    return Answer({"error": error}, status=status, headers={"retry-after-ms": "1"})


def embeddings(request: Request) -> Answer:
    """Two numbers for each text."""
    texts = request.body["input"]
    count = 1 if isinstance(texts, str) else len(texts)
    data = [{"object": "embedding", "index": number, "embedding": [1.0, float(number)]} for number in range(count)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return Answer({"object": "list", "model": "embedding-test", "data": data, "usage": usage})


def pieces(text: str) -> list[str]:
    """A text word by word; joined they are the text."""
    words = text.split(" ")
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)] if text else []


_CHAT_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
_RESPONSE_USAGE = {
    "input_tokens": 7, "output_tokens": 3, "total_tokens": 10,
    "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip


def _chunk(body: Any, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
        "model": body.get("model", MODEL), "choices": choices,
    }  # fmt: skip


def _nth(message: dict[str, Any], number: int) -> dict[str, Any]:
    """Other choices say something else."""
    return (
        message if number == 0 or not message["content"] else {**message, "content": f"{message['content']} ({number})"}
    )


def _chat_call(number: int, call: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    name, arguments = call
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _function_call(number: int, call: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    name, arguments = call
    return {
        "id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}", "name": name,
        "arguments": json.dumps(arguments), "status": "completed",
    }  # fmt: skip


def _message(content: list[Any]) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
