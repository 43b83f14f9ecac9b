"""`memlayer.query_cache`: the vectors of the last questions."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from memlayer import EmbedderIdentity, MemoryStore, RawKey
from memlayer.query_cache import QueryCache

KEY = RawKey(bytes(32))


@pytest.fixture(autouse=True)
def every_question_is_embedded():
    """Not in here."""


class Counting:
    """An embedder that counts what it is asked."""

    def __init__(self, name: str = "counting") -> None:
        self.identity = EmbedderIdentity(model=name, dimensions=3)
        self.asked: list[str] = []

    def embed_documents(self, texts):
        return np.array([[len(text), 1, 0] for text in texts], dtype=np.float32)

    def embed_query(self, text):
        self.asked.append(text)
        return np.array([len(text), 1, 0], dtype=np.float32)


def test_the_same_question_of_the_same_user_is_embedded_once():
    """Not so another user's, another text's or another embedder's, whose names run into each other."""
    cache, one, other = QueryCache(), Counting(), Counting("other")
    first = cache.vector(one, "bc", user_id="a")
    assert cache.vector(one, "bc", user_id="a") is first
    cache.vector(one, "c", user_id="ab")
    cache.vector(one, "bcd", user_id="a")
    cache.vector(other, "bc", user_id="a")
    assert (one.asked, other.asked) == (["bc", "c", "bcd"], ["bc"])


def test_what_is_shared_cannot_be_written_to():
    """The next recall would be given what the last one made of it."""
    with pytest.raises(ValueError, match="read-only"):
        QueryCache().vector(Counting(), "x", user_id="a")[0] = 1


def test_an_embedder_may_use_its_array_again():
    """What is held is a copy, and the embedder can go on writing into its own."""

    class Reusing(Counting):
        given = np.zeros(3, dtype=np.float32)

        def embed_query(self, text):
            self.given[:] = super().embed_query(text) / np.linalg.norm([len(text), 1, 0])
            return self.given

    cache, embedder = QueryCache(), Reusing()
    first = cache.vector(embedder, "one", user_id="a").copy()
    cache.vector(embedder, "another", user_id="a")
    assert np.array_equal(cache.vector(embedder, "one", user_id="a"), first)


def test_only_the_last_questions_are_held():
    """The one that was asked longest ago goes first."""
    cache, embedder = QueryCache(), Counting()
    for number in range(257):
        cache.vector(embedder, str(number), user_id="a")
        cache.vector(embedder, "0", user_id="a")
    assert embedder.asked.count("0") == 1
    cache.vector(embedder, "1", user_id="a")
    assert embedder.asked.count("1") == 2


def test_no_question_is_held():
    """Nor the user's name: only what nobody can read back."""
    cache = QueryCache()
    cache.vector(Counting(), "a question to be found", user_id="the user to be found")
    held = repr(cache.__dict__).encode() + b"".join(cache._vectors)
    assert b"to be found" not in held
    del held
    gc.collect()


@pytest.mark.parametrize("ends", [lambda alice: alice.forget("1"), lambda alice: alice.erase()])
def test_a_deletion_drops_them(tmp_path, ends):
    """A question may have been the very text that was forgotten."""
    embedder = Counting()
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=embedder) as store:
        alice = store.user("alice")
        alice.remember("I am ill", id="1")
        alice.remember("and tired", id="2")
        alice.recall("I am ill")
        alice.recall("I am ill")
        assert embedder.asked == ["I am ill"]
        ends(alice)
        alice.remember("so it is")
        alice.recall("I am ill")
        assert embedder.asked == ["I am ill", "I am ill"]
