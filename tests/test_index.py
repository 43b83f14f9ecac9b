"""`memlayer.index`: one user's memories in RAM, with either engine."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer import vectors
from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.filters import Condition
from memlayer.index import Entry, UserIndex
from memlayer.records import Memory, Session
from memlayer.searching import MAX_PARTS
from memlayer.vectors import SMALL_USER, EngineName, FlatEngine, SqliteVecEngine, unit

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ALL = Condition()
DIMENSIONS = 4
ENGINES: list[EngineName] = ["sqlite-vec", "flat"]


def key_of(n):
    return n.to_bytes(16, "big")


def direction(degrees):
    """A unit vector whose cosine with `direction(0)` is that of the angle."""
    return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0, 0.0]], dtype=np.float32)


QUERY = direction(0)[0]


def entry(n, *vectors, **fields):
    """The n-th memory, said n seconds after noon, with these vectors; by default one at a right angle to the query."""
    values: dict[str, Any] = {
        "id": f"m{n}",
        "text": f"text {n}",
        "role": "user",
        "speaker": None,
        "session": None,
        "at": NOON + timedelta(seconds=n),
        "metadata": {},
        "source": "user",
        "expires": None,
        "written": NOON,
    }
    parts = np.concatenate(vectors) if vectors else direction(90)
    return Entry(key=key_of(n), seq=n, stamp=bytes([n % 256]) * 32, memory=Memory(**values | fields), vectors=parts)


@pytest.fixture(params=ENGINES)
def index(request):
    made = UserIndex(dimensions=DIMENSIONS, engine=request.param)
    yield made
    made.close()


def ids(found):
    return [hit.id for hit in found]


def everything(index, **condition):
    return ids(index.search(QUERY, k=1_000, condition=Condition(**condition), floor=0.0))


# --- Rows ---


@given(
    text=st.text(min_size=1).filter(str.strip),
    names=st.lists(st.none() | st.text(min_size=1, max_size=20), min_size=2, max_size=2),
    times=st.lists(st.datetimes(timezones=st.just(UTC)), min_size=3, max_size=3),
    metadata=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=3,
    ),
    role=st.sampled_from(["user", "assistant", "system", "tool"]),
    source=st.sampled_from(["user", "assistant", "tool", "document", "import"]),
)
def test_a_memory_comes_back_exactly(text, names, times, metadata, role, source):
    """Every field comes back equal and of the same type: texts with NUL and emoji, times to the microsecond, JSON."""
    at, expires, written = times
    memory = Memory(
        id="an id\0",
        text=text,
        role=role,
        speaker=names[0],
        session=names[1],
        at=at,
        metadata=metadata,
        source=source,
        expires=expires,
        written=written,
    )
    index = UserIndex(dimensions=DIMENSIONS)
    index.apply([Entry(key=key_of(1), seq=1, stamp=bytes(32), memory=memory, vectors=direction(0))], removed=())
    got = index.get(key_of(1))
    assert got == memory
    assert type(got) is Memory
    assert json.dumps(got.metadata) == json.dumps(metadata)
    assert got.at.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["a\0b", "\0\0", "👩‍👩‍👧", "\ufeffbom", "line\r\nline", " x ", "\U0010ffff", "ab" * 131_072]
)
def test_hard_texts_come_back_exactly(index, text):
    """Nothing ends, trims or folds a text, as a text, in metadata, or as the name of a session or speaker."""
    short = text[:100]
    index.apply(
        [entry(1, text=text, session=short, speaker=short, metadata={short: short})],
        removed=(),
    )
    memory = index.get(key_of(1))
    assert (memory.text, memory.session, memory.speaker, memory.metadata) == (text, short, short, {short: short})
    assert everything(index, session=short, where={short: short}) == ["m1"]


def test_what_is_given_back_is_the_callers_own(index):
    """Changing the metadata of a memory that was read changes nothing in the index."""
    index.apply([entry(1, metadata={"a": [1]})], removed=())
    index.get(key_of(1)).metadata["a"].append(2)
    assert index.get(key_of(1)).metadata == {"a": [1]}


def test_keys_stamps_and_length_tell_what_is_here(index):
    """The owner sees which memories are here, and in which state."""
    index.apply([entry(1), entry(2)], removed=())
    assert index.keys() == {key_of(1), key_of(2)}
    assert index.stamps([key_of(2), key_of(3)]) == {key_of(2): bytes([2]) * 32}
    assert index.stamps([]) == {}
    assert len(index) == 2
    assert index.get(key_of(3)) is None


def test_an_entry_replaces_the_one_with_its_key(index):
    """After an update the old text, fields, parts and vectors are gone."""
    index.apply([entry(1, direction(0), direction(10), metadata={"old": 1}, text="old"), entry(2)], removed=())
    index.apply([entry(1, direction(80), metadata={"new": 1}, text="new")], removed=())
    first, _ = index.search(QUERY, k=5, condition=ALL, floor=0.0)
    assert (first.text, first.score) == ("new", pytest.approx(np.cos(np.radians(80)), abs=1e-6))
    assert everything(index, where={"old": {"$exists": True}}) == []
    assert everything(index, where={"new": 1}) == ["m1"]
    assert len(index) == 2


def test_of_two_entries_with_one_key_the_last_stands(index):
    """A batch may hold a memory and its update."""
    index.apply([entry(1, text="first"), entry(1, text="second")], removed=())
    assert index.get(key_of(1)).text == "second"
    assert len(index) == 1


def test_two_memories_may_change_places(index):
    """An update may move memories in the order of writing, as long as no two share a place at the end."""
    index.apply([entry(1), entry(2)], removed=())
    one, two = entry(1), entry(2)
    index.apply(
        [
            Entry(key=one.key, seq=2, stamp=one.stamp, memory=one.memory, vectors=one.vectors),
            Entry(key=two.key, seq=1, stamp=two.stamp, memory=two.memory, vectors=two.vectors),
        ],
        removed=(),
    )
    assert index.matching(ALL) == [key_of(2), key_of(1)]


def test_a_removed_memory_is_found_nowhere(index):
    """A removed memory is gone from searches, filters, history and sessions; an unknown key is passed over."""
    index.apply([entry(n, direction(n), session="s", metadata={"n": n}) for n in range(5)], removed=())
    index.apply([], removed=[key_of(0), key_of(3), key_of(99)])
    assert everything(index) == ["m1", "m2", "m4"]
    assert everything(index, where={"n": {"$exists": True}}) == ["m1", "m2", "m4"]
    assert index.get(key_of(3)) is None
    assert [memory.id for memory in index.history(session="s", limit=9, before=None, alive_at=None)] == [
        "m1",
        "m2",
        "m4",
    ]
    assert index.sessions(None)[0].count == 3
    assert index.keys() == {key_of(1), key_of(2), key_of(4)}


def test_removal_comes_before_addition(index):
    """A key that is both removed and given again is there afterwards."""
    index.apply([entry(1, text="old")], removed=())
    index.apply([entry(1, text="new")], removed=[key_of(1)])
    assert index.get(key_of(1)).text == "new"


@pytest.mark.parametrize(
    "vectors",
    [np.zeros(DIMENSIONS, np.float32), np.zeros((1, 3), np.float32), np.full((1, DIMENSIONS), np.nan, np.float32)],
)
def test_vectors_of_another_kind_are_refused(index, vectors):
    """Another shape, or a number that is not finite, raises, and no row of the batch is left."""
    index.apply([entry(1)], removed=())
    bad = entry(3)
    with pytest.raises(InvalidInputError):
        index.apply(
            [entry(2), Entry(key=bad.key, seq=3, stamp=bad.stamp, memory=bad.memory, vectors=vectors)], removed=()
        )
    assert index.keys() == {key_of(1)}


def test_one_place_in_the_order_belongs_to_one_memory(index):
    """Two memories with one `seq` are an error of the owner and refused."""
    index.apply([entry(1)], removed=())
    other = entry(2)
    with pytest.raises(InvalidInputError):
        index.apply(
            [Entry(key=other.key, seq=1, stamp=other.stamp, memory=other.memory, vectors=other.vectors)], removed=()
        )


def test_a_memory_has_a_limit_of_parts(index):
    """The ids of one memory's vectors cannot run into the next one's."""
    index.apply([entry(1, *[direction(90)] * MAX_PARTS), entry(2, direction(0))], removed=())
    assert everything(index) == ["m2", "m1"]
    with pytest.raises(LimitExceededError):
        index.apply([entry(3, *[direction(90)] * (MAX_PARTS + 1))], removed=())


# --- Search ---


def test_the_best_comes_first_with_its_cosine(index):
    """A score is the cosine of query and memory, whatever the query's length."""
    index.apply([entry(n, direction(10 * n)) for n in (5, 1, 3)], removed=())
    found = index.search(QUERY * 7, k=2, condition=ALL, floor=0.0)
    assert ids(found) == ["m1", "m3"]
    assert [hit.score for hit in found] == pytest.approx(np.cos(np.radians([10, 30])).tolist(), abs=1e-6)
    assert all(type(hit.score) is float for hit in found)


def test_a_turn_is_as_near_as_its_best_part(index):
    """A long text counts once, by its best part."""
    index.apply([entry(1, direction(70), direction(20), direction(50)), entry(2, direction(30))], removed=())
    found = index.search(QUERY, k=5, condition=ALL, floor=0.0)
    assert ids(found) == ["m1", "m2"]
    assert found[0].score == pytest.approx(np.cos(np.radians(20)), abs=1e-6)


def test_parts_do_not_crowd_out_other_turns(index):
    """However many parts of one turn are nearest, the next turns still come."""
    index.apply([entry(1, *[direction(n / 100) for n in range(200)])], removed=())
    index.apply([entry(n, direction(10 + n)) for n in range(2, 6)], removed=())
    assert ids(index.search(QUERY, k=3, condition=ALL, floor=0.0)) == ["m1", "m2", "m3"]
    assert everything(index) == ["m1", "m2", "m3", "m4", "m5"]


def test_equal_turns_come_in_the_order_of_writing(index):
    """Equal scores come in the order of writing, also after an update gave the first a new vector."""
    index.apply([entry(n, direction(20)) for n in (4, 2, 9, 1)], removed=())
    index.apply([entry(1, direction(20), text="updated")], removed=())
    assert everything(index) == ["m1", "m2", "m4", "m9"]
    assert ids(index.search(QUERY, k=1, condition=ALL, floor=0.0)) == ["m1"]


def test_the_floor_cuts_and_0_keeps_everything(index):
    """A floor leaves out what is weaker; floor 0 keeps even what points away, at score 0 and in order."""
    index.apply([entry(n, direction(45 * n)) for n in range(4)], removed=())
    assert ids(index.search(QUERY, k=9, condition=ALL, floor=0.5)) == ["m0", "m1"]
    found = index.search(QUERY, k=9, condition=ALL, floor=0.0)
    assert ids(found) == ["m0", "m1", "m2", "m3"]
    assert found[3].score == 0.0


def test_a_floor_ends_the_search_through_parts(index):
    """With few turns over the floor and many parts below it, the few are the answer."""
    index.apply([entry(1, direction(0)), entry(2, *[direction(89)] * 100), entry(3, direction(10))], removed=())
    assert ids(index.search(QUERY, k=50, condition=ALL, floor=0.9)) == ["m1", "m3"]


def test_a_memory_without_vectors_is_found_by_all_but_search(index):
    """A memory that has no vector yet has its place in history and filters."""
    index.apply([entry(1, np.zeros((0, DIMENSIONS), np.float32), metadata={"a": 1}), entry(2)], removed=())
    assert everything(index) == ["m2"]
    assert index.matching(Condition(where={"a": 1})) == [key_of(1)]
    index.apply([entry(1, direction(0))], removed=())
    assert everything(index) == ["m1", "m2"]


def test_an_empty_index_finds_nothing(index):
    """Every question to an empty index has an empty answer."""
    assert everything(index) == []
    assert everything(index, where={"a": 1}) == []
    assert list(index.history(session=None, limit=5, before=None, alive_at=NOON)) == []
    assert index.sessions(NOON) == []
    assert index.matching(ALL) == []
    assert (index.count(ALL), len(index), index.keys()) == (0, 0, set())
    index.apply([], removed=[])
    assert len(index) == 0


@pytest.mark.parametrize("vector", [np.ones(3), np.ones((1, DIMENSIONS)), np.full(DIMENSIONS, np.inf)])
def test_a_query_of_another_shape_is_refused(index, vector):
    """The query is one vector of the index's dimensions."""
    with pytest.raises(InvalidInputError):
        index.search(vector, k=1, condition=ALL, floor=0.0)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None])
def test_k_is_a_positive_number(index, k):
    """`k` and `limit` are positive ints."""
    with pytest.raises(InvalidInputError):
        index.search(QUERY, k=k, condition=ALL, floor=0.0)
    with pytest.raises(InvalidInputError):
        index.history(session=None, limit=k, before=None, alive_at=None)


def test_a_huge_k_is_everything(index):
    """A number beyond what is there, or what SQLite counts to, asks for all of it."""
    index.apply([entry(1), entry(2)], removed=())
    assert len(index.search(QUERY, k=2**70, condition=ALL, floor=0.0)) == 2
    assert len(index.history(session=None, limit=2**70, before=None, alive_at=None)) == 2


# --- Conditions ---


def test_a_condition_is_applied_before_the_nearest_are_taken(index):
    """What a condition leaves out takes no place among the k."""
    index.apply([entry(n, direction(n), metadata={"far": n >= 80}) for n in range(90)], removed=())
    found = index.search(QUERY, k=5, condition=Condition(where={"far": True}), floor=0.0)
    assert ids(found) == ["m80", "m81", "m82", "m83", "m84"]


def test_each_part_of_a_condition_restricts(index):
    """Session, time, source, expiry and metadata each leave out what they should, and together all of it."""
    index.apply(
        [
            entry(0, session="a", source="tool", metadata={"n": 1}),
            entry(1, session="b", source="user", metadata={"n": 2}),
            entry(2, session="a", source="user", metadata={"n": 2}, expires=NOON + timedelta(seconds=10)),
            entry(3, source="import"),
        ],
        removed=(),
    )

    def at(seconds):
        return NOON + timedelta(seconds=seconds)

    assert everything(index, session="a") == ["m0", "m2"]
    assert everything(index, session="A") == []
    assert everything(index, since=at(1), until=at(3)) == ["m1", "m2"]
    assert everything(index, since=at(3), until=at(1)) == []
    assert everything(index, sources={"tool", "import"}) == ["m0", "m3"]
    assert everything(index, sources=()) == []
    assert everything(index, alive_at=at(9)) == ["m0", "m1", "m2", "m3"]
    assert everything(index, alive_at=at(10)) == ["m0", "m1", "m3"]
    assert everything(index, where={"n": 2}, session="a", alive_at=at(9)) == ["m2"]
    assert everything(index, where={"n": 2}, session="a", alive_at=at(10)) == []


def test_matching_and_count_are_what_search_finds(index):
    """The keys that match, their number and an unlimited search are the same memories."""
    index.apply([entry(n, direction(n), direction(n + 1), metadata={"n": n % 3}) for n in range(30)], removed=())
    condition = Condition(where={"n": {"$gte": 1}}, since=NOON + timedelta(seconds=5))
    keys = index.matching(condition)
    assert keys == [key_of(n) for n in range(5, 30) if n % 3]
    assert index.count(condition) == len(keys)
    assert {f"m{int.from_bytes(key, 'big')}" for key in keys} == set(
        everything(index, where=condition.where, since=condition.since)
    )


@given(data=st.data())
def test_both_engines_recall_the_same(data):
    """After any adds, updates and removals, both engines recall the same memories with the same scores."""
    pair = [UserIndex(dimensions=DIMENSIONS, engine=name) for name in ENGINES]
    angles = st.lists(st.integers(0, 12), max_size=4)
    for _ in range(data.draw(st.integers(1, 4))):
        batch = data.draw(st.dictionaries(st.integers(0, 25), angles, max_size=12))
        entries = [
            entry(n, np.zeros((0, DIMENSIONS), np.float32), *[direction(15 * a) for a in parts], metadata={"n": n % 3})
            for n, parts in batch.items()
        ]
        removed = [key_of(n) for n in data.draw(st.sets(st.integers(0, 25), max_size=5))]
        for index in pair:
            index.apply(entries, removed=removed)
        k, floor = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([0.0, 0.3, 0.999]))
        condition = data.draw(st.sampled_from([ALL, Condition(where={"n": 1}), Condition(where={"n": {"$ne": 1}})]))
        small, flat = (index.search(QUERY, k=k, condition=condition, floor=floor) for index in pair)
        assert small == flat
        assert len(set(ids(flat))) == len(flat)
        unlimited = pair[1].search(QUERY, k=1_000, condition=condition, floor=floor)
        assert flat == unlimited[:k]
    for index in pair:
        index.close()


# --- History and sessions ---


def pages_of(index, **request):
    """All pages of a history, the newest first."""
    pages, before = [], None
    while True:
        page = index.history(before=before, **request)
        pages.append([memory.id for memory in page])
        if page.cursor is None:
            return pages
        before = page.cursor


def test_history_is_the_last_turns_oldest_first(index):
    """The pages of a history are its turns in the order they were said, without a gap or a repeat."""
    index.apply([entry(n) for n in (3, 1, 0, 4, 2)], removed=())
    assert pages_of(index, session=None, limit=2, alive_at=None) == [["m3", "m4"], ["m1", "m2"], ["m0"]]
    assert pages_of(index, session=None, limit=5, alive_at=None) == [["m0", "m1", "m2", "m3", "m4"]]


def test_turns_of_one_moment_are_in_the_order_of_writing(index):
    """Turns with the same time keep their order over the pages."""
    index.apply([entry(n, at=NOON) for n in range(7)], removed=())
    assert pages_of(index, session=None, limit=3, alive_at=None) == [["m4", "m5", "m6"], ["m1", "m2", "m3"], ["m0"]]


def test_history_is_of_one_session_and_of_what_lives(index):
    """A session's history holds its own turns that have not expired."""
    index.apply([entry(n, session="ab"[n % 2], expires=NOON if n == 4 else None) for n in range(6)], removed=())
    assert pages_of(index, session="a", limit=9, alive_at=NOON) == [["m0", "m2"]]
    assert pages_of(index, session="a", limit=9, alive_at=None) == [["m0", "m2", "m4"]]
    assert pages_of(index, session="c", limit=9, alive_at=None) == [[]]


def test_history_reaches_back_before_1970(index):
    """Times before 1970 are times."""
    index.apply([entry(1, at=datetime(1, 1, 1, tzinfo=UTC)), entry(2, at=datetime(1969, 1, 1, tzinfo=UTC))], removed=())
    assert pages_of(index, session=None, limit=1, alive_at=None) == [["m2"], ["m1"]]


def test_a_cursor_outlives_its_turn(index):
    """The turns before one that was forgotten meanwhile are still found."""
    index.apply([entry(n) for n in range(4)], removed=())
    cursor = index.history(session=None, limit=2, before=None, alive_at=None).cursor
    index.apply([], removed=[key_of(2)])
    assert [m.id for m in index.history(session=None, limit=2, before=cursor, alive_at=None)] == ["m0", "m1"]


@pytest.mark.parametrize("before", ["", "m1", "0" * 31, "0" * 34, "é" * 32, 5, b"0" * 32, "' OR 1 --"])
def test_what_is_no_cursor_is_refused(index, before):
    """Anything but a cursor is an error, not an empty page."""
    with pytest.raises(InvalidInputError):
        index.history(session=None, limit=2, before=before, alive_at=None)


def test_sessions_are_in_the_order_of_their_last_turn(index):
    """Sessions come with their times and number of turns, the latest first; turns of none are none."""
    sessions = ["a", "b", None, "a", "c"]
    index.apply(
        [entry(n, session=name, expires=NOON if n == 4 else None) for n, name in enumerate(sessions)], removed=()
    )

    def at(seconds):
        return NOON + timedelta(seconds=seconds)

    old = [Session(id="a", first=at(0), last=at(3), count=2), Session(id="b", first=at(1), last=at(1), count=1)]
    assert index.sessions(None) == [Session(id="c", first=at(4), last=at(4), count=1), *old]
    assert index.sessions(NOON) == old


# --- Engines, memory, files ---


def test_the_engine_changes_when_a_user_grows():
    """Up to 500 vectors are in sqlite-vec, more in the flat engine, and it stays; the answers are the same."""
    pytest.importorskip("sqlite_vec")
    index = UserIndex(dimensions=DIMENSIONS)
    index.apply([entry(n, direction(n / 10)) for n in range(SMALL_USER)], removed=())
    assert isinstance(index._engine, SqliteVecEngine)
    before = everything(index)
    index.apply([entry(SMALL_USER, direction(89))], removed=())
    assert isinstance(index._engine, FlatEngine)
    assert everything(index) == [*before, f"m{SMALL_USER}"]
    index.apply([], removed=[key_of(n) for n in range(10, SMALL_USER + 1)])
    assert isinstance(index._engine, FlatEngine)
    assert everything(index) == before[:10]


@pytest.mark.parametrize(("name", "kind"), [("sqlite-vec", SqliteVecEngine), ("flat", FlatEngine)])
def test_a_named_engine_stays(name, kind):
    """An engine that was asked for is used at every size."""
    pytest.importorskip("sqlite_vec")
    index = UserIndex(dimensions=DIMENSIONS, engine=name)
    index.apply([entry(n) for n in range(SMALL_USER + 1)], removed=())
    assert isinstance(index._engine, kind)


def test_a_user_grows_without_sqlite_vec(monkeypatch):
    """Where sqlite-vec is not to be had the flat engine serves from the first memory on."""
    monkeypatch.setattr(vectors, "sqlite_vec", None)
    index = UserIndex(dimensions=DIMENSIONS)
    index.apply([entry(n, direction(n / 10)) for n in range(SMALL_USER)], removed=())
    index.apply([entry(SMALL_USER, direction(89))], removed=())
    assert everything(index) == [f"m{n}" for n in range(SMALL_USER + 1)]


def test_a_large_user_is_built_at_once():
    """A first batch over the limit goes to the flat engine without passing through the other."""
    index = UserIndex(dimensions=DIMENSIONS)
    index.apply([entry(n, direction(n % 90)) for n in range(2_000)], removed=())
    assert isinstance(index._engine, FlatEngine)
    assert len(index) == 2_000


def test_nbytes_counts_rows_and_vectors(index):
    """What the owner's memory budget is told grows with texts and with vectors."""
    empty = index.nbytes
    index.apply([entry(n, text="x" * 1_000) for n in range(200)], removed=())
    rows = index.nbytes
    index.apply([entry(1_000, *[direction(5)] * 4_000)], removed=())
    assert rows - empty > 200_000
    assert index.nbytes - rows > 4_000 * DIMENSIONS * 4


def test_a_closed_index_may_be_closed_again(index):
    """Closing twice is no error."""
    index.close()
    index.close()


class Recorder(apsw.VFS):
    """SQLite's own files, with a list of what was opened."""

    def __init__(self):
        self.opened = []
        super().__init__("memlayer-recorder", "", makedefault=True)

    def xOpen(self, name, flags):
        self.opened.append(name)
        return super().xOpen(name, flags)


def test_nothing_is_ever_in_a_file():
    """Building, searching and sorting far more than SQLite's cache opens no file; the same sort elsewhere does."""
    recorder = Recorder()
    try:
        index = UserIndex(dimensions=DIMENSIONS)
        index.apply(
            [entry(n, text=f"{n * 7919 % 1000} " + "x" * 8_000, session=f"{n}") for n in range(2_000)], removed=()
        )
        everything(index, where={"$not": {"a": 1}})
        index.sessions(NOON)
        large_sort = "SELECT text FROM turns ORDER BY text"
        index._db.execute(large_sort).fetchall()
        assert recorder.opened == []
        index._db.execute("PRAGMA temp_store = FILE")
        index._db.execute(large_sort).fetchall()
        assert len(recorder.opened) > 0
        index.close()
    finally:
        recorder.unregister()


def test_vectors_need_not_be_at_length_1(index):
    """Vectors of any length, as a lossy storage gives them back, are compared by direction."""
    index.apply([entry(1, direction(60) * 1.01), entry(2, direction(10) * 0.5), entry(3, direction(0) * 0)], removed=())
    found = index.search(QUERY, k=3, condition=ALL, floor=0.0)
    assert ids(found) == ["m2", "m1", "m3"]
    assert [hit.score for hit in found] == pytest.approx([np.cos(np.radians(10)), 0.5, 0.0], abs=1e-6)
    assert np.array_equal(unit(direction(10)), direction(10))
