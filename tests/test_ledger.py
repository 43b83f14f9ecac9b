"""`memlayer.ledger`: which memories stand behind which message, once, for every handle of a store."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer import FormatTooNewError, InvalidInputError, MemoryStore, StoreDamagedError, ledger
from memlayer.items import ItemKind
from memlayer.ledger import Entry, Pending
from memlayer.prompt import without_blocks
from memlayer.resident import Resident
from memlayer.testing import HashingEmbedder
from tests.conftest import KEY

AT = datetime(2025, 11, 25, 6, 30, 0, 123456, tzinfo=UTC)
ENTRY = Entry((b"m" * 16, b"n" * 16), b"t" * 16, AT)
QUESTION = "which nuts may I eat?"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def other(tmp_path, store):
    """The file of `store` once more, as another process would open it."""
    with MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=HashingEmbedder()) as opened:
        yield opened


@pytest.fixture
def others(other):
    """Alice by the other handle."""
    return other.user("alice")


@pytest.fixture
def nuts(alice):
    """Alice, who has something to recall."""
    alice.remember("I may not eat peanuts, of all nuts", id="peanuts")
    return alice


def entries(memory):
    """All entries in the store, by the hex of their keys."""
    return {name: Entry.from_json(content) for name, content in memory.items(ItemKind.LEDGER).read().items()}


def said(memory, role="user"):
    return [turn.text for turn in memory.history(limit=1_000) if turn.role == role and turn.id != "peanuts"]


def has_block(prepared, number=0):
    content = prepared.messages[number]["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return any(without_blocks(text) != text for text in texts)


# --- An entry ---


@given(
    st.lists(st.binary(min_size=16, max_size=16), max_size=12),
    st.binary(min_size=16, max_size=16),
    st.datetimes(timezones=st.just(UTC)),
    st.booleans(),
    st.booleans(),
)
def test_an_entry_is_read_as_it_was_written(memory_ids, turn, at, said, done):
    """Every field, to the microsecond, in ASCII JSON without a space."""
    entry = Entry(tuple(memory_ids), turn, at, said=said, done=done)
    content = entry.to_json()
    assert Entry.from_json(content) == entry
    assert content.isascii()
    assert b" " not in content


def test_an_entry_is_written_like_this():
    """To the letter: entries outlive the code."""
    assert replace(ENTRY, said=True).to_json() == (
        b'{"a":1764052200123456,"d":false,"m":["' + b"6d" * 16 + b'","' + b"6e" * 16 + b'"],"s":true,"t":"'
        + b"74" * 16 + b'"}'
    )  # fmt: skip


def changed(**changes):
    return json.dumps({**json.loads(ENTRY.to_json()), **changes}).encode()


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"7", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000,
    changed(a=None), changed(a="1"), changed(a=1.0), changed(a=True), changed(a=2**63), changed(a=-(10**30)),
    changed(d=0), changed(d=None), changed(s="true"), changed(s=1), changed(m=None), changed(m={}),
    changed(m="6d" * 16),
    changed(m=[7]), changed(m=[None]), changed(m=["6d" * 15]), changed(m=["6d" * 17]), changed(m=[""]),
    changed(m=["xy" * 16]), changed(m=["6d" * 16, "6"]), changed(t=None), changed(t=""), changed(t="74" * 15),
    changed(t="74" * 17), changed(t="zz" * 16), changed(t=[]),
    *(json.dumps({key: value for key, value in json.loads(ENTRY.to_json()).items() if key != missing}).encode()
      for missing in "admst"),
], ids=lambda content: str(content[:40]))  # fmt: skip
def test_an_entry_that_nothing_of_ours_wrote_is_damage(content):
    """No JSON, no object, a field that is missing or of another type, an id of another width."""
    with pytest.raises(StoreDamagedError) as caught:
        Entry.from_json(content)
    assert caught.value.__cause__ is None


def test_an_entry_of_a_later_version_says_so():
    """A field that this version does not know is no damage, and not passed over."""
    with pytest.raises(FormatTooNewError):
        Entry.from_json(changed(z=1))


def test_an_entry_holds_no_text(nuts):
    """Ids, times and flags: what is sealed of it names no memory's words and not the question's."""
    nuts.capture(nuts.prepare([user(QUESTION)], session="s1"), "Walnuts.")
    [(name, content)] = nuts.items(ItemKind.LEDGER).read().items()
    assert len(bytes.fromhex(name)) == 32
    assert json.loads(content).keys() == set("admst")
    assert not any(word in content for word in (b"nuts", b"Walnuts", b"s1"))


# --- Entries that nobody has answered yet ---


def test_the_first_of_two_entries_stands():
    """Of those that are made at once for one message of one user."""
    pending = Pending()
    second = replace(ENTRY, turn=b"2" * 16)
    assert pending.add("alice", b"k", ENTRY) is ENTRY
    assert pending.add("alice", b"k", second) is ENTRY
    assert pending.get("alice", b"k") is ENTRY
    assert pending.add("bob", b"k", second) is second
    assert pending.add("alice", b"l", second) is second
    pending.remove("alice", b"k")
    pending.remove("alice", b"k")
    assert pending.get("alice", b"k") is None
    assert pending.get("bob", b"k") is second


def test_entries_that_nobody_answers_are_bounded(monkeypatch):
    """The oldest go, whoever's they are; one that is looked at is not made anew."""
    monkeypatch.setattr(Pending, "_MOST", 4)
    pending = Pending()
    for number in range(7):
        pending.add(f"user {number % 2}", bytes([number]), ENTRY)
        pending.add(f"user {number % 2}", bytes([number]), ENTRY)
    assert [number for number in range(7) if pending.get(f"user {number % 2}", bytes([number]))] == [3, 4, 5, 6]
    assert len(pending._entries) == 4


def test_erasing_a_user_clears_their_own(nuts, store, embedder):
    """Nothing that was under way is left of alice; bob's request stands."""
    bob = store.user("bob")
    bob.remember("I may eat all nuts")
    mine, his = nuts.prepare([user(QUESTION)]), bob.prepare([user(QUESTION)])
    assert len(store._pending._entries) == 2
    nuts.erase()
    assert [name for name, _ in store._pending._entries] == ["bob"]
    assert not has_block(nuts.prepare([user(QUESTION)]))
    asked = embedder.query_calls
    again = bob.prepare([user(QUESTION)])
    assert again.entry == his.entry
    assert again.entry != mine.entry
    assert embedder.query_calls == asked


def test_a_child_of_a_fork_has_a_lock_of_its_own():
    """The parent's may have been held by a thread that the child does not have; the entries are still there."""
    pending = Pending()
    pending.add("alice", b"k", ENTRY)
    pending._lock.acquire()
    pending.forked()
    assert pending.get("alice", b"k") is ENTRY


# --- Entries in the store ---


def test_an_answered_entry_is_in_the_store_and_no_longer_in_ram(nuts, store, others):
    """Written with both sides of the turn; another handle sees it at once."""
    prepared = nuts.prepare([user(QUESTION)], session="s1")
    assert (entries(nuts), len(store._pending._entries)) == ({}, 1)
    nuts.capture(prepared, "Walnuts.")
    expected = {prepared.key.hex(): replace(prepared.entry, said=True, done=True)}
    assert entries(nuts) == entries(others) == expected
    assert len(store._pending._entries) == 0


def test_a_turn_costs_one_commit(nuts, store):
    """The user's words, the reply and the entry are one generation."""

    def generation():
        with store._parts.database.read() as connection:
            return store._parts.vault.unlock(connection, "alice").manifest.generation

    before = generation()
    nuts.capture(nuts.prepare([user(QUESTION)]), "Walnuts.")
    assert generation() == before + 1


def test_entries_survive_the_end_of_the_process(nuts, store, tmp_path, embedder):
    """The same conversation goes on elsewhere with the same blocks, byte for byte, and asks for the new turn only."""
    messages = [user(QUESTION)]
    first = nuts.prepare(messages, session="s1")
    nuts.capture(first, "Walnuts.")
    messages += [assistant("Walnuts."), user("and what about hazelnuts, is there anything against them?")]
    second = nuts.prepare(messages, session="s1")
    store.close()
    with MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=embedder) as again:
        asked = embedder.query_calls
        third = again.user("alice").prepare(messages, session="s1")
        assert third.messages == second.messages
        assert third.messages[0] == first.messages[0]
        assert embedder.query_calls == asked + 1


def test_the_same_words_of_another_conversation_are_another_entry(nuts, embedder):
    """The session counts, and so does all that was said before."""
    for messages, session in (
        ([user(QUESTION)], "s1"),
        ([user(QUESTION)], "s2"),
        ([user(QUESTION)], None),
        ([user("hello there, my friend"), assistant("hello"), user(QUESTION)], "s1"),
    ):
        asked = embedder.query_calls
        nuts.capture(nuts.prepare(messages, session=session), "Walnuts.")
        assert embedder.query_calls == asked + 1
    assert len(entries(nuts)) == 4


def test_of_too_many_entries_the_oldest_go(nuts, others, monkeypatch):
    """Never more than there may be; the newest stand, items of other kinds are left alone, and both handles agree."""
    monkeypatch.setattr(ledger, "MAX_ENTRIES", 8)
    monkeypatch.setattr(ledger, "_DROPPED_AT_ONCE", 3)
    with nuts.items(ItemKind.TOOL_FILE).change() as files:
        files |= {str(number): b"x" for number in range(20)}
    keys: list[str] = []
    for number in range(30):
        memory = nuts if number % 2 else others
        prepared = memory.prepare([user(f"question {number}: {QUESTION}")], session="s1")
        memory.capture(prepared, "Walnuts.")
        keys.append(prepared.key.hex())
        there = entries(memory)
        assert 6 <= len(there) <= 8 or number < 6
        assert list(there) == keys[-len(there) :] or set(there) == set(keys[-len(there) :])
        assert len(memory.items(ItemKind.TOOL_FILE).read()) == 20
    assert entries(nuts) == entries(others)


def test_an_entry_that_is_used_again_is_a_new_one(nuts, monkeypatch):
    """The same question asked once more makes its entry the newest; it is not the next that goes."""
    monkeypatch.setattr(ledger, "MAX_ENTRIES", 4)
    monkeypatch.setattr(ledger, "_DROPPED_AT_ONCE", 1)
    texts = [f"question {number}: {QUESTION}" for number in range(5)]
    keys = []
    for text in [*texts[:4], texts[0], texts[4]]:
        prepared = nuts.prepare([user(text)])
        nuts.capture(prepared, "Walnuts.")
        keys.append(prepared.key.hex())
    assert keys[0] == keys[4]
    assert set(entries(nuts)) == {keys[0], keys[3], keys[5]} | ({keys[2]} if len(entries(nuts)) == 4 else set())


def test_there_are_512(nuts):
    """The limit is as it says: the 513th entry makes room, for itself and some more."""
    assert ledger.MAX_ENTRIES == 512
    with nuts.items(ItemKind.LEDGER).change() as there:
        there |= {os.urandom(32).hex(): ENTRY.to_json() for _ in range(511)}
    nuts.capture(nuts.prepare([user(QUESTION)]), "Walnuts.")
    assert len(entries(nuts)) == 512
    prepared = nuts.prepare([user(f"once more: {QUESTION}")])
    nuts.capture(prepared, "Walnuts.")
    assert prepared.key.hex() in entries(nuts)
    assert 256 < len(entries(nuts)) < 512


# --- What is gone ---


@pytest.mark.parametrize("by", ["alice", "others"])
def test_a_forgotten_memory_leaves_the_replayed_block(by, nuts, others):
    """In both handles at once, whichever of them forgot it; what is left is replayed."""
    nuts.remember("I may eat walnuts, which are nuts", id="walnuts")
    messages = [user(QUESTION)]
    nuts.capture(nuts.prepare(messages, session="s1"), "Walnuts.")
    messages += [assistant("Walnuts."), user("thanks, and is there anything else to know?")]

    def replayed(memory):
        return str(memory.prepare(messages, session="s1").messages[0]["content"])

    assert all("peanuts" in replayed(memory) and "may eat walnuts" in replayed(memory) for memory in (nuts, others))
    (nuts if by == "alice" else others).forget("peanuts")
    assert not any("peanuts" in replayed(memory) for memory in (nuts, others))
    assert all("may eat walnuts" in replayed(memory) for memory in (nuts, others))
    others.forget("walnuts")
    assert not has_block(nuts.prepare(messages, session="s1"))


def test_a_memory_that_expired_leaves_the_replayed_block(alice, others, monkeypatch):
    """As it leaves recall: what was put behind an earlier message is not shown for longer than it lives."""
    soon = datetime.now(UTC) + timedelta(days=1)
    alice.remember("I may not eat peanuts, of all nuts", expires=soon, id="peanuts")
    messages = [user(QUESTION)]
    alice.capture(alice.prepare(messages, session="s1"), "Walnuts.")
    messages += [assistant("Walnuts."), user("thanks, and is there anything else to know?")]
    assert has_block(alice.prepare(messages, session="s1"))

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return soon

    monkeypatch.setattr(ledger, "datetime", Later)
    for memory in (alice, others):
        assert not has_block(memory.prepare(messages, session="s1"))


def test_a_memory_that_was_changed_is_replayed_as_it_is_now(nuts, others):
    """An entry holds ids: another text is another block, in both handles."""
    messages = [user(QUESTION)]
    nuts.capture(nuts.prepare(messages), "Walnuts.")
    messages += [assistant("Walnuts."), user("thanks, and is there anything else to know?")]
    others.update("peanuts", text="I may eat peanuts again, says the doctor")
    for memory in (nuts, others):
        assert "says the doctor" in str(memory.prepare(messages).messages[0])


def test_an_erased_users_entries_are_gone(nuts, others, store):
    """No entry of the conversation is left, in the store or in RAM, and none is replayed."""
    messages = [user(QUESTION)]
    nuts.capture(nuts.prepare(messages), "Walnuts.")
    messages += [assistant("Walnuts."), user("thanks, and is there anything else to know?")]
    assert has_block(others.prepare(messages))
    nuts.erase()
    assert entries(nuts) == entries(others) == {}
    nuts.remember("I may not eat peanuts, of all nuts")
    assert not has_block(nuts.prepare(messages), 0)


# --- Once ---


@pytest.mark.parametrize("handles", ["one", "two"])
def test_a_turn_is_remembered_once_over_two_captures(handles, nuts, others):
    """`capture(None)` for a tool call and `capture(reply)` at the end: one turn, one reply, in that order."""
    messages = [user(QUESTION)]
    first = nuts.prepare(messages, session="s1")
    remembered = nuts.capture(first, None)
    assert [turn.text for turn in remembered] == [QUESTION]
    later = nuts if handles == "one" else others
    second = later.prepare([*messages, assistant(""), {"role": "tool", "content": "walnuts"}], session="s1")
    assert [turn.text for turn in later.capture(second, "Walnuts.")] == ["Walnuts."]
    for memory in (nuts, others):
        assert (said(memory), said(memory, "assistant")) == ([QUESTION], ["Walnuts."])


@pytest.mark.parametrize("again", [None, "Walnuts."])
def test_two_handles_that_are_asked_at_once_remember_one_turn(again, nuts, others):
    """Both prepared before either captured; whoever comes second finds that it was said."""
    first, second = nuts.prepare([user(QUESTION)]), others.prepare([user(QUESTION)])
    assert first.entry.turn != second.entry.turn
    nuts.capture(first, None)
    others.capture(second, again)
    assert said(nuts) == said(others) == [QUESTION]
    assert len(entries(nuts)) == 1


def test_a_turn_that_was_prepared_twice_is_remembered_once(nuts):
    """A retry, each of which is captured."""
    prepared = [nuts.prepare([user(QUESTION)]) for _ in range(2)]
    nuts.capture(prepared[0], "Walnuts.")
    nuts.capture(prepared[1], "Walnuts, as I said.")
    assert said(nuts) == [QUESTION]


@pytest.mark.parametrize("handles", ["one", "two"])
@pytest.mark.parametrize("prepared_anew", [False, True])
@pytest.mark.parametrize("reply", [None, "Walnuts."])
def test_a_turn_that_was_forgotten_is_not_brought_back(handles, prepared_anew, reply, nuts, others):
    """Between two captures of one turn the user forgets it: the second one remembers the reply alone."""
    messages = [user(QUESTION)]
    prepared = nuts.prepare(messages, session="s1")
    [turn] = nuts.capture(prepared, None)
    later = nuts if handles == "one" else others
    assert later.forget(turn.id) == 1
    if prepared_anew:
        prepared = later.prepare([*messages, {"role": "tool", "content": "walnuts"}], session="s1")
    later.capture(prepared, reply)
    assert (said(nuts), said(nuts, "assistant")) == ([], [] if reply is None else [reply])


@pytest.mark.parametrize("late", [None, "Walnuts, again."])
def test_a_retry_that_comes_in_after_the_answer_brings_nothing_back(late, nuts):
    """Of two requests for one turn one was answered, and the turn was forgotten: the other's answer is only that."""
    first, second = nuts.prepare([user(QUESTION)]), nuts.prepare([user(QUESTION)])
    turn, _ = nuts.capture(first, "Walnuts.")
    nuts.forget(turn.id)
    nuts.capture(second, late)
    assert said(nuts) == []


@pytest.fixture
def meanwhile(embedder, monkeypatch):
    """Has something happen between the moment at which a capture looks what there is, and its transaction."""

    def arrange(happen):
        embed = embedder.embed_documents

        def embed_later(texts):
            monkeypatch.undo()
            happen()
            return embed(texts)

        monkeypatch.setattr(embedder, "embed_documents", embed_later)

    return arrange


def test_a_late_capture_without_a_reply_does_not_reopen_an_answered_turn(nuts, embedder, meanwhile):
    """Two threads capture one turn, with and without its reply, and the one without writes last: it stays answered."""
    prepared = nuts.prepare([user(QUESTION)])
    meanwhile(lambda: nuts.capture(prepared, "Walnuts."))
    nuts.capture(prepared, None)
    assert said(nuts) == [QUESTION]
    [entry] = entries(nuts).values()
    assert entry.done
    asked = embedder.query_calls
    nuts.prepare([user(QUESTION)])
    assert embedder.query_calls == asked + 1


def test_two_processes_that_capture_one_turn_at_once_remember_it_once(nuts, others, meanwhile):
    """Also where neither knew of the other's when it looked; each reply is remembered."""
    first, second = nuts.prepare([user(QUESTION)]), others.prepare([user(QUESTION)])
    assert first.entry.turn != second.entry.turn
    meanwhile(lambda: others.capture(second, None))
    nuts.capture(first, "Walnuts.")
    assert (said(nuts), said(nuts, "assistant")) == ([QUESTION], ["Walnuts."])


@pytest.mark.parametrize("when", ["before", "during"])
def test_an_answer_that_was_under_way_while_the_user_was_erased_is_not_remembered(when, nuts, others, meanwhile):
    """By this process or another: what was said before the erasure does not begin a new user."""
    prepared = nuts.prepare([user("Please forget me")])
    if when == "before":
        others.erase()
    else:
        meanwhile(others.erase)
    assert nuts.capture(prepared, "Done.") == []
    assert nuts.count() == 0
    nuts.capture(nuts.prepare([user("Hello")]), "Hi.")
    assert said(nuts) == ["Hello"]


def test_a_reply_that_broke_off_does_not_answer_its_turn(nuts):
    """The same request sent again is the same turn, and its whole reply is remembered too."""
    broken = nuts.prepare([user(QUESTION)])
    nuts.capture(broken, "Wal", complete=False)
    again = nuts.prepare([user(QUESTION)])
    nuts.capture(again, "Walnuts.")
    assert (said(nuts), said(nuts, "assistant")) == ([QUESTION], ["Wal", "Walnuts."])


def test_what_was_answered_and_is_asked_again_is_a_new_turn(nuts, others, embedder):
    """The same single message later: a new recall, a new turn, by whichever handle; the entry stays one."""
    for number, memory in enumerate((nuts, nuts, others, nuts), start=1):
        prepared = memory.prepare([user(QUESTION)], session="daily")
        assert has_block(prepared)
        assert len(prepared.hits) > 0  # recalled, not replayed
        memory.capture(prepared, f"Walnuts, number {number}.")
        assert len(said(memory)) == number
    assert len({turn.id for turn in nuts.history(session="daily")}) == 8
    assert len(entries(nuts)) == 1


def test_many_threads_capture_one_turn(nuts, others):
    """Eight retries that are answered at once, over two handles: the user's words are there once, and each reply."""
    prepared = [nuts.prepare([user(QUESTION)]) for _ in range(8)]
    ready = threading.Barrier(8)

    def capture(number):
        ready.wait()
        (nuts if number % 2 else others).capture(prepared[number], f"Walnuts {number}.")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(capture, range(8)))
    assert said(nuts) == [QUESTION]
    assert sorted(said(nuts, "assistant")) == [f"Walnuts {number}." for number in range(8)]
    assert len(entries(others)) == 1


# --- Whose ---


def test_what_was_prepared_for_alice_is_not_captured_by_bob(nuts, store, other):
    """Refused by either handle, with nothing written for either of them; alice's own capture still works."""
    prepared = nuts.prepare([user(QUESTION)])
    for handle in (store, other):
        with pytest.raises(InvalidInputError):
            handle.user("bob").capture(prepared, "Walnuts.")
        assert handle.count_users() == 1
    assert (said(nuts), entries(nuts)) == ([], {})
    nuts.capture(prepared, "Walnuts.")
    assert said(nuts) == [QUESTION]


def test_two_users_with_the_same_conversation_share_nothing(nuts, store, embedder):
    """The same session and words: each has an entry, a recall and a block of their own."""
    bob = store.user("bob")
    bob.remember("I love all nuts, says bob")
    for memory, own, foreign in ((nuts, "peanuts", "bob"), (bob, "says bob", "peanuts")):
        asked = embedder.query_calls
        prepared = memory.prepare([user(QUESTION)], session="s1")
        assert embedder.query_calls == asked + 1
        assert own in prepared.block
        assert foreign not in prepared.block
        memory.capture(prepared, "Walnuts.")
    assert entries(nuts).keys() == entries(bob).keys()
    assert {entry.turn for entry in entries(nuts).values()}.isdisjoint(entry.turn for entry in entries(bob).values())
    with store._parts.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(DISTINCT item_id) FROM items").scalar() == 2


# --- Under pressure ---


def test_an_eviction_in_the_middle_of_a_capture(tmp_path, monkeypatch):
    """Another user's call evicts this one between the two looks of a write: the entry is still found and replaced."""
    with MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=HashingEmbedder(), cache_bytes=1) as store:
        alice = store.user("alice")
        alice.remember("I may not eat peanuts, of all nuts", id="peanuts")
        store.user("bob").remember("hello")
        prepared = alice.prepare([user(QUESTION)])
        alice.capture(prepared, None)
        original = Resident.writing

        def writing(self, write):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(store.user("bob")._residents.get, "bob").result()
            return original(self, write)

        monkeypatch.setattr(Resident, "writing", writing)
        alice.capture(prepared, "Walnuts.")
        assert said(alice) == [QUESTION]
        assert len(entries(alice)) == 1
