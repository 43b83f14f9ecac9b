"""`memlayer.vectors`: both engines find the nearest vectors, and the same ones in the same order."""

from __future__ import annotations

import importlib.util
import math
import sys

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer import vectors
from memlayer.errors import InvalidInputError
from memlayer.vectors import FlatEngine, SqliteVecEngine, small_engine, unit

NOTHING = np.empty(0, dtype=np.int64)


def sqlite_vec_engine(dimensions):
    engine = small_engine(apsw.Connection(":memory:"), dimensions)
    if not isinstance(engine, SqliteVecEngine):
        pytest.skip("sqlite-vec has no build for this platform")
    return engine


@pytest.fixture(params=[sqlite_vec_engine, FlatEngine], ids=["sqlite-vec", "flat"])
def make(request):
    """Makes an empty engine of either kind for vectors of so many dimensions."""
    return request.param


def ids_of(*ids):
    return np.array(ids, dtype=np.int64)


def random_units(count, dimensions, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, dimensions)))


def brute_force(query, held, k, candidates):
    """The k nearest by exact sums, as (id, cosine): a reference that shares no arithmetic with the engines."""
    cosines = {
        id_: math.fsum(float(a) * float(b) for a, b in zip(vector, query, strict=True))
        for id_, vector in held.items()
        if candidates is None or id_ in candidates
    }
    return sorted(cosines.items(), key=lambda item: (-item[1], item[0]))[:k]


# --- Each engine ---


def test_the_nearest_come_first(make):
    """Cosines are those of numpy, nearest first."""
    engine, held = make(384), random_units(200, 384)
    engine.add(np.arange(200) * 7 + 3, held)
    query = random_units(1, 384, seed=1)[0]
    found = engine.search(query, k=10, candidates=None)
    cosines = held @ query
    assert [id_ for id_, _ in found] == [int(row) * 7 + 3 for row in np.argsort(-cosines)[:10]]
    assert [cosine for _, cosine in found] == pytest.approx(np.sort(cosines)[::-1][:10].tolist(), abs=1e-5)


def test_candidates_are_chosen_before_the_nearest(make):
    """The k nearest among the candidates are found, even where all of them are farther than everything else."""
    engine = make(8)
    held = random_units(100, 8)
    engine.add(np.arange(100), held)
    farthest = np.argsort(held @ held[0])[:5]
    found = engine.search(held[0], k=5, candidates=farthest.astype(np.int64))
    assert {id_ for id_, _ in found} == set(farthest.tolist())


def test_candidates_that_are_not_there_are_passed_over(make):
    """An unknown candidate takes no place and is no error; no candidates find nothing."""
    engine = make(2)
    engine.add(ids_of(5), unit(np.array([[1.0, 0.0]])))
    query = unit(np.array([[1.0, 0.0]]))[0]
    assert engine.search(query, k=3, candidates=ids_of(4, 5, 6)) == [(5, 1.0)]
    assert engine.search(query, k=3, candidates=ids_of(4, 6)) == []
    assert engine.search(query, k=3, candidates=NOTHING) == []


def test_an_empty_engine_finds_nothing(make):
    """Before the first vector, and after the last is gone, a search finds nothing."""
    engine, vector = make(3), unit(np.array([[1.0, 2.0, 3.0]]))
    assert engine.search(vector[0], k=5, candidates=None) == []
    assert engine.search(vector[0], k=5, candidates=ids_of(1)) == []
    engine.add(ids_of(1), vector)
    engine.remove(ids_of(1))
    assert len(engine) == 0
    assert engine.search(vector[0], k=5, candidates=None) == []
    assert engine.search(vector[0], k=5, candidates=ids_of(1)) == []


def test_equal_vectors_come_in_the_order_of_their_ids(make):
    """Equal vectors tie exactly, wherever they stand, and the lower id is first: 400 times the same of 385 numbers."""
    engine = make(385)
    ids = np.random.default_rng(2).permutation(400).astype(np.int64)
    engine.add(ids, np.repeat(random_units(1, 385), 400, axis=0))
    query = random_units(1, 385, seed=3)[0]
    for k in (1, 10, 399, 400, 1_000):
        assert [id_ for id_, _ in engine.search(query, k=k, candidates=None)] == list(range(min(k, 400)))


def test_zeros_have_cosine_0_with_everything(make):
    """A zero vector, held or asked for, is neither near nor far."""
    engine = make(2)
    engine.add(ids_of(1, 2, 3), unit(np.array([[-1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])))
    found = engine.search(unit(np.array([[1.0, 0.0]]))[0], k=3, candidates=None)
    assert [id_ for id_, _ in found] == [3, 2, 1]
    assert [cosine for _, cosine in found] == pytest.approx([0.6, 0.0, -1.0])
    assert engine.search(np.zeros(2, dtype=np.float32), k=3, candidates=None) == [(1, 0.0), (2, 0.0), (3, 0.0)]


def test_many_zeros_do_not_hide_a_weak_match(make):
    """sqlite-vec takes zeros for nearer than they are, and still the nearest are found."""
    engine = make(3)
    held = np.zeros((300, 3))
    held[250] = [0.1, math.sqrt(0.99), 0.0]
    engine.add(np.arange(300), unit(held))
    found = engine.search(unit(np.array([[1.0, 0.0, 0.0]]))[0], k=2, candidates=None)
    assert [id_ for id_, _ in found] == [250, 0]


def test_a_removed_vector_is_not_found(make):
    """What was removed is gone, what was not is still there, and an unknown id is passed over."""
    engine, held = make(16), random_units(90, 16)
    engine.add(np.arange(90), held)
    engine.remove(np.arange(0, 90, 2))
    engine.remove(ids_of(0, 1_000))
    assert len(engine) == 45
    assert {id_ for id_, _ in engine.search(held[0], k=90, candidates=None)} == set(range(1, 90, 2))


def test_an_id_may_be_used_again(make):
    """After its removal an id can carry another vector."""
    engine, held = make(4), random_units(2, 4)
    engine.add(ids_of(7), held[:1])
    engine.remove(ids_of(7))
    engine.add(ids_of(7), held[1:])
    assert engine.search(held[1], k=2, candidates=None) == [(7, pytest.approx(1.0, abs=1e-6))]


def test_ids_go_up_to_63_bits(make):
    """Ids are told apart over their whole range."""
    engine, held = make(4), random_units(3, 4)
    ids = ids_of(0, 2**62, 2**63 - 1)
    engine.add(ids, held)
    assert {id_ for id_, _ in engine.search(held[0], k=3, candidates=ids)} == set(ids.tolist())


def test_more_than_4096_neighbours_are_found(make):
    """sqlite-vec's own limit on k is not ours."""
    engine, held = make(2), random_units(5_000, 2)
    engine.add(np.arange(5_000), held)
    everything = engine.search(held[0], k=5_000, candidates=None)
    assert len({id_ for id_, _ in everything}) == 5_000
    assert len(engine.search(held[0], k=4_500, candidates=np.arange(100, 5_000))) == 4_500
    assert engine.search(held[0], k=4_095, candidates=None) == everything[:4_095]


# --- Both together ---


@st.composite
def histories(draw):
    """Steps on a pool of vectors in which many are equal, nearly equal, opposite or zero."""
    dimensions = draw(st.integers(1, 12) | st.sampled_from([17, 64, 383, 384, 400]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = rng.standard_normal((4, dimensions))
    nearly = base + rng.standard_normal(base.shape) * 1e-7
    pool = unit(np.concatenate([base, nearly, -base, np.zeros((1, dimensions)), rng.standard_normal((8, dimensions))]))
    row, id_ = st.integers(0, len(pool) - 1), st.integers(0, 60)
    add = st.tuples(st.just("add"), st.dictionaries(id_, row, min_size=1, max_size=40))
    remove = st.tuples(st.just("remove"), st.sets(id_, max_size=20))
    search = st.tuples(st.just("search"), row, st.integers(1, 70), st.none() | st.sets(st.integers(0, 70), max_size=40))
    return pool, draw(st.lists(add | remove | search, min_size=2, max_size=12))


@given(histories())
def test_both_engines_give_the_same_answers(case):
    """After any adds and removes, both engines give the same ids and cosines, to the last bit, and the right ones."""
    pool, steps = case
    engines = [sqlite_vec_engine(pool.shape[1]), FlatEngine(pool.shape[1])]
    held: dict[int, np.ndarray] = {}
    for step in steps:
        if step[0] == "add":
            new = {id_: row for id_, row in step[1].items() if id_ not in held}
            held |= {id_: pool[row] for id_, row in new.items()}
            for engine in engines:
                engine.add(ids_of(*new), pool[list(new.values())])
        elif step[0] == "remove":
            held = {id_: vector for id_, vector in held.items() if id_ not in step[1]}
            for engine in engines:
                engine.remove(ids_of(*step[1]))
        else:
            _, row, k, candidates = step
            among = None if candidates is None else ids_of(*candidates)
            small, flat = (engine.search(pool[row], k=k, candidates=among) for engine in engines)
            assert small == flat
            expected = brute_force(pool[row], held, k, candidates)
            assert [cosine for _, cosine in flat] == pytest.approx([cosine for _, cosine in expected], abs=1e-12)
            assert flat == sorted(flat, key=lambda found: (-found[1], found[0]))
            assert {id_ for id_, _ in flat} <= (held.keys() if candidates is None else held.keys() & candidates)
        assert [len(engine) for engine in engines] == [len(held)] * 2


def test_flattened_keeps_every_vector():
    """The flat engine that follows answers as the one before it did."""
    before, held = sqlite_vec_engine(32), random_units(300, 32)
    before.add(np.arange(300) * 5, held)
    before.remove(np.arange(0, 300, 3) * 5)
    answer = before.search(held[1], k=300, candidates=None)
    after = before.flattened()
    assert len(after) == 200
    assert after.search(held[1], k=300, candidates=None) == answer


def test_flattened_from_nothing_is_empty():
    """An empty engine becomes an empty flat one."""
    assert len(sqlite_vec_engine(32).flattened()) == 0


# --- Where sqlite-vec is not to be had ---


def test_without_sqlite_vec_the_flat_engine_serves(monkeypatch):
    """A platform without a wheel gets the other engine, silently."""
    monkeypatch.setattr(vectors, "sqlite_vec", None)
    assert isinstance(small_engine(apsw.Connection(":memory:"), 8), FlatEngine)


def test_the_module_loads_where_sqlite_vec_is_not_installed(monkeypatch):
    """Its import is tried once, and its absence is a fact like another."""
    monkeypatch.setitem(sys.modules, "sqlite_vec", None)
    spec = importlib.util.spec_from_file_location("vectors_alone", vectors.__file__)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert isinstance(alone.small_engine(apsw.Connection(":memory:"), 8), alone.FlatEngine)


def test_a_library_that_does_not_load_means_the_flat_engine(monkeypatch, tmp_path):
    """A broken library is no error, and loading extensions is off again afterwards."""

    class Broken:
        @staticmethod
        def loadable_path():
            return str(tmp_path / "vec0")

    monkeypatch.setattr(vectors, "sqlite_vec", Broken)
    connection = apsw.Connection(":memory:")
    assert isinstance(small_engine(connection, 8), FlatEngine)
    with pytest.raises(apsw.Error):
        connection.execute("SELECT load_extension('vec0')")


def test_more_dimensions_than_vec0_takes_mean_the_flat_engine():
    """Vectors longer than vec0's limit are searched all the same."""
    engine = small_engine(apsw.Connection(":memory:"), 8_193)
    assert isinstance(engine, FlatEngine)


# --- What it costs ---


def test_changes_without_end_do_not_make_it_grow(make):
    """A user who replaces memories over and over holds no more bytes for it."""
    connection = apsw.Connection(":memory:")
    engine = FlatEngine(64) if make is FlatEngine else small_engine(connection, 64)
    pages = connection.execute("PRAGMA page_size").get
    held, rng, live = random_units(1, 64), np.random.default_rng(0), list(range(300))
    engine.add(np.arange(300), np.repeat(held, 300, axis=0))
    for new in range(300, 6_000):
        place = rng.integers(len(live))
        engine.remove(ids_of(live[place]))
        engine.add(ids_of(new), held)
        live[place] = new
    used = engine.nbytes + connection.execute("PRAGMA page_count").get * pages
    assert used < 6 * 300 * 64 * 4


def test_a_flat_engine_gives_memory_back():
    """After most vectors are gone the matrix is small again."""
    engine = FlatEngine(64)
    engine.add(np.arange(10_000), random_units(10_000, 64))
    engine.remove(np.arange(9_900))
    assert engine.nbytes < 300 * (64 * 4 + 8)


# --- unit ---


def test_unit_gives_length_1_and_keeps_zeros():
    """Any finite vector comes back at length 1, zeros as zeros, in float32."""
    made = unit(np.array([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0], [1e-30, 0.0], [0.6, 0.8]], dtype=np.float32))
    assert made.dtype == np.float32
    assert made == pytest.approx(np.array([[0.6, 0.8], [0, 0], [1, 0], [1, 0], [0.6, 0.8]]))


def test_unit_leaves_unit_vectors_as_they_are():
    """Vectors that are at length 1 already keep every bit."""
    held = random_units(50, 384)
    assert np.array_equal(unit(held), held)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unit_refuses_what_is_not_finite(bad):
    """NaN and infinity are no direction."""
    with pytest.raises(InvalidInputError):
        unit(np.array([[1.0, bad]], dtype=np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_takes_any_float(dtype):
    """Half, single and double precision all become unit vectors in single."""
    made = unit(np.array([[3.0, 4.0]], dtype=dtype))
    assert made == pytest.approx(np.array([[0.6, 0.8]]))
