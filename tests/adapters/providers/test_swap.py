"""Swap the model, and the memory does not notice: one conversation through every provider's own SDK."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutinefunction

import pytest

from memlayer import MemoryStore, Turn, wrap
from memlayer.prompt import is_block
from memlayer.testing import HashingEmbedder
from tests.adapters.loopback import Loopback
from tests.conftest import KEY

# LiteLLM leaves clients and event loops unclosed; what is ours is seen by the other files.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SAID = [
    "I am allergic to peanuts, please remember that about me",
    "What about peanuts in a satay sauce, am I allergic?",
    "My sister Clara lives in Lisbon and is allergic to nothing",
    "Where does my sister Clara live, and what is she allergic to?",
    "And what am I allergic to, once more, please?",
]
LONG_AGO = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
TOPICS = ("peanuts", "satay", "my sister Clara", "Lisbon", "being allergic")
KNOWN = [f"Once I said about {topic} number {number}: it is fine with me" for topic in TOPICS for number in range(3)]


def chatbot(wire):
    """A provider that gives the same replies in the same order as all the others."""
    made = import_module(f"tests.adapters.wires.{wire}").Chatbot
    replies = [f"Noted, thing number {number}." for number in range(20)]
    if wire in ("google_genai", "ollama"):
        return made(*replies)
    following = iter(replies)
    return made(lambda _: next(following))


class Openai:
    def __init__(self, url, memory, **options):
        self.client = wrap(import_module("openai").OpenAI(base_url=f"{url}/v1", api_key="none"), memory, **options)
        self.messages: list[dict[str, str]] = []

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        answer = self.client.chat.completions.create(model="m", messages=self.messages).choices[0].message.content
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def close(self):
        self.client.close()


class Responses(Openai):
    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        answer = self.client.responses.create(model="m", input=self.messages).output_text
        self.messages.append({"role": "assistant", "content": answer})
        return answer


class Anthropic(Openai):
    def __init__(self, url, memory, **options):
        self.client = wrap(import_module("anthropic").Anthropic(base_url=url, api_key="none"), memory, **options)
        self.messages = []

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        answer = self.client.messages.create(model="m", max_tokens=99, messages=self.messages).content[0].text
        self.messages.append({"role": "assistant", "content": answer})
        return answer


class Google(Openai):
    def __init__(self, url, memory, **options):
        genai = import_module("google.genai")
        self.inner = genai.Client(api_key="none", http_options={"base_url": url})
        self.client = wrap(self.inner, memory, **options)
        self.chat = self.client.chats.create(model="m")

    def say(self, text):
        return self.chat.send_message(text).text

    def close(self):
        getattr(self.inner, "close", lambda: None)()


class Ollama(Openai):
    def __init__(self, url, memory, **options):
        self.inner = import_module("ollama").Client(host=url)
        self.client = wrap(self.inner, memory, **options)
        self.messages = []

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        answer = self.client.chat(model="m", messages=self.messages).message.content
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def close(self):
        self.inner._client.close()


class Litellm(Openai):
    def __init__(self, url, memory, **options):
        self.client = wrap(import_module("litellm"), memory, **options)
        self.url = url
        self.messages = []

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        answer = self.client.completion(
            model="openai/m", api_base=f"{self.url}/v1", api_key="none", messages=self.messages
        )
        self.messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return self.messages[-1]["content"]

    def close(self):
        # LiteLLM keeps its clients for later calls, and closes none.
        cached = import_module("litellm").in_memory_llm_clients_cache
        for client in list(cached.cache_dict.values()):
            if not iscoroutinefunction(client.close):
                client.close()
        cached.flush_cache()


PROVIDERS = [
    (Openai, "openai"), (Responses, "openai"), (Anthropic, "anthropic"), (Google, "google_genai"), (Ollama, "ollama"),
    *([(Litellm, "openai")] if find_spec("litellm") else []),
]  # fmt: skip
NAMES = [kind.__name__ for kind, _ in PROVIDERS]


@contextmanager
def chatting(kind, wire, memory, **options):
    with Loopback(chatbot(wire)) as server:
        chat = kind(server.url, memory, **options)
        try:
            yield chat, server
        finally:
            chat.close()
            gc.collect()


def strings(value):
    """Every string in some JSON, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def blocks(body):
    """Every block in a request; where a message is one string, it stands at its end."""
    found = []
    for text in strings(body):
        start = text.find("<memory-")
        if start >= 0:
            assert is_block(text[start:])
            found.append(text[start:])
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each provider was sent, and what was stored, for the same conversation in a store of its own."""
    found = {}
    for kind, wire in PROVIDERS:
        folder = tmp_path_factory.mktemp("swap")
        with MemoryStore.open(folder / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
            alice = store.user("alice")
            alice.remember_many([Turn(text=text, at=LONG_AGO, session="long ago") for text in KNOWN])
            with chatting(kind, wire, alice, session="s1", k=2) as (chat, server):
                replies = [chat.say(text) for text in SAID]
                bodies = server.bodies
            stored = [(turn.role, turn.text, turn.session, turn.source, turn.speaker, turn.metadata)
                      for turn in alice.history(session="s1")]  # fmt: skip
            found[kind.__name__] = (replies, bodies, stored)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_same_turns_are_stored(outcomes, name):
    """But for ids and times, whichever SDK the conversation went through."""
    replies, _, stored = outcomes[name]
    said = [
        (role, text)
        for turn in zip(SAID, replies, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    assert [turn[:2] for turn in stored] == said
    assert stored == outcomes["Openai"][2]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_blocks_are_injected(outcomes, name):
    """Byte for byte, request by request, with those of earlier turns."""
    _, bodies, _ = outcomes[name]
    expected = [blocks(body) for body in outcomes["Openai"][1]]
    assert [len(sent) for sent in expected] == [1, 2, 3, 4, 5]
    assert [blocks(body) for body in bodies] == expected


def test_a_conversation_moves_from_provider_to_provider(tmp_path):
    """One memory and one question: identical blocks, byte for byte, through every SDK; and what one was told the next
    one knows."""
    sent = {}
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        alice = store.user("alice")
        alice.remember("I am allergic to peanuts", session="long ago")
        for kind, wire in PROVIDERS:
            memory = store.user("alice")
            with chatting(kind, wire, memory, session=kind.__name__, sources=["user"], k=1) as (chat, server):
                chat.say("what am I allergic to, peanuts perhaps, or is it?")
                [sent[kind.__name__]] = blocks(server.bodies[0])
                alice.forget(session=kind.__name__)
        assert len(set(sent.values())) == 1
        for number, (kind, wire) in enumerate(PROVIDERS):
            with chatting(kind, wire, store.user("bob"), session=f"bob {number}") as (chat, server):
                chat.say(f"my codeword number {number} is zebra{number}")
                if number:
                    assert f"zebra{number - 1}" in json.dumps(server.bodies[0])


@pytest.mark.parametrize("name", NAMES)
def test_over_twelve_turns_each_request_begins_with_the_one_before(tmp_path, name):
    """The messages of turn n begin with the messages of turn n-1, each serialised identically."""
    kind, wire = PROVIDERS[NAMES.index(name)]
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        alice = store.user("alice")
        for number in range(60):
            alice.remember(f"Fact {number} is about topic {number % 12} and its colour {number * 7 % 12}")
        with chatting(kind, wire, alice, session="s1", max_tokens=200) as (chat, server):
            for turn in range(12):
                chat.say(f"tell me about topic {turn} and its colour {turn}")
    before: list[str] = []
    for body in server.bodies:
        messages = body.get("messages") or body.get("input") or body.get("contents")
        sent = [json.dumps(message) for message in messages]
        assert sent[: len(before)] == before
        assert blocks(messages[-1])
        before = sent
    assert len(server.bodies) == 12


def test_fifty_tasks_of_two_users_never_see_each_others_words(tmp_path):
    """One process, two users, 50 tasks at once over async clients: no request carries a word of the other."""
    openai = import_module("openai")
    wire = import_module("tests.adapters.wires.openai")

    async def chat(store, url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as shared:

            async def one(number):
                name = ("alice", "bob")[number % 2]
                client = wrap(shared, store.user(name), session=f"{name} {number}", recall_timeout=60)
                for turn in range(2):
                    text = f"{name} asks about the secret {name}word number {number}, time {turn}"
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])

            await asyncio.gather(*(one(number) for number in range(50)))

    with (
        MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store,
        Loopback(wire.Chatbot("Noted.")) as server,
    ):
        for name in ("alice", "bob"):
            store.user(name).remember_many([Turn(text=f"the secret {name}word is {name}pass {n}") for n in range(20)])
        asyncio.run(chat(store, server.url))
        assert len(server.bodies) == 100
        for body in server.bodies:
            sent = json.dumps(body)
            other = "bob" if "alice asks" in sent else "alice"
            assert blocks(body)
            assert f"{other}word" not in sent
            assert f"{other}pass" not in sent
        for name in ("alice", "bob"):
            assert len(store.user(name)) == 20 + 100
