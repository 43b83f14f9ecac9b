"""`memlayer.lexical`: BM25 over a turn and its neighbours, against the same in plain Python."""

from __future__ import annotations

import gc
import math
import re
import tracemalloc
from collections import Counter
from types import FunctionType, ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer import ranking
from memlayer.lexical import LexicalIndex
from memlayer.ranking import LEXICAL_NEIGHBOURS
from memlayer.timeline import Timeline
from memlayer.words import document_words, query_words, width

# Small words among them, so that every text is English; codes and numbers, and what has no spaces.
WORDS = ["the", "is", "a", "peanut", "peanuts", "oslo", "cat", "cats", "boat", "red", "HV-12", "7", "42", "北京"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.just("the " + "boat " * 150)


def naive(texts, question, neighbours):
    """Score by row, from the docstrings of `memlayer.lexical` and `memlayer.ranking`."""
    words = {row: document_words(text, prevailing="english")[0] for row, text in texts.items()}
    kinds = {row: re.sub(r"\d+", "", " ".join(its)) for row, its in words.items()}
    counted = [row for row in sorted(texts) if [kinds[r] for r in sorted(texts) if r <= row].count(kinds[row]) <= 4]
    average = max(sum(map(len, words.values())), 1) / len(texts)
    short = {row: min(max((900 - width(text)) / 600, 0), 1) for row, text in texts.items()}
    weighed = []
    for word in query_words(question, languages=["english"]):
        if not any(form in its for its in words.values() for form in word.forms):
            continue
        df = sum(any(form in words[row] for form in word.forms) for row in counted)
        rarity = math.log1p((len(counted) - df + 0.5) / (df + 0.5)) * 6.4 / math.log1p(max(len(counted), 1) / 1.5)
        weighed.append((word.weight * rarity, word.forms))
    weighed.sort(key=lambda pair: -pair[0])
    found = {}
    for row in texts:
        total = 0.0
        for weight, forms in weighed[:48]:

            def own(row, forms=forms):
                times = sum(Counter(words[row])[form] for form in forms)
                return times / (1 - 0.6 + 0.6 * len(words[row]) / average)

            value = own(row)
            for distance, share in LEXICAL_NEIGHBOURS.items() if neighbours else ():
                other = neighbours[distance][row]
                if other >= 0:
                    value += share * short[row] * (0.5 + 0.5 * short[other]) * own(other)
            total += weight * value / (1.0 + value)
        found[row] = total
    return found


def beside_of(timeline, texts, size):
    """The neighbours of rows 0 to `size`."""
    neighbours = {distance: timeline.neighbours(distance)[:size] for distance in ranking.DISTANCES}
    widths = np.array([width(texts.get(row, "")) for row in range(size)], dtype=np.int32)
    return ranking.beside(widths, neighbours), neighbours


@given(
    st.lists(st.tuples(TEXTS, st.sampled_from("ab")), min_size=1, max_size=14),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join),
    st.booleans(),
    st.sets(st.integers(0, 13)),
)
def test_scores_are_those_of_the_formula(turns, question, in_context, removed):
    """With neighbours and without, in two conversations, after some turns were removed."""
    index, timeline, texts = LexicalIndex(), Timeline(), {}
    for row, (text, session) in enumerate(turns):
        text = f"the {text}"
        index.add(row, text)
        timeline.add(row, session=session, at=row, seq=row)
        texts[row] = text
    gone = {row: texts.pop(row) for row in sorted(removed) if row in texts}
    index.remove(gone)
    for row in gone:
        timeline.remove(row, session=turns[row][1], at=row, seq=row)
    beside, neighbours = beside_of(timeline, texts, len(turns))
    scores = index.scores(question, size=len(turns), beside=beside if in_context else None)
    expected = naive(texts, question, neighbours if in_context else None) if texts else {}
    for row in range(len(turns)):
        assert scores[row] == pytest.approx(expected.get(row, 0.0), abs=2e-4) or row in gone
    assert not texts or any(scores[row] for row in texts) == any(expected.values())


CHANGES = st.lists(st.tuples(st.integers(0, 12), TEXTS, st.booleans()), max_size=40)


@given(CHANGES, st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join))
def test_what_was_held_and_removed_leaves_no_trace(changes, question):
    """After any adds and removes the scores are those of an index that was built at once, to the last bit."""
    index = LexicalIndex()
    texts: dict[int, str] = {}
    for row, text, adds in changes:
        if row in texts:
            index.remove({row: texts.pop(row)})
        if adds:
            texts[row] = f"the {text}"
            index.add(row, texts[row])
    fresh = LexicalIndex()
    for row in sorted(texts):
        fresh.add(row, texts[row])
    assert np.array_equal(index.scores(question, size=13, beside=None), fresh.scores(question, size=13, beside=None))
    assert np.array_equal(index.lengths(13), fresh.lengths(13))


@given(CHANGES)
def test_many_are_removed_as_one_by_one(changes):
    """A session at once, or turn by turn."""
    texts = {row: f"the {text}" for row, text, _ in changes}
    gone = {row: texts[row] for row, _, goes in changes if goes}
    at_once, one_by_one = LexicalIndex(), LexicalIndex()
    for row, text in texts.items():
        at_once.add(row, text)
        one_by_one.add(row, text)
    at_once.remove(gone)
    for row, text in gone.items():
        one_by_one.remove({row: text})
    question = " ".join(WORDS)
    assert np.array_equal(
        at_once.scores(question, size=13, beside=None), one_by_one.scores(question, size=13, beside=None)
    )


def reachable(root):
    """Every object that is held by one, but for modules, types and functions."""
    seen, waiting = {}, [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type | ModuleType | FunctionType):
            continue
        seen[id(found)] = found
        waiting += gc.get_referents(found)
        if isinstance(found, dict):  # the garbage collector has no interest in keys that are strings
            waiting += found
    return seen.values()


def test_nothing_of_a_removed_text_stays():
    """No word that only it had is held by the index, nor a number of it."""
    index = LexicalIndex()
    index.add(0, "the secret word is xylophone 8675309")
    index.add(1, "the other word is peanut")
    index.remove({0: "the secret word is xylophone 8675309"})
    strings = [found for found in reachable(index) if isinstance(found, str)]
    assert "peanut" in strings
    assert not [found for found in strings if "xyloph" in found or "8675309" in found or "secret" in found]
    assert index.scores("xylophone", size=2, beside=None).tolist() == [0.0, 0.0]


def test_an_emptied_index_is_a_new_one():
    """Its prevailing language too: what was German does not make the next texts German."""
    index = LexicalIndex()
    german = "Ich habe meine Schwester nicht gesehen"
    index.add(0, german)
    index.remove({0: german})
    assert index.nbytes == LexicalIndex().nbytes
    index.add(0, "peanuts")
    assert index.scores("peanut", size=1, beside=None)[0] > 0


def test_a_flood_of_one_kind_makes_no_word_common():
    """Texts that differ in digits alone count four times at most."""
    index = LexicalIndex()
    for row in range(20):
        index.add(row, f"the {['cat', 'boat', 'red', 'oslo'][row % 4]} {'is ' * row}{'peanut ' * (row == 7)}")
    before = index.scores("peanut", size=220, beside=None)[7]
    for row in range(20, 220):
        index.add(row, f"the error code of peanut {row}")
    flooded = index.scores("peanut", size=220, beside=None)
    assert flooded[7] > 0.4 * before
    many = LexicalIndex()
    for row in range(220):
        many.add(row, f"the error code of peanut {chr(97 + row % 26) * (1 + row // 26)}")
    assert many.scores("peanut", size=220, beside=None).max() < 0.1 * before


@pytest.mark.parametrize("size", [3, 300, 40_000])
def test_words_are_scored_alike_in_stores_of_any_size(size):
    """All at once in a small one, and a few at a time in a large one."""
    index = LexicalIndex()
    for row, text in enumerate(["the red cat", "the boat to oslo", "the peanut"]):
        index.add(row, text)
    question = "red cat boat oslo peanut"
    assert np.array_equal(
        index.scores(question, size=size, beside=None)[:3], index.scores(question, size=3, beside=None)
    )
    assert not index.scores(question, size=size, beside=None)[3:].any()


def test_the_rarest_words_of_a_long_question_count():
    """Of a dialogue as a question no more than 48 words are looked up."""
    index = LexicalIndex()
    for row in range(60):
        index.add(row, f"the w{row}x " + " ".join(f"common{other}y" for other in range(60) if other != row))
    question = " ".join([f"common{row}y" for row in range(60)] + [f"w{row}x" for row in range(48)])
    alone = " ".join(f"w{row}x" for row in range(48))
    assert np.array_equal(index.scores(question, size=60, beside=None), index.scores(alone, size=60, beside=None))


def test_no_words_no_scores():
    """An empty index, and a question of small words."""
    index = LexicalIndex()
    assert index.scores("peanut", size=0, beside=None).shape == (0,)
    assert index.scores("peanut", size=5, beside=None).tolist() == [0.0] * 5
    index.add(0, "")
    index.add(1, "the is a")
    assert index.scores("the peanut is", size=2, beside=None).tolist() == [0.0, 0.0]


def test_bytes_are_estimated():
    """Within a third of what Python says that the words and their turns take."""

    def built():
        index = LexicalIndex()
        for row in range(1_000):
            index.add(row, f"the {' '.join(f'word{(row * place) % 1700}x' for place in range(1, 13))}")
        return index

    built()
    tracemalloc.start()
    index = built()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 1.35 < index.nbytes < held * 1.35
