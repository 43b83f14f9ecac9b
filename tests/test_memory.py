"""What one user's memory does: remember, recall, forget and the rest, over a real store."""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memlayer import (
    ConflictError,
    EmbedderError,
    InvalidFilterError,
    InvalidInputError,
    LimitExceededError,
    MemlayerError,
    Memory,
    MemoryStore,
    NotFoundError,
    RawKey,
    Turn,
)
from memlayer.ranking import PARTS
from memlayer.testing import HashingEmbedder

MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


# --- remember ---


def test_a_turn_comes_back_with_everything_that_it_was_given(alice):
    """Every field of a remembered turn is read back as it went in."""
    given_fields = {
        "role": "assistant",
        "speaker": "Mel",
        "session": "s1",
        "at": MAY,
        "metadata": {"channel": "web", "n": 5, "deep": {"list": [1, 2.5, None, True]}},
        "id": "m-1",
        "source": "document",
        "expires": MAY + timedelta(days=90_000),
    }
    alice.remember("Hey Caroline!", **given_fields)
    memory = alice.get("m-1")
    assert memory.text == "Hey Caroline!"
    assert {name: getattr(memory, name) for name in given_fields} == given_fields


def test_what_is_left_out_has_a_plain_default(alice):
    """A turn with only a text is the user's, of now, with no session and a random id of 32 hex digits."""
    before = datetime.now(UTC)
    memory = alice.remember("hello")
    assert (memory.role, memory.source, memory.session, memory.speaker, memory.metadata) == (
        "user",
        "user",
        None,
        None,
        {},
    )
    assert before <= memory.at <= datetime.now(UTC)
    assert len(memory.id) == 32
    assert bytes.fromhex(memory.id)


def test_a_turn_keeps_the_time_of_the_event_in_utc(alice):
    """The event's own time is kept beside the time of writing, whatever zone it was given in."""
    at = datetime(2023, 5, 8, 15, 56, tzinfo=timezone(timedelta(hours=2)))
    memory = alice.remember("then", at=at)
    assert memory.at == MAY
    assert memory.at.tzinfo is UTC
    assert memory.written > memory.at


@pytest.mark.parametrize(
    "text",
    [
        "🥜🥜",
        "مرحبا بالعالم",
        "e\u0301 is not \u00e9",
        "a\0b",
        "\u202eright to left",
        "   padded   ",
        "x" * 100_000,
        "\ufeff!",
    ],
)
def test_any_unicode_text_comes_back_exactly(alice, store, text):
    """Emoji, right-to-left text, combining characters and NUL come back exactly, from RAM and from the file."""
    memory_id = alice.remember(text, session=text[:20], speaker=text[:20], metadata={text[:20]: text[:99]}).id
    assert alice.get(memory_id).text == text
    path = store.path
    store.close()
    with MemoryStore.open(path, keys=RawKey(bytes(range(32))), embedder=HashingEmbedder()) as again:
        memory = again.user("alice").get(memory_id)
        assert (memory.text, memory.session, memory.metadata) == (text, text[:20], {text[:20]: text[:99]})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(str.strip))
def test_generated_texts_come_back_exactly(alice, text):
    """Whatever text of Unicode characters is remembered, the same comes back."""
    assert alice.get(alice.remember(text).id).text == text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"text": ""}, InvalidInputError),
        ({"text": " \n"}, InvalidInputError),
        ({"text": 5}, InvalidInputError),
        ({"text": "x" * 262_145}, LimitExceededError),
        ({"text": "é" * 131_073}, LimitExceededError),
        ({"text": "\ud800"}, InvalidInputError),
        ({"text": "x", "at": datetime(2023, 5, 8)}, InvalidInputError),  # noqa: DTZ001  naive is the point
        ({"text": "x", "expires": datetime(2023, 5, 8)}, InvalidInputError),  # noqa: DTZ001
        ({"text": "x", "at": "2023-05-08"}, InvalidInputError),
        ({"text": "x", "role": "boss"}, InvalidInputError),
        ({"text": "x", "source": "rumour"}, InvalidInputError),
        ({"text": "x", "session": ""}, InvalidInputError),
        ({"text": "x", "session": "s" * 513}, LimitExceededError),
        ({"text": "x", "id": ""}, InvalidInputError),
        ({"text": "x", "metadata": {"a": {1, 2}}}, InvalidInputError),
        ({"text": "x", "metadata": {"a": float("nan")}}, InvalidInputError),
        ({"text": "x", "metadata": {1: "a"}}, InvalidInputError),
        ({"text": "x", "metadata": ["a"]}, InvalidInputError),
        ({"text": "x", "metadata": {"a": "x" * 16_400}}, LimitExceededError),
        ({"text": "x", "metadata": {"a": 2**63}}, InvalidInputError),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(store, alice, embedder, arguments, error):
    """Bad input is a typed error that does not repeat it, and neither embeds nor writes anything."""
    with pytest.raises(error) as caught:
        alice.remember(**arguments)
    assert isinstance(caught.value, MemlayerError)
    assert store.count_users() == 0
    assert embedder.texts == 0
    assert (
        str(arguments["text"]) == "x"
        or not str(arguments["text"]).strip()
        or str(arguments["text"]) not in str(caught.value)
    )


def test_one_bad_turn_keeps_the_whole_batch_out(alice):
    """remember_many writes all turns or none."""
    with pytest.raises(InvalidInputError):
        alice.remember_many([Turn(text="good"), "not a turn"])
    with pytest.raises(ConflictError):
        alice.remember_many([Turn(text="one", id="a"), Turn(text="good"), Turn(text="two", id="a")])
    assert len(alice) == 0


def test_turns_of_one_moment_keep_their_order(alice):
    """Turns with one time come back in the order in which they were remembered."""
    texts = [f"line {number}" for number in range(20)]
    memories = alice.remember_many([Turn(text=text, at=MAY) for text in texts])
    assert [memory.text for memory in memories] == texts
    assert [memory.text for memory in alice.history()] == texts


# --- own ids ---


def test_the_same_id_with_the_same_content_is_remembered_once(alice, embedder):
    """Remembering an id again with the same content returns the first memory and embeds nothing."""
    first = alice.remember("hello", id="a", session="s", metadata={"n": 1})
    embedded = embedder.texts
    again = alice.remember("hello", id="a", session="s", metadata={"n": 1})
    assert again == first
    assert (len(alice), embedder.texts) == (1, embedded)


def test_the_same_id_with_other_content_needs_replace(alice):
    """An id that is taken by other content is a ConflictError, and with replace=True is overwritten in place."""
    alice.remember("first", id="a")
    for other in ({"text": "second"}, {"text": "first", "session": "s"}, {"text": "first", "metadata": {"n": 1}}):
        with pytest.raises(ConflictError):
            alice.remember(**other, id="a")
    assert alice.get("a").text == "first"
    alice.remember("second", id="a", replace=True)
    assert (alice.get("a").text, len(alice)) == ("second", 1)
    assert [hit.text for hit in alice.recall("second")] == ["second"]


def test_a_chosen_id_is_found_by_the_id_that_is_shown(alice):
    """A memory without an own id is replaced under the id that memlayer gave it."""
    shown = alice.remember("first").id
    alice.remember("second", id=shown, replace=True)
    assert (alice.get(shown).text, len(alice)) == ("second", 1)


def test_a_batch_may_hold_an_id_twice_with_the_same_content(alice):
    """A turn that stands twice in a batch under one id is remembered once."""
    memories = alice.remember_many([Turn(text="x", id="a", at=MAY), Turn(text="x", id="a", at=MAY)])
    assert memories[0] == memories[1]
    assert len(alice) == 1


# --- embeddings ---


def test_every_input_is_embedded_once_in_its_life(store, alice, embedder):
    """Remembering, re-reading, updating metadata, exporting, importing and reopening embed no text a second time."""
    path = store.path
    alice.remember_many([Turn(text=f"fact number {number}") for number in range(10)])
    assert embedder.texts == 10
    memory_id = alice.history()[0].id
    alice.update(memory_id, metadata={"seen": True})
    alice.export(path.with_name("a.export"), passphrase="a passphrase for it")
    store.user("bob").import_(path.with_name("a.export"), passphrase="a passphrase for it")
    store.close()
    with MemoryStore.open(path, keys=RawKey(bytes(range(32))), embedder=embedder) as again:
        again.user("alice").recall(np.ones(64, dtype=np.float32))
        assert embedder.texts == 10
        again.user("alice").update(memory_id, text="a new fact")
        assert embedder.texts == 11
        again.user("alice").recall("fact")
        assert (embedder.texts, embedder.query_calls) == (12, 1)


def test_nothing_is_embedded_for_a_user_who_has_nothing(alice, embedder):
    """Recall of an empty user finds nothing and does not wake the model."""
    assert list(alice.recall("anything?")) == []
    assert embedder.texts == 0


def test_given_vectors_are_used_and_the_embedder_is_not(alice, embedder):
    """remember_many(embeddings=) and a vector query go without the embedder and find what is nearest."""
    vectors = np.eye(3, 64, dtype=np.float32)
    alice.remember_many([Turn(text=text) for text in "abc"], embeddings=vectors)
    hits = alice.recall(vectors[1], k=1)
    assert (hits[0].text, round(hits[0].score, 6)) == ("b", 1.0)
    assert embedder.texts == 0


@pytest.mark.parametrize(
    "embeddings",
    [
        np.ones((1, 64)),
        np.ones((2, 63)),
        np.ones(64),
        np.full((2, 64), np.nan),
        np.full((2, 64), np.inf),
        np.zeros((2, 64)),
        [["a"] * 64] * 2,
        "vectors",
        None,
    ],
)
def test_wrong_vectors_are_refused_before_anything_is_written(alice, embeddings):
    """Vectors of another shape, NaN, infinity or zeros are refused, as embeddings and as a query."""
    if embeddings is not None:
        with pytest.raises(InvalidInputError):
            alice.remember_many([Turn(text="a"), Turn(text="b")], embeddings=embeddings)
        assert len(alice) == 0
    if not isinstance(embeddings, str) and np.shape(embeddings) != (64,):
        with pytest.raises(InvalidInputError):
            alice.recall(embeddings)


class _Broken(HashingEmbedder):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def embed_documents(self, texts):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    "result", [RuntimeError("secret words"), np.ones((1, 3)), np.full((1, 64), np.nan), np.zeros((1, 64)), None]
)
def test_an_embedder_that_fails_is_a_typed_error_without_the_text(tmp_path, result):
    """Whatever an embedder raises or returns comes out as an EmbedderError that does not hold the text."""
    with MemoryStore.open(tmp_path / "m.db", keys=RawKey(bytes(32)), embedder=_Broken(result)) as store:
        with pytest.raises(EmbedderError) as caught:
            store.user("alice").remember("secret words")
        assert "secret words" not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert store.count_users() == 0


def test_a_long_text_is_split_for_the_embedder_and_returned_whole(tmp_path):
    """A text over the embedder's window is found by any of its parts, once, and comes back whole."""
    embedder = HashingEmbedder(window=5)
    long = " ".join(f"word{number}" for number in range(40))
    with MemoryStore.open(tmp_path / "m.db", keys=RawKey(bytes(32)), embedder=embedder) as store:
        alice = store.user("alice")
        alice.remember(long)
        alice.remember("something else entirely")
        assert embedder.texts == 9
        for query in ("word0 word1 word2 word3 word4", "word35 word36 word37 word38 word39"):
            hits = alice.recall(query, k=2)
            assert [hit.text for hit in hits] == [long, "something else entirely"]
            assert hits[0].score > hits[1].score


def test_progress_goes_to_stderr(alice, capsys):
    """With progress=True the bar is on stderr, where it disturbs no output, and nothing else changes."""
    memories = alice.remember_many([Turn(text=f"fact {number}") for number in range(300)], progress=True)
    captured = capsys.readouterr()
    assert (len(memories), len(alice), captured.out) == (300, 300, "")


def test_progress_without_rich_is_log_lines(alice, monkeypatch, caplog):
    """Where rich is not installed, progress=True writes log lines without a word of the texts."""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    caplog.set_level(logging.INFO, logger="memlayer")
    alice.remember_many([Turn(text=f"fact {number}") for number in range(300)], progress=True)
    assert [record.getMessage() for record in caplog.records] == ["embedding: 0 of 300", "embedding: 256 of 300"]


# --- recall ---


@pytest.fixture
def chat(alice):
    """Six turns in two sessions on three days."""
    turns = [
        Turn(text="peanuts make me ill", session="s1", at=MAY, metadata={"channel": "web", "n": 1}),
        Turn(text="noted about peanuts", role="assistant", session="s1", at=MAY, metadata={"n": 2}),
        Turn(text="peanuts in a tool result", role="tool", session="s1", at=MAY + timedelta(days=1)),
        Turn(text="peanuts again", session="s2", at=MAY + timedelta(days=1), metadata={"channel": "app", "n": 60}),
        Turn(text="peanuts for the birds", session="s2", at=MAY + timedelta(days=2), metadata={"channel": "web"}),
        Turn(text="nothing in common", session="s2", at=MAY + timedelta(days=2), expires=MAY + timedelta(days=3)),
    ]
    alice.remember_many(turns)
    return alice


def _texts(found):
    return {item.text.removeprefix("peanuts ") for item in found}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"session": "s1"}, {"make me ill", "noted about peanuts", "in a tool result"}),
        ({"session": "s"}, set()),
        ({"since": MAY + timedelta(days=1), "until": MAY + timedelta(days=2)}, {"in a tool result", "again"}),
        ({"where": {"channel": "web"}}, {"make me ill", "for the birds"}),
        ({"where": {"n": {"$gte": 2}}}, {"noted about peanuts", "again"}),
        ({"where": {"$or": [{"n": 1}, {"n": {"$in": [60]}}]}}, {"make me ill", "again"}),
        ({"where": {"$not": {"channel": "web"}}, "session": "s2"}, {"again"}),
        ({"where": {"channel": {"$exists": False}}}, {"noted about peanuts", "in a tool result"}),
        ({"sources": ["tool"]}, {"in a tool result"}),
        ({"session": "s1", "where": {"channel": "web"}}, {"make me ill"}),
    ],
)
def test_recall_keeps_to_its_conditions(chat, conditions, expected):
    """Every condition of recall narrows what is looked at, alone and together."""
    assert _texts(chat.recall("peanuts", k=50, **conditions)) == expected


def test_recall_is_best_first_and_scores_lie_between_0_and_1(chat):
    """Hits come best first, with scores from 0 to 1, and never more than k."""
    hits = chat.recall("peanuts again", k=3)
    assert hits[0].text == "peanuts again"
    assert len(hits) == 3
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_min_score_is_a_floor_and_0_asks_for_everything(chat):
    """min_score leaves out what is weaker; 0 and the default leave out nothing."""
    everything = chat.recall("peanuts again", k=50, min_score=0)
    assert len(everything) == len(chat.recall("peanuts again", k=50)) == 5
    strong = chat.recall("peanuts again", k=50, min_score=everything[0].score)
    assert [hit.text for hit in strong] == ["peanuts again"]


def test_what_has_expired_is_not_recalled(chat):
    """From its expiry on a memory is left out of recall, history and sessions, and still counted and there by id."""
    now = MAY + timedelta(days=2, hours=1)
    assert "nothing in common" in _texts(chat.recall("common", k=50, now=now))
    assert "nothing in common" not in _texts(chat.recall("common", k=50))
    assert "nothing in common" not in _texts(chat.history())
    assert next(session.count for session in chat.sessions() if session.id == "s2") == 2
    assert chat.count() == len(chat) == 6


def test_explain_gives_the_parts_of_the_score(chat):
    """With explain=True each hit says what its score is made of; without, it does not."""
    parts = chat.recall("peanuts", explain=True)[0].parts
    assert {"vector", "lexical", "length"} <= parts.keys() <= set(PARTS)
    assert chat.recall("peanuts")[0].parts is None
    vector = chat.recall("peanuts", without=set(PARTS) - {"vector"}, explain=True)
    assert [list(hit.parts) for hit in vector] == [["vector"]] * len(vector)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": ""},
        {"query": None},
        {"query": "x", "k": 0},
        {"query": "x", "k": True},
        {"query": "x", "k": 10_001},
        {"query": "x", "min_score": 1.5},
        {"query": "x", "min_score": float("nan")},
        {"query": "x", "since": datetime(2023, 5, 8)},  # noqa: DTZ001  naive is the point
        {"query": "x", "session": ""},
        {"query": "x", "sources": ["rumour"]},
        {"query": "x", "where": {"a": {"$regex": "b"}}},
        {"query": "x", "where": {"a": {"$gt": None}}},
        {"query": "x", "where": "channel = web"},
        {"query": "x", "now": datetime(2023, 5, 8)},  # noqa: DTZ001
    ],
)
def test_a_recall_that_makes_no_sense_is_refused(chat, arguments):
    """Unknown operators, naive times, and numbers out of range are typed errors, on a user who has memories or not."""
    with pytest.raises(InvalidInputError):
        chat.recall(**arguments)
    if isinstance(arguments.get("where"), dict):
        with pytest.raises(InvalidFilterError):
            chat.recall(**arguments)


def test_hits_are_an_immutable_sequence(chat):
    """A recall is a sequence that cannot be changed, and its prompt block is the same every time."""
    hits = chat.recall("peanuts")
    assert [hit.id for hit in hits] == [hits[number].id for number in range(len(hits))]
    assert len(hits[:2]) == 2
    with pytest.raises(TypeError):
        hits[0] = None
    assert hits.as_prompt() == hits.as_prompt()
    assert "peanuts make me ill" in hits.as_prompt(max_tokens=800)
    assert hits.as_prompt(max_tokens=10) == ""
    assert chat.recall("peanuts", where={"n": 77}).as_prompt() == ""


# --- history, sessions, get, update ---


def test_history_pages_back_by_its_cursor(chat):
    """The last turns come first, oldest first within a page, and the cursor leads back until the first one."""
    pages: list[str] = []
    cursor = None
    while True:
        page = chat.history(limit=2, before=cursor)
        pages = [memory.text for memory in page] + pages
        cursor = page.cursor
        if cursor is None:
            break
    assert pages == [memory.text for memory in chat.history(limit=50)]
    assert [memory.text for memory in chat.history(session="s1", limit=1)] == ["peanuts in a tool result"]
    for bad in ({"limit": 0}, {"before": "nonsense"}, {"session": ""}):
        with pytest.raises(InvalidInputError):
            chat.history(**bad)


def test_sessions_say_when_they_began_and_ended(chat):
    """Each session has its first and last time and its count, latest first; turns without a session are in none."""
    chat.remember("on its own", at=MAY)
    (second, first) = chat.sessions()
    assert (second.id, second.first, second.last, second.count) == (
        "s2",
        MAY + timedelta(days=1),
        MAY + timedelta(days=2),
        2,
    )
    assert (first.id, first.first, first.last, first.count) == ("s1", MAY, MAY + timedelta(days=1), 3)


def test_a_foreign_id_and_one_that_never_was_are_the_same_error(store, chat):
    """get and update of another user's id say exactly what they say of an id that never was."""
    theirs = store.user("bob").remember("mine", id="theirs").id
    hers = store.user("bob").remember("mine too").id
    messages = set()
    for unknown in (theirs, hers, "0" * 32, "never"):
        with pytest.raises(NotFoundError) as caught:
            chat.get(unknown)
        messages.add((str(caught.value), tuple(caught.value.evidence)))
        with pytest.raises(NotFoundError):
            chat.update(unknown, text="changed")
    assert len(messages) == 1


def test_update_changes_what_is_given_and_keeps_the_rest(chat):
    """update replaces text or metadata in place, and recall finds the new text and no longer the old one."""
    memory = chat.history()[0]
    chat.update(memory.id, text="cashews make me ill")
    updated = chat.update(memory.id, metadata={"channel": "phone"})
    assert updated == chat.get(memory.id)
    assert updated.model_dump(exclude={"text", "metadata", "written"}) == memory.model_dump(
        exclude={"text", "metadata", "written"}
    )
    assert updated.written > memory.written
    assert chat.recall("cashews", k=1)[0].id == memory.id
    assert "peanuts make me ill" not in {hit.text for hit in chat.recall("peanuts make me ill", k=50)}
    with pytest.raises(InvalidInputError):
        chat.update(memory.id)


# --- forget and erase ---


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"session": "s1"}, 3),
        ({"where": {"channel": "web"}}, 2),
        ({"session": "s2", "where": {"channel": "web"}}, 1),
        ({"source": "tool"}, 1),
        ({"since": MAY + timedelta(days=2)}, 2),
        ({"until": MAY + timedelta(days=1)}, 2),
        ({"session": "unknown"}, 0),
    ],
)
def test_forget_removes_exactly_what_meets_every_condition(store, chat, conditions, count):
    """forget returns how many it removed, and what it removed is in no answer; the rest is as it was."""
    before = {memory.id for memory in chat.history()} | {"expired"}
    assert chat.forget(**conditions) == count
    assert len(chat) == 6 - count
    assert chat.forget(**conditions) == 0
    assert len(before) > 0
    store.verify()


def test_forget_by_id_forgets_one(chat):
    """forget of an id removes that memory; of an unknown or foreign one, nothing."""
    memory_id = chat.history()[0].id
    assert chat.forget(memory_id) == 1
    assert chat.forget(memory_id) == 0
    assert len(chat) == 5
    with pytest.raises(NotFoundError):
        chat.get(memory_id)


@pytest.mark.parametrize(
    "arguments", [{}, {"where": {}}, {"id": None}, {"id": "a", "session": "s1"}, {"session": None}]
)
def test_forget_without_a_condition_is_refused(chat, arguments):
    """Only erase removes everything: forget without a condition, or with an id and one, raises and removes nothing."""
    with pytest.raises(InvalidInputError):
        chat.forget(**arguments)
    assert len(chat) == 6


def test_an_erased_user_is_an_empty_one(store, chat):
    """erase leaves nothing of the user, and the same user begins anew with another key."""
    store.user("bob").remember("bob stays")
    receipt = chat.erase()
    assert (receipt.memories, receipt.files_clean, len(receipt.user)) == (6, True, 32)
    assert (len(chat), list(chat.recall("peanuts")), list(chat.history()), chat.sessions()) == (0, [], [], [])
    assert store.count_users() == 1
    chat.remember("a new beginning", id="n")
    assert (len(chat), len(store.user("bob")), store.count_users()) == (1, 1, 2)
    assert chat.erase().memories == 1
    assert chat.erase().memories == 0
    store.verify()


# --- threads, freshness ---


def test_two_handles_of_one_user_are_one_memory(store, alice):
    """A write through one handle is seen by the next recall through any other."""
    other = store.user("alice")
    assert len(other) == 0
    memory_id = alice.remember("peanuts").id
    assert other.recall("peanuts")[0].id == memory_id
    other.forget(memory_id)
    assert list(alice.recall("peanuts")) == []


def test_another_store_object_sees_every_committed_write(tmp_path, embedder):
    """What one open store commits, another one on the same file recalls at once: adds, updates, forgets, erasures."""
    key = RawKey(bytes(32))
    with (
        MemoryStore.open(tmp_path / "m.db", keys=key, embedder=embedder) as one,
        MemoryStore.open(tmp_path / "m.db", keys=key, embedder=embedder) as two,
    ):
        here, there = one.user("alice"), two.user("alice")
        assert len(there) == 0
        ids = [memory.id for memory in here.remember_many([Turn(text=f"peanut {number}") for number in range(5)])]
        assert len(there) == 5
        here.update(ids[0], text="cashew")
        assert there.get(ids[0]).text == "cashew"
        here.forget(ids[1])
        here.remember("walnut", id="w")
        assert {memory.text for memory in there.history()} == {"cashew", "peanut 2", "peanut 3", "peanut 4", "walnut"}
        here.erase()
        assert len(there) == 0
        here.remember("a new beginning")
        assert [memory.text for memory in there.history()] == ["a new beginning"]
        there.remember("from the other side")
        assert len(here) == 2


def test_threads_share_a_handle(store, alice):
    """Eight threads that remember, recall and forget through one handle lose nothing and see no error."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                memory = alice.remember(f"thread {number} turn {turn}", session=f"t{number}")
                assert any(hit.id == memory.id for hit in alice.recall(memory.text, k=200))
                if turn == 14:
                    alice.forget(memory.id)
        except Exception as error:  # noqa: BLE001  whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(alice) == 8 * 14
    store.verify()


def test_a_memory_shows_its_text_by_its_text_only(alice):
    """repr and str of what goes in and comes out hold no text, and values are frozen."""
    turn = Turn(text="a secret", speaker="Mel")
    memory = alice.remember_many([turn])[0]
    hit = alice.recall("secret")[0]
    for value in (turn, memory, hit, alice.recall("secret"), alice.history(), alice):
        assert "secret" not in f"{value!r} {value}"
    with pytest.raises(Exception, match="frozen"):
        memory.text = "other"
    assert isinstance(hit, Memory)
    assert bool(alice)
