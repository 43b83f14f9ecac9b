"""examples/fastapi_service.py: its own ASGI app, the real OpenAI client, and a server that speaks OpenAI's format."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memlayer import AsyncMemoryStore, RawKey
from memlayer.testing import HashingEmbedder
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.adapters.loopback import Answer, Request

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

EXAMPLE = Path(__file__).parents[3] / "examples" / "fastapi_service.py"
ALICE = {"authorization": "Bearer alices-token"}
BOB = {"authorization": "Bearer bobs-token"}


def example() -> Any:
    spec = importlib.util.spec_from_file_location("fastapi_service", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def service(folder: Path, server: Loopback) -> AsyncIterator[tuple[Any, AsyncMemoryStore]]:
    """The app, and the store that it uses."""
    async with (
        AsyncMemoryStore.open(
            folder / "service.db", keys=RawKey(bytes(range(32))), embedder=HashingEmbedder()
        ) as store,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield example().service(store, client), store


def browser(app: Any, headers: dict[str, str] | None = None) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", headers=headers)


async def texts(client: Any) -> list[str]:
    return [memory["text"] for memory in (await client.get("/memories")).json()]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer nobodys-token"}, {"authorization": "Basic YTpi"}])
@pytest.mark.parametrize("route", ["POST /chat", "POST /chat/stream", "GET /memories", "DELETE /memories"])
def test_who_is_not_signed_in_gets_nowhere(route, headers, tmp_path):
    """Without a known token every route answers 401, the model is not asked, and no user is made."""

    async def run():
        with Loopback(wire.Chatbot()) as server:
            async with service(tmp_path, server) as (app, store), browser(app, headers) as client:
                method, path = route.split()
                body = {"text": "hello", "user_id": "alice"} if method == "POST" else None
                answer = await client.request(method, path, json=body)
                assert answer.status_code == 401
                assert server.requests == []
                assert await store.count_users() == 0

    asyncio.run(run())


def test_what_was_said_comes_back_in_another_conversation(tmp_path):
    """A fact of one conversation is in the request of the next, once, behind the user's own words."""

    async def run():
        with Loopback(wire.Chatbot("Noted, cello.")) as server:
            async with service(tmp_path, server) as (app, _), browser(app, ALICE) as client:
                answer = await client.post("/chat", json={"text": "I play the cello", "session": "monday"})
                assert answer.json() == "Noted, cello."
                await client.post("/chat", json={"text": "What do I play?", "session": "tuesday"})
                first, second = server.bodies
                assert first["messages"] == [{"role": "user", "content": "I play the cello"}]
                [message] = second["messages"]
                own, block = message["content"]
                assert own["text"] == "What do I play?"
                assert block["text"].count("I play the cello") == 1
                assert await texts(client) == ["I play the cello", "Noted, cello.", "What do I play?", "Noted, cello."]

    asyncio.run(run())


def test_a_conversation_goes_on_where_it_was(tmp_path):
    """The turns of a session are sent again, and the later request begins with the earlier one, byte for byte."""

    async def run():
        with Loopback(wire.Chatbot("Noted.")) as server:
            async with service(tmp_path, server) as (app, _), browser(app, ALICE) as client:
                await client.post("/chat", json={"text": "I play the cello", "session": "before"})
                for text in ("What do I play?", "And what do you know of the cello?", "Which strings does it have?"):
                    await client.post("/chat", json={"text": text, "session": "now"})
                requests = [body["messages"] for body in server.bodies[1:]]
                assert [len(messages) for messages in requests] == [1, 3, 5]
                for earlier, later in pairwise(requests):
                    assert json.dumps(later).startswith(json.dumps(earlier)[:-1])

    asyncio.run(run())


def test_a_streamed_answer_is_remembered(tmp_path):
    """The stream gives the model's words as they are, and both sides are remembered once."""

    async def run():
        with Loopback(wire.Chatbot("A cello has four strings.")) as server:
            async with service(tmp_path, server) as (app, _), browser(app, ALICE) as client:
                answer = await client.post("/chat/stream", json={"text": "How many strings?"})
                assert answer.text == "A cello has four strings."
                assert server.bodies[0]["stream"] is True
                assert await texts(client) == ["How many strings?", "A cello has four strings."]

    asyncio.run(run())


def test_whoever_hangs_up_is_remembered_without_the_answer(tmp_path):
    """When the browser goes away in the middle of a stream, its question stays and the broken-off answer does not."""
    gone = threading.Event()

    def halting(request: Request) -> Answer:
        """The model says the first word, and the others when the browser is gone."""
        answer = wire.Chatbot("A cello has four strings and a bow.")(request)
        return replace(answer, body=held_back(answer.body, after=b'"A"', until=gone))

    async def run():
        with Loopback(halting) as server:
            async with service(tmp_path, server) as (app, store):
                assert await hang_up(app, {"text": "How many strings?"}) == b"A"
                gone.set()
                alice = store.user("alice")
                async with asyncio.timeout(30):  # nobody waits for the write: the task is cancelled
                    while not await alice.count():
                        pass
                # Cancelled tasks cannot wait for the write that they began; it is done a moment later.
                for _ in range(500):
                    if await alice.count():
                        break
                    await asyncio.sleep(0.01)
                assert [turn.text for turn in await alice.history()] == ["How many strings?"]
                assert alice.health.ok

    asyncio.run(run())


def held_back(parts: Iterator[bytes], *, after: bytes, until: threading.Event) -> Iterator[bytes]:
    for part in parts:
        yield part
        if after in part:
            until.wait(30)


async def hang_up(app: Any, body: dict[str, str]) -> bytes:
    """Asks for a stream, as a web server would for a browser that is gone after the first word; what it got."""
    said = b""
    first = asyncio.Event()
    requests = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await first.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal said
        if said := said + message.get("body", b""):
            first.set()

    headers = {**ALICE, "content-type": "application/json"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
        "method": "POST",
        "path": "/chat/stream",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    return said


def test_two_users_at_once_stay_apart(tmp_path):
    """Two users over one store and one client, 25 requests each at once: no request carries a word of the other."""
    facts = {"alice": "I eat no peanuts", "bob": "I eat no walnuts"}

    async def run():
        with Loopback(wire.Chatbot()) as server:
            async with service(tmp_path, server) as (app, _), browser(app, ALICE) as alice, browser(app, BOB) as bob:
                people = [(alice, "alice"), (bob, "bob")]
                for client, name in people:
                    await client.post("/chat", json={"text": facts[name], "session": "first"})
                await asyncio.gather(
                    *(
                        client.post(
                            "/chat/stream" if number % 2 else "/chat",
                            json={"text": f"{name}, {number}: what do I not eat?", "session": f"s{number}"},
                        )
                        for number in range(25)
                        for client, name in people
                    )
                )
                assert len(server.bodies) == 52
                for name, other in (("alice", "bob"), ("bob", "alice")):
                    asked = [json.dumps(body) for body in server.bodies if f"{name}, " in json.dumps(body)]
                    assert len(asked) == 25
                    assert all(facts[name] in request for request in asked)
                    assert not any(facts[other] in request or other in request for request in asked)
                assert len(await texts(alice)) == len(await texts(bob)) == 52
                assert not any("walnuts" in text or "bob" in text for text in await texts(alice))

    asyncio.run(run())


def test_erasing_reaches_the_one_who_asks_and_nobody_else(tmp_path):
    """DELETE /memories forgets all of the user who is signed in; the other's memories stay."""

    async def run():
        with Loopback(wire.Chatbot()) as server:
            async with service(tmp_path, server) as (app, _), browser(app, ALICE) as alice, browser(app, BOB) as bob:
                await alice.post("/chat", json={"text": "I eat no peanuts"})
                await bob.post("/chat", json={"text": "I eat no walnuts"})
                assert (await alice.delete("/memories")).json() == {"erased": 2}
                assert await texts(alice) == []
                assert await texts(bob) == ["I eat no walnuts", "Noted."]
                await alice.post("/chat", json={"text": "What do I not eat?", "session": "new"})
                assert server.bodies[-1]["messages"] == [{"role": "user", "content": "What do I not eat?"}]

    asyncio.run(run())
