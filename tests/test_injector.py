"""The injector: memory never breaks the chat, a reply is captured while it passes by, and nothing is done twice."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading

import pytest

from memlayer import MemoryStore, RecallTimeoutError, workers, wrap
from memlayer.codec import MESSAGES
from memlayer.errors import EmbedderError, InvalidInputError, StoreClosedError
from memlayer.health import FAILURES_BEFORE_PAUSE, PAUSE_SECONDS, Breaker, Loading
from memlayer.injector import Injector
from memlayer.testing import HashingEmbedder
from tests.conftest import KEY

ASKED = [{"role": "user", "content": "what about peanuts, can I eat them?"}]


class Failing(HashingEmbedder):
    """An embedder that can be made to fail, to wait, and to take its time to load."""

    def __init__(self):
        super().__init__()
        self.fails = False
        self.waits: threading.Event | None = None

    def embed_query(self, text):
        if self.waits is not None:
            self.waits.wait(10)
        if self.fails:
            raise RuntimeError(text)
        return super().embed_query(text)


@pytest.fixture
def embedder():
    return Failing()


@pytest.fixture
def peanuts(alice):
    alice.remember("I am allergic to peanuts")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text, turn.metadata) for turn in memory.history(session=session)]


QUESTION: tuple[str, str, dict[str, bool]] = ("user", ASKED[0]["content"], {})


# --- A whole reply ---


def test_a_call_injects_once_and_captures_once(peanuts):
    """The request is a copy with the block; both sides are in the store when `after` returns."""
    call = Injector(peanuts, session="s1").before(MESSAGES, ASKED)
    assert call.request != ASKED
    call.after("No.")
    call.after("No.")
    assert said(peanuts) == [QUESTION, ("assistant", "No.", {})]


def test_async_calls_do_the_same(peanuts):
    """Prepared and captured in a worker, never in the loop's thread."""
    threads = set()
    inner = peanuts.prepare

    def listening(*arguments, **options):
        threads.add(threading.get_ident())
        return inner(*arguments, **options)

    async def chat():
        injector = Injector(peanuts, session="s1")
        peanuts.prepare = listening
        call = await injector.abefore(MESSAGES, ASKED)
        await call.aafter("No.")
        return call.request

    assert asyncio.run(chat()) != ASKED
    assert said(peanuts) == [QUESTION, ("assistant", "No.", {})]
    assert threading.get_ident() not in threads
    assert threads


def test_what_runs_inside_of_a_call_gets_nothing_of_its_own(peanuts):
    """A wrapped client inside of a wrapped framework: one block, one capture, by the outer one."""
    outer, inner = Injector(peanuts, session="s1"), Injector(peanuts, session="inner")
    with outer.before(MESSAGES, ASKED) as call:
        nested = inner.before(MESSAGES, ASKED)
        assert nested.request is ASKED
        nested.after("No.")
    call.after("No.")
    assert said(peanuts, "inner") == []
    assert len(said(peanuts)) == 2
    assert inner.before(MESSAGES, ASKED).prepared is not None


# --- Streams ---


def test_a_stream_passes_through_and_is_captured_at_its_end(peanuts):
    """Every event as it is; the reply in one piece."""
    call = Injector(peanuts, session="s1").before(MESSAGES, ASKED)
    assert list(call.tee(iter(["No", ", ", "better not."]))) == ["No", ", ", "better not."]
    assert said(peanuts) == [QUESTION, ("assistant", "No, better not.", {})]


def failing():
    yield "No"
    raise ConnectionError


def broken_off(tee, how):
    next(tee)
    if how == "closed":
        tee.close()
    elif how == "failed":
        with pytest.raises(ConnectionError):
            next(tee)


@pytest.mark.parametrize("how", ["closed", "failed", "dropped"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_stream_that_breaks_off_keeps_the_users_turn(peanuts, how, keep):
    """And drops the partial reply; with `keep_partial` it is kept and marked."""
    call = Injector(peanuts, session="s1", keep_partial=keep).before(MESSAGES, ASKED)
    tee = call.tee(failing())
    broken_off(tee, how)
    del tee
    gc.collect()
    settled(peanuts)
    assert said(peanuts) == [QUESTION, *([("assistant", "No", {"incomplete": True})] if keep else [])]


def settled(memory):
    """Waits for what the workers have begun to remember."""
    workers.finish(memory.breaker, seconds=10)


def test_a_cancelled_async_stream_keeps_the_users_turn(peanuts):
    """Cancelled in the middle of waiting for an event."""

    async def events():
        yield "No"
        await asyncio.sleep(60)

    async def read(call):
        async for _ in call.atee(events()):
            pass

    async def chat():
        call = await Injector(peanuts, session="s1").abefore(MESSAGES, ASKED)
        task = asyncio.create_task(read(call))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(chat())
    settled(peanuts)
    assert said(peanuts) == [QUESTION]


HELD = """
import sys
from memlayer import MemoryStore, RawKey
from memlayer.codec import MESSAGES
from memlayer.injector import Injector
from memlayer.testing import HashingEmbedder
store = MemoryStore.open(sys.argv[1], keys=RawKey(bytes(range(32))), embedder=HashingEmbedder())
call = Injector(store.user("alice"), session="s1").before(MESSAGES, [{"role": "user", "content": "peanuts?"}])
tee = call.tee(iter(["No", "!"]))
next(tee)
"""


def test_a_stream_that_is_held_when_the_process_ends_keeps_the_users_turn(tmp_path):
    """No worker can be started any more, and nothing is said on stderr."""
    path = tmp_path / "held.db"
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    with MemoryStore.open(path, keys=KEY, embedder=HashingEmbedder()) as store:
        assert said(store.user("alice")) == [("user", "peanuts?", {})]


# --- Failures ---


def test_a_failing_recall_does_not_break_the_chat(peanuts, embedder, caplog):
    """The request goes out as it came, with one log line that holds no text, and the health says so."""
    embedder.fails = True
    injector = Injector(peanuts, session="s1")
    with caplog.at_level(logging.WARNING, "memlayer"):
        call = injector.before(MESSAGES, ASKED)
    assert call.request is ASKED
    assert len(caplog.records) == 1
    assert "peanuts" not in caplog.text
    assert (injector.health.ok, injector.health.error) == (False, "embedder")


def test_on_error_raise_raises_and_ignore_is_silent(peanuts, embedder, caplog):
    """The two other policies."""
    embedder.fails = True
    with pytest.raises(EmbedderError):
        Injector(peanuts, on_error="raise").before(MESSAGES, ASKED)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "memlayer"):
        assert Injector(peanuts, on_error="ignore").before(MESSAGES, ASKED).request is ASKED
    assert caplog.records == []


def test_a_slow_recall_has_a_budget(peanuts, embedder):
    """After it the request goes out without memory."""
    embedder.waits = threading.Event()
    try:
        assert Injector(peanuts, recall_timeout=0.05).before(MESSAGES, ASKED).request is ASKED
        with pytest.raises(RecallTimeoutError):
            Injector(peanuts, recall_timeout=0.05, on_error="raise").before(MESSAGES, ASKED)

        async def chat():
            return await Injector(peanuts, recall_timeout=0.05).abefore(MESSAGES, ASKED)

        assert asyncio.run(chat()).request is ASKED
    finally:
        embedder.waits.set()


def test_a_closed_store_does_not_break_the_chat(peanuts, store):
    """Neither before nor after the request."""
    injector = Injector(peanuts, session="s1")
    call = injector.before(MESSAGES, ASKED)
    store.close()
    call.after("No.")
    assert injector.before(MESSAGES, ASKED).request is ASKED
    with pytest.raises(StoreClosedError):
        Injector(peanuts, on_error="raise").before(MESSAGES, ASKED)


def test_after_repeated_failures_there_is_a_pause_then_a_retry(peanuts, embedder, monkeypatch):
    """Nothing is tried while it lasts; one success ends it."""
    clock = [1000.0]
    breaker = peanuts.breaker
    monkeypatch.setattr(breaker, "_clock", lambda: clock[0])
    embedder.fails = True
    injector = Injector(peanuts)
    for _ in range(FAILURES_BEFORE_PAUSE):
        assert injector.health.paused == 0
        injector.before(MESSAGES, ASKED)
    assert injector.health.paused == PAUSE_SECONDS
    embedder.fails = False
    asked = embedder.query_calls
    assert injector.before(MESSAGES, ASKED).request is ASKED
    assert embedder.query_calls == asked
    clock[0] += PAUSE_SECONDS + 1
    assert injector.before(MESSAGES, ASKED).request is not ASKED
    assert injector.health.ok


def test_one_users_bad_text_does_not_pause_the_others(peanuts):
    """A lone surrogate is an error of this request; it is not counted against the store."""
    injector = Injector(peanuts)
    bad = [{"role": "user", "content": "peanuts \ud800"}]
    for _ in range(2 * FAILURES_BEFORE_PAUSE):
        assert injector.before(MESSAGES, bad).request is bad
    assert injector.before(MESSAGES, ASKED).request is not ASKED


def test_a_user_who_was_moved_to_another_embedder_does_not_pause_the_others(peanuts, store):
    """Another process changes the embedder under this one: its users go without memory, and nothing is paused."""
    injector = Injector(peanuts)
    with MemoryStore.open(store.path, keys=KEY, embedder=HashingEmbedder()) as other:
        other.reembed(HashingEmbedder(32))
    for _ in range(2 * FAILURES_BEFORE_PAUSE):
        assert injector.before(MESSAGES, ASKED).request is ASKED
    assert injector.health.error == "embedder_mismatch"
    assert injector.health.paused == 0


def test_a_codec_that_cannot_read_a_request_does_not_break_the_chat(peanuts):
    """Whatever the caller sends, the provider decides about it."""
    assert Injector(peanuts).before(MESSAGES, 5).request == 5


def test_of_many_callers_one_tries_after_a_pause():
    """The others wait for how it fares."""
    clock = [0.0]
    breaker = Breaker(clock=lambda: clock[0])
    for _ in range(FAILURES_BEFORE_PAUSE):
        assert breaker.allows()
        breaker.failed(RuntimeError(), doing="recalling")
    assert not breaker.allows()
    clock[0] += PAUSE_SECONDS + 1
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert all(breaker.allows() for _ in range(3))


# --- Loading ---


class Slow(HashingEmbedder):
    """Takes its time to load."""

    def __init__(self):
        super().__init__()
        self.ready = threading.Event()
        self.loads = 0

    def load(self):
        self.loads += 1
        self.ready.wait(20)


def test_wrapping_begins_to_load_the_embedder_and_the_first_answer_waits(tmp_path):
    """Longer than a recall may take, so that the first answers have memory; and it is loaded once."""
    embedder = Slow()
    with MemoryStore.open(tmp_path / "slow.db", keys=KEY, embedder=embedder) as store:
        alice = store.user("alice")
        alice.remember("I am allergic to peanuts")
        injector = Injector(alice, recall_timeout=0.2)
        threading.Timer(0.5, embedder.ready.set).start()
        assert injector.before(MESSAGES, ASKED).request is not ASKED
        assert Injector(alice).before(MESSAGES, ASKED).request is not ASKED
        assert embedder.loads == 1


def test_loading_has_a_limit_of_its_own():
    """Patience ends ten seconds after it began, however often it is asked for."""
    clock = [0.0]
    done = threading.Event()

    def load():
        done.wait(20)

    loading = Loading(load, clock=lambda: clock[0])
    assert loading.patience() == 10
    clock[0] = 4.0
    assert loading.patience() == 6
    clock[0] = 11.0
    assert loading.patience() == 0
    assert not loading.is_done
    done.set()
    assert loading.wait(10)


def test_a_load_that_fails_ends_the_waiting():
    """Whoever embeds hears why."""

    def load():
        raise EmbedderError("no weights")

    loading = Loading(load)
    loading.start()
    assert loading.wait(10)
    assert loading.patience() == 0


# --- Wrong use ---


@pytest.mark.parametrize("memory", [None, "alice", object(), MemoryStore])
def test_a_missing_or_wrong_user_always_raises(memory):
    """Before any request, whatever the policy."""
    with pytest.raises(InvalidInputError):
        wrap(Client(), memory, on_error="ignore")


class Client:
    """Of no provider."""

    __module__ = "openai.fake"


def test_a_client_without_an_adapter_is_told_which_there_are(alice):
    """And what to do with it."""
    with pytest.raises(InvalidInputError, match=r"openai, anthropic, google.genai, ollama, litellm.*prepare"):
        wrap(object(), alice)


@pytest.mark.parametrize(
    "options", [{"on_error": "shout"}, {"recall_timeout": 0}, {"recall_timeout": True}, {"placement": "top"}, {"k": -1}]
)
def test_options_that_make_no_sense_are_refused_at_once(alice, options):
    """When the client is wrapped, not at the first request."""
    with pytest.raises(InvalidInputError):
        Injector(alice, **options)
