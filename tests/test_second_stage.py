"""The reranker of a store: what it decides, and that it never stands in the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from memlayer import InvalidInputError, MemoryStore, RawKey, Turn
from memlayer.testing import HashingEmbedder

TEXTS = [f"the cat number {number} sat on mat {number}" for number in range(60)]


class ByNumber:
    """The later written, the better; counts its calls."""

    name = "by-number"

    def __init__(self, answer=None):
        self.asked = []
        self.answer = answer

    def rerank(self, query, texts):
        self.asked.append((query, list(texts)))
        if self.answer is not None:
            return self.answer(texts)
        return np.array([TEXTS.index(text) / len(TEXTS) for text in texts], dtype=np.float32)


@pytest.fixture
def opened(tmp_path):
    stores = []

    def make(reranker, **options):
        store = MemoryStore.open(
            tmp_path / "m.db", keys=RawKey(bytes(32)), embedder=HashingEmbedder(), reranker=reranker, **options
        )
        stores.append(store)
        alice = store.user("alice")
        alice.remember_many([Turn(text=text) for text in TEXTS])
        return alice

    yield make
    for store in stores:
        store.close()


def test_the_reranker_orders_the_first_fifty(opened):
    """It reads the question with the fifty best of the first stage, and its relevance is the score."""
    reranker = ByNumber()
    alice = opened(reranker, rerank_timeout=30)
    hits = alice.recall("cat on mat 3", k=5, min_score=0, explain=True)
    [(question, read)] = reranker.asked
    assert (question, len(read), len(hits)) == ("cat on mat 3", 50, 5)
    assert [hit.text for hit in hits] == sorted(read, key=TEXTS.index)[:-6:-1]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.parts["reranker"] == hit.score for hit in hits)


def test_it_can_be_switched_off(opened):
    """By name, as every part; neighbours have their own order; and a vector is no question that it could read."""
    reranker = ByNumber()
    alice = opened(reranker, rerank_timeout=30)
    alice.recall("cat", without={"reranker"}, min_score=0)
    alice.recall("cat", neighbours=1, min_score=0)
    alice.recall(np.ones(HashingEmbedder().identity.dimensions, dtype=np.float32))
    assert reranker.asked == []


@pytest.mark.parametrize(
    "answer",
    [lambda texts: [1.0], lambda texts: [float("nan")] * len(texts), lambda texts: "no", lambda texts: 1 / 0],
    ids=["too few", "nan", "no numbers", "raises"],
)
def test_what_a_reranker_does_wrong_leaves_the_first_order(opened, answer, caplog):
    """Recall goes on without it, and one log line says so, without a text."""
    alice = opened(ByNumber(answer), rerank_timeout=30)
    expected = alice.recall("cat on mat 3", min_score=0, without={"reranker"})
    assert list(alice.recall("cat on mat 3", min_score=0)) == list(expected)
    [record] = caplog.records
    assert "reranker" in record.getMessage()
    assert "cat" not in record.getMessage()


def test_a_slow_reranker_is_not_waited_for(opened):
    """After its time the first order stands; while it still reads, the next recall does not ask it."""
    goes_on = threading.Event()
    reranker = ByNumber(lambda texts: [goes_on.wait(30)] * len(texts))
    alice = opened(reranker, rerank_timeout=0.05)
    expected = list(alice.recall("cat", min_score=0, without={"reranker"}))
    assert list(alice.recall("cat", min_score=0)) == expected
    assert list(alice.recall("cat", min_score=0)) == expected
    assert len(reranker.asked) == 1
    goes_on.set()


def test_a_relevance_beyond_its_scale_is_clipped(opened):
    """A score stays between 0 and 1, and equal ones keep the first order."""
    alice = opened(ByNumber(lambda texts: [2.0] * len(texts)), rerank_timeout=30)
    hits = alice.recall("cat on mat 3", min_score=0)
    assert {hit.score for hit in hits} == {1.0}
    first = alice.recall("cat on mat 3", min_score=0, without={"reranker"})
    assert [hit.id for hit in hits] == [hit.id for hit in first]


@pytest.mark.parametrize("seconds", [0, -1, True, "1", None])
def test_a_time_limit_that_makes_no_sense_is_refused(tmp_path, seconds):
    """Before the store is opened or made."""
    with pytest.raises(InvalidInputError):
        MemoryStore.open(tmp_path / "n.db", embedder=HashingEmbedder(), reranker=ByNumber(), rerank_timeout=seconds)
    assert not (tmp_path / "n.db").exists()
