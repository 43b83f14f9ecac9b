"""The public fakes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlayer.embedders import SplittingEmbedder
from memlayer.errors import InvalidInputError
from memlayer.testing import HashingEmbedder


def test_it_is_an_embedder():
    """HashingEmbedder has the protocol, splitting included."""
    assert isinstance(HashingEmbedder(), SplittingEmbedder)


def test_identity_tells_the_dimensions():
    """Fakes of different dimensions are different embedders; the window is no part of the identity."""
    assert HashingEmbedder(8).identity != HashingEmbedder(9).identity
    assert HashingEmbedder(8, window=3).identity == HashingEmbedder(8).identity
    assert HashingEmbedder().identity.model == "memlayer.testing/hashing"


def test_vectors_are_pinned():
    """The same text gives the same vector on every machine and in every version."""
    vector = HashingEmbedder().embed_query("Peanuts, peanuts and I")
    assert np.flatnonzero(vector).tolist() == [15, 35, 43]
    assert vector[[15, 35, 43]].tolist() == pytest.approx([0.81650, 0.40825, -0.40825], abs=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 64, 384])
@pytest.mark.parametrize("text", ["", "😀😀", "\0", "peanut", "a b c d e f g h " * 50])
def test_every_text_gives_a_unit_vector(dimensions, text):
    """Also a text without words, and one whose words cancel each other out."""
    vector = HashingEmbedder(dimensions).embed_query(text)
    assert vector.shape == (dimensions,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_documents_are_queries_in_rows():
    """embed_documents gives what embed_query gives, one row a text, in order."""
    texts = ["one", "two words", "", "three"]
    rows = HashingEmbedder().embed_documents(texts)
    assert rows.shape == (4, 64)
    np.testing.assert_array_equal(rows, [HashingEmbedder().embed_query(text) for text in texts])
    assert HashingEmbedder().embed_documents([]).shape == (0, 64)


def test_texts_that_share_words_are_near():
    """Shared words bring texts together, whatever their case."""
    near, far = HashingEmbedder(384).embed_documents(
        ["My sister is ALLERGIC to peanuts", "The train leaves at nine"]
    ) @ HashingEmbedder(384).embed_query("allergic to what?")
    assert near > far + 0.2


def test_counters_tell_the_roles_apart():
    """Calls are counted by role, texts over both; splitting embeds nothing."""
    embedder = HashingEmbedder(window=1)
    embedder.embed_documents(["a", "b", "c"])
    embedder.embed_documents([])
    embedder.embed_query("d")
    embedder.split("a b c")
    assert (embedder.document_calls, embedder.query_calls, embedder.texts) == (2, 1, 4)


def test_counters_count_every_thread():
    """No call is lost when threads share the embedder."""
    embedder = HashingEmbedder(4)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(embedder.embed_query, ["a"] * 400))
    assert embedder.query_calls == embedder.texts == 400


@settings(deadline=None, database=None)
@given(st.text(), st.integers(1, 5))
def test_split_loses_nothing(text, window):
    """The parts put together are the text, and each has at most `window` words."""
    parts = HashingEmbedder(window=window).split(text)
    assert "".join(parts) == text
    for part in parts:
        assert len(HashingEmbedder(window=window).split(part)) == 1


def test_split_cuts_before_words():
    """A window of two words gives parts of two words; without a window the text stays whole."""
    assert HashingEmbedder(window=2).split("one two, three four! five") == ["one two, ", "three four! ", "five"]
    assert HashingEmbedder().split("one two three") == ["one two three"]
    with pytest.raises(InvalidInputError):
        HashingEmbedder(window=0)


def test_repr_is_short():
    """The repr shows how the fake is set up."""
    assert repr(HashingEmbedder(8, window=2)) == "HashingEmbedder(8, window=2)"
