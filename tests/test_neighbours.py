"""What stands around a hit, and the part of a long text that fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memlayer import InvalidInputError, MemoryStore, RawKey, Turn
from memlayer.testing import HashingEmbedder

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def talk(alice):
    """A conversation of ten turns, the fifth about walnuts and the sixth about walnut oil; and another one."""
    texts = [f"filler sentence number {number}" for number in range(10)]
    texts[4], texts[5] = "walnuts make me ill", "walnuts in oil too"
    alice.remember_many(
        [
            *(
                Turn(text=text, session="a", at=NOON + timedelta(minutes=n), metadata={"n": n})
                for n, text in enumerate(texts)
            ),
            Turn(text="something else entirely", session="b", at=NOON),
        ]
    )
    return alice


def numbers(recall):
    return [hit.metadata.get("n") for hit in recall]


def test_the_turns_around_a_hit_come_in_their_order(talk):
    """So many before it and after it, of its own conversation, marked with the hit's id and with its score."""
    recall = talk.recall("walnuts ill", k=1, neighbours=2, min_score=0)
    assert numbers(recall) == [2, 3, 4, 5, 6]
    hit = recall[2]
    assert [each.beside for each in recall] == [hit.id, hit.id, None, hit.id, hit.id]
    assert {each.score for each in recall} == {hit.score}


def test_each_turn_comes_once(talk):
    """Where two hits stand side by side, and where their surroundings overlap; a hit is never only a neighbour."""
    recall = talk.recall("walnuts", k=2, neighbours=2, min_score=0)
    assert sorted(numbers(recall)) == [2, 3, 4, 5, 6, 7]
    assert [each.metadata["n"] for each in recall if each.beside is None] == numbers(talk.recall("walnuts", k=2))


def test_filters_hold_for_neighbours_too(talk):
    """What a condition leaves out does not come in beside a hit; nor does what has expired."""
    assert numbers(talk.recall("walnuts ill", k=1, neighbours=2, where={"n": {"$gte": 4}}, min_score=0)) == [4, 5, 6]
    talk.remember("gone soon", session="a", at=NOON + timedelta(minutes=4, seconds=30), expires=NOON)
    assert "gone soon" not in [hit.text for hit in talk.recall("walnuts ill", k=1, neighbours=2, min_score=0)]


def test_a_vector_has_neighbours_as_well(talk, embedder):
    """Whatever is searched for."""
    vector = embedder.embed_query("walnuts make me ill")
    assert numbers(talk.recall(vector, k=1, neighbours=1)) == [3, 4, 5]


def test_the_block_has_them_in_this_order(talk):
    """Within its tokens, whole turns only."""
    recall = talk.recall("walnuts ill", k=1, neighbours=1, min_score=0)
    block = recall.as_prompt(max_tokens=800)
    places = [block.index(hit.text) for hit in recall]
    assert places == sorted(places)
    assert recall.as_prompt(max_tokens=100).count('"text"') < 3


@pytest.mark.parametrize("neighbours", [-1, 11, True, 1.0, "1", None])
def test_a_number_of_neighbours_that_makes_no_sense_is_refused(talk, neighbours):
    """Before anything is embedded."""
    with pytest.raises(InvalidInputError):
        talk.recall("walnuts", neighbours=neighbours)


def test_the_best_passage_of_a_long_text(tmp_path):
    """Where it is asked for a hit of several parts says which fits best, and that is what goes into a prompt."""
    long = " ".join(f"word{number}" for number in range(40))
    with MemoryStore.open(tmp_path / "m.db", keys=RawKey(bytes(32)), embedder=HashingEmbedder(window=5)) as store:
        alice = store.user("alice")
        alice.remember_many([Turn(text=long), Turn(text="short one")])
        asked = "word35 word36 word37 word38 word39"
        hit, other = alice.recall(asked, passages=True, min_score=0)
        assert (hit.text, (hit.passage or "").split(), other.passage) == (long, asked.split(), None)
        assert "word39" in alice.recall(asked, passages=True, k=1, min_score=0).as_prompt()
        assert "word1 " not in alice.recall(asked, passages=True, k=1, min_score=0).as_prompt()
        assert alice.recall(asked, min_score=0)[0].passage is None
