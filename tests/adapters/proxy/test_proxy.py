"""LiteLLM's real gateway with the hook: a plain HTTP client has memory, and only that of its own key."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import HTTPException  # type: ignore[import-not-found,unused-ignore]
from litellm.proxy._types import UserAPIKeyAuth

from memlayer import InvalidInputError, MemoryStore, RawKey
from memlayer.adapters.litellm_proxy import MemoryHook
from memlayer.memory import UserMemory
from memlayer.prompt import is_block
from memlayer.testing import HashingEmbedder
from tests.adapters.loopback import Answer, Loopback
from tests.adapters.wires import anthropic, openai

if TYPE_CHECKING:
    from collections.abc import Iterator

REPLY = "Peanuts are out, take the rice."
QUESTION = "May I eat the peanuts that you bought?"
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
STARTING_SECONDS = 120  # Six on an idle machine.


@dataclass
class Gateway:
    """The running gateway, the two providers behind it, and the store that it shares with the tests."""

    port: int
    openai: Loopback
    anthropic: Loopback
    store: MemoryStore
    recalls: Path

    def send(
        self, kind: str, body: dict[str, Any], *, key: str | None = "sk-alice", session: str | None = None
    ) -> tuple[int, str]:
        """Status and body of the answer, read to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", PATHS[kind], json.dumps(body), headers(key, session))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def sent(self) -> list[Any]:
        """What the providers got since the last time."""
        bodies = self.openai.bodies + self.anthropic.bodies
        self.openai.requests.clear()
        self.anthropic.requests.clear()
        return bodies

    def recalled(self) -> int:
        """How many recalls there were since the last time."""
        count = len(self.recalls.read_text())
        self.recalls.write_text("")
        return count


def headers(key: str | None, session: str | None) -> dict[str, str]:
    found = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    found |= {"authorization": f"Bearer {key}"} if key else {}
    return found | ({"x-memlayer-session": session} if session else {})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Started once: that takes seconds."""
    folder = tmp_path_factory.mktemp("gateway")
    shutil.copy(Path(__file__).with_name("memory_hook.py"), folder)
    (folder / "recalls").write_text("")
    path = folder / "memories.db"
    with (
        Loopback(openai.Chatbot(REPLY)) as openai_server,
        Loopback(anthropic.Chatbot(REPLY)) as anthropic_server,
        MemoryStore.open(path, keys=RawKey(bytes(range(32))), embedder=HashingEmbedder()) as store,
    ):
        models = [
            {"model": "openai/gpt-test", "api_base": f"{openai_server.url}/v1", "api_key": "none"},
            {"model": "anthropic/claude-test", "api_base": anthropic_server.url, "api_key": "none"},
        ]
        configuration = {
            "model_list": [
                {"model_name": name, "litellm_params": model}
                for name, model in zip(("openai", "anthropic"), models, strict=True)
            ],
            "litellm_settings": {"callbacks": "memory_hook.handler", "num_retries": 2, "telemetry": False},
            "general_settings": {"custom_auth": "memory_hook.who_is_it", "master_key": f"sk-{secrets.token_hex(32)}"},
        }
        (folder / "config.yaml").write_text(json.dumps(configuration))  # JSON is YAML too.
        with running(folder) as port:
            yield Gateway(port, openai_server, anthropic_server, store, folder / "recalls")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """The gateway as a process of its own; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "TEST_STORE": str(folder / "memories.db"),
        "TEST_RECALLS": str(folder / "recalls"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "*",
    }
    program = "from litellm.proxy.proxy_cli import run_server; run_server()"
    arguments = ["--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            await_answer(process, port, folder / "log")
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health/liveliness")
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])


def request(kind: str, model: str, *messages: tuple[str, str] | dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request of one of the three kinds."""
    said = [one if isinstance(one, dict) else {"role": one[0], "content": one[1]} for one in messages]
    body = {"model": model, "input" if kind == "responses" else "messages": said, **more}
    return body | ({"max_tokens": 100} if kind == "messages" else {})


def texts(body: Any) -> list[str]:
    """Every text in a request that a provider got, in order."""
    if isinstance(body, dict):
        own = [body["text"]] if isinstance(body.get("text"), str) else []
        own += [body["content"]] if isinstance(body.get("content"), str) else []
        return own + [text for value in body.values() if isinstance(value, dict | list) for text in texts(value)]
    return [text for value in body for text in texts(value)] if isinstance(body, list) else []


def blocks(body: Any) -> list[str]:
    return [text for text in texts(body) if is_block(text)]


def turns(memory: UserMemory, session: str) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


@pytest.fixture
def alice(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[UserMemory]:
    """Alice, who said one thing in an earlier conversation; nothing else is there of anybody."""
    memory, bob = gateway.store.user("alice"), gateway.store.user("bob")
    memory.erase()
    bob.erase()
    memory.remember("I am allergic to peanuts", session="before")
    gateway.sent()
    gateway.recalled()
    yield memory
    gateway.openai.answer = openai.Chatbot(REPLY)
    gateway.anthropic.answer = anthropic.Chatbot(REPLY)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", ["openai", "anthropic"])
@pytest.mark.parametrize("kind", PATHS)
def test_each_endpoint_has_memory(gateway, alice, kind, model, stream):
    """One block behind the user's own words, one recall, both sides remembered once, on every endpoint and provider."""
    status, answer = gateway.send(kind, request(kind, model, ("user", QUESTION), stream=stream), session="now")
    assert status == 200, answer
    assert REPLY in answer or "".join(said(answer)) == REPLY
    (body,) = gateway.sent()
    (block,) = blocks(body)
    assert texts(body)[-2:] == [QUESTION, block]
    assert "allergic to peanuts" in block
    assert gateway.recalled() == 1
    assert turns(alice, "now") == [("user", QUESTION), ("assistant", REPLY)]


def said(answer: str) -> Iterator[str]:
    """The pieces of text of a streamed answer, of any of the three kinds."""
    for line in answer.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices") or []:
                yield choice["delta"].get("content") or ""
            delta = event.get("delta")
            if event.get("type") == "response.output_text.delta":
                yield delta
            if event.get("type") == "content_block_delta":
                yield delta.get("text") or ""


@pytest.mark.parametrize("kind", PATHS)
def test_the_user_comes_from_the_key(gateway, alice, kind):
    """Who the body says it is counts for nothing: bob's key gets nothing of alice's, and what it says is bob's."""
    names = {"user": "alice", "metadata": {"user_id": "alice"}}
    if kind == "messages":
        del names["user"]  # LiteLLM refuses it there.
    body = request(kind, "openai", ("user", QUESTION), **names)
    status, answer = gateway.send(kind, body, key="sk-bob", session="now")
    assert status == 200, answer
    assert "allergic" not in json.dumps(gateway.sent())
    assert turns(gateway.store.user("bob"), "now") == [("user", QUESTION), ("assistant", REPLY)]
    assert turns(alice, "now") == []


def test_a_key_without_a_user_has_a_memory_of_its_own(gateway, alice):
    """A key that has no user id is a user itself, the same one each time, and no other."""
    users = gateway.store.count_users()
    for _ in range(2):
        status, answer = gateway.send("chat", request("chat", "openai", ("user", QUESTION)), key="sk-nameless")
        assert status == 200, answer
    first, second = gateway.sent()
    assert blocks(first) == []
    assert "allergic" not in json.dumps(second)
    assert REPLY in json.dumps(blocks(second))
    assert gateway.store.count_users() == users + 1


@pytest.mark.parametrize("kind", PATHS)
def test_nobody_gets_no_further(gateway, alice, kind):
    """A request whose key is nobody's is refused, and no provider hears of it."""
    status, answer = gateway.send(kind, request(kind, "openai", ("user", QUESTION)), key="sk-nobody")
    assert status == 401
    assert "belongs to no user" in answer
    assert gateway.sent() == []


def test_the_session_may_stand_in_the_metadata(gateway, alice):
    """Without the header the request's `session_id` is the conversation; one that cannot be a name is none."""
    for session in ("monday", "x" * 5000):
        body = request("chat", "openai", ("user", QUESTION), metadata={"session_id": session})
        assert gateway.send("chat", body)[0] == 200
    assert turns(alice, "monday") == [("user", QUESTION), ("assistant", REPLY)]
    assert sorted(str(turn.session) for turn in alice.history()) == ["None", "None", "before", "monday", "monday"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_retry_is_one_turn(gateway, alice, stream):
    """Where the gateway tries again, both tries are the same request, recall is asked once and one turn remembered."""
    gateway.openai.answer = openai.Chatbot(REPLY, failures=1)
    status, answer = gateway.send("chat", request("chat", "openai", ("user", QUESTION), stream=stream), session="now")
    assert status == 200, answer
    first, second = gateway.sent()
    assert first == second
    assert len(blocks(first)) == 1
    assert gateway.recalled() == 1
    assert turns(alice, "now") == [("user", QUESTION), ("assistant", REPLY)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_loop_is_one_turn(gateway, alice, stream):
    """The call of a tool and its result are no turns; the block stays, and the reply is remembered once, at the end."""
    gateway.openai.answer = openai.Chatbot(REPLY, tools=[("pantry", {"of": "alice"})], says_with_tools="A moment.")
    tools = [{"type": "function", "function": {"name": "pantry", "parameters": {"type": "object", "properties": {}}}}]
    body = request("chat", "openai", ("user", QUESTION), stream=stream, tools=tools)
    assert gateway.send("chat", body, session="now")[0] == 200
    assert turns(alice, "now") == [("user", QUESTION)]
    call = {"id": "call_0", "type": "function", "function": {"name": "pantry", "arguments": "{}"}}
    body["messages"] += [
        {"role": "assistant", "content": "A moment.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "peanuts, rice"},
    ]
    assert gateway.send("chat", body, session="now")[0] == 200
    first, second = gateway.sent()
    assert first["messages"] == second["messages"][:1]
    assert blocks(first) == blocks(second)
    assert gateway.recalled() == 1
    assert turns(alice, "now") == [("user", QUESTION), ("assistant", REPLY)]


@pytest.mark.parametrize("kind", PATHS)
def test_later_turns_begin_as_the_earlier_ones_did(gateway, alice, kind):
    """What was sent for the first turn stands unchanged at the head of what is sent for the second (prompt caches)."""
    first = request(kind, "openai", ("user", QUESTION))
    gateway.send(kind, first, session="now")
    more = [("user", QUESTION), ("assistant", REPLY), ("user", "And cashew nuts, may I eat those instead?")]
    gateway.send(kind, request(kind, "openai", *more), session="now")
    one, two = ((body.get("messages") or body["input"]) for body in gateway.sent())
    assert len(one) == 1
    assert two[:1] == one
    assert len(turns(alice, "now")) == 4


def test_whoever_hangs_up_has_said_it_all_the_same(gateway, alice):
    """A stream that its reader leaves keeps the user's turn, and nothing of the reply."""
    go_on = threading.Event()

    def slowly(_: Any) -> Answer:
        whole = iter(openai.Chatbot(REPLY)(gateway.openai.requests[-1]).body)

        def parts() -> Iterator[bytes]:
            yield next(whole)
            yield next(whole)
            go_on.wait(30)
            yield from whole

        return Answer(parts(), kind="text/event-stream")

    gateway.openai.answer = slowly
    url = urllib.parse.urlsplit(f"http://127.0.0.1:{gateway.port}{PATHS['chat']}")
    body = json.dumps(request("chat", "openai", ("user", QUESTION), stream=True))
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", url.path, body, headers("sk-alice", "now"))
        assert b"data" in connection.getresponse().readline()
    try:
        until = time.monotonic() + 30
        while not turns(alice, "now") and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        go_on.set()
    assert turns(alice, "now") == [("user", QUESTION)]


# --- The hook by itself ---


@pytest.fixture
def hook(store: MemoryStore) -> MemoryHook:
    """Over the store of this test."""
    return MemoryHook(store)


def prepared(hook: MemoryHook, key: UserAPIKeyAuth, **body: Any) -> dict[str, Any]:
    """The request as the hook sends it on."""
    data = {"model": "openai", "messages": [{"role": "user", "content": QUESTION}], **body}
    return asyncio.run(hook.async_pre_call_hook(key, None, data, "acompletion"))


def test_the_request_may_name_the_user_where_it_is_trusted(store, alice_of_store):
    """With `trust_end_user` the user that LiteLLM reads out of the request counts; without one, the key's."""
    trusting = MemoryHook(store, trust_end_user=True)
    assert blocks(prepared(trusting, UserAPIKeyAuth(api_key="sk-x", user_id="bob", end_user_id="alice")))
    assert blocks(prepared(trusting, UserAPIKeyAuth(api_key="sk-x", user_id="bob"), user="alice"))
    assert blocks(prepared(trusting, UserAPIKeyAuth(api_key="sk-x", user_id="alice")))
    assert not blocks(prepared(trusting, UserAPIKeyAuth(api_key="sk-x", user_id="bob")))


def test_a_named_user_is_not_trusted_by_default(hook, alice_of_store):
    """Without `trust_end_user` the same names change nothing."""
    assert not blocks(prepared(hook, UserAPIKeyAuth(api_key="sk-x", user_id="bob", end_user_id="alice"), user="alice"))


def test_keys_that_nobody_checks_are_no_users(hook, monkeypatch):
    """Where the gateway takes any key, a key says nothing, and the request is refused; with a master key it is one."""
    server = types.ModuleType("litellm.proxy.proxy_server")
    monkeypatch.setitem(sys.modules, server.__name__, server)
    with pytest.raises(HTTPException, match="belongs to no user"):
        prepared(hook, UserAPIKeyAuth(api_key="sk-anything"))
    server.master_key = "sk-master"  # type: ignore[attr-defined]
    prepared(hook, UserAPIKeyAuth(api_key="sk-anything"))


def test_other_requests_pass_untouched(hook):
    """Embeddings and the like are neither looked at nor refused."""
    data = {"model": "openai", "input": "peanuts"}
    assert asyncio.run(hook.async_pre_call_hook(UserAPIKeyAuth(), None, data, "aembedding")) is data


def test_wrong_options_are_an_error_at_the_start(store):
    """The gateway does not come up with options that no request could be prepared with."""
    with pytest.raises(InvalidInputError):
        MemoryHook(store, max_tokens=-1)
    with pytest.raises(InvalidInputError):
        MemoryHook(store, on_error="explode")


def test_a_broken_memory_lets_the_request_out(hook, alice_of_store, monkeypatch):
    """Where recall fails the request is the one that came."""
    monkeypatch.setattr(UserMemory, "recall", lambda *_, **__: 1 / 0)
    assert not blocks(prepared(hook, UserAPIKeyAuth(api_key="sk-x", user_id="alice")))


@pytest.fixture
def alice_of_store(store: MemoryStore) -> UserMemory:
    """Alice in the store of this test, with one memory."""
    memory = store.user("alice")
    memory.remember("I am allergic to peanuts", session="before")
    return memory
