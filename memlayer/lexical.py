"""The lexical leg: which turns have the words of a question, weighted by how rare these are (BM25).

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.

In RAM only, and of authenticated texts only. Turns are named by their row, a small integer of the owner's that may be
used again once its turn is removed. Not thread-safe: the owner holds a lock.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer.languages import LANGUAGES
from memlayer.words import document_words, query_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from memlayer.ranking import Beside, Floats
    from memlayer.timeline import Rows

__all__ = ["LexicalIndex"]

# How soon a word's further occurrences add nothing, and how far a long turn's words count less (k1 and b of BM25).
_SATURATION, _BY_LENGTH = 1.0, 0.6
# What the rarest word of any store weighs is this much, so that a score means the same in a small and a large one.
_RAREST = 6.4
# Of turns that differ in digits alone so many count for how common their words are: two hundred lines of a tool do not
# make the words of a question common.
_SAME_KIND = 4
# The rarest words of a question that is a whole dialogue; more of them would only take time.
_MOST_WORDS = 48
# A language in which fewer of the turns are than this share is none that a question's words have to be looked up in.
_A_LANGUAGE = 0.05
# So many words are scored at once that no more numbers than these, four bytes each, are held for it.
_AT_ONCE = 1 << 18

_DIGITS = re.compile(r"\d+")
_NUMBERS = {language: number for number, language in enumerate(LANGUAGES, 1)}

# What a word takes: its place in a dict, its characters and its array; measured on CPython 3.11.
_WORD_BYTES = 200
_POSTING_BYTES = 9


class LexicalIndex:
    """The words of one user's turns.

    What it answers depends on the turns that it holds, whatever was held and removed before; but for turns whose
    language nothing in them tells: those were taken for the language of the others when they were added.
    """

    def __init__(self) -> None:
        # By word: row and number of occurrences of one turn after the other. Arrays of their own and not one matrix: a
        # turn adds to some twenty of them, each in constant time.
        self._postings: dict[str, array[int]] = {}
        # By row: whether there is a turn, how many words it has, the kind of text that it is (a hash), whether it
        # counts for how common its words are, and the language that it was taken for, by its number.
        self._there = np.zeros(64, dtype=np.bool_)
        self._lengths = np.zeros(64, dtype=np.float32)
        self._kinds = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.bool_)
        self._taken_for = np.zeros(64, dtype=np.int8)
        self._of_kind: Counter[int] = Counter()
        self._languages: Counter[str] = Counter()
        self._turns = 0
        self._counted = 0
        self._words = 0
        self._entries = 0
        self._letters = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, roughly."""
        held = len(self._postings) * _WORD_BYTES + self._letters + self._entries * _POSTING_BYTES
        # A kind of text is a number in a dict.
        return held + len(self._of_kind) * 100 + sum(array_.nbytes for array_ in self._arrays.values())

    def add(self, row: int, text: str) -> None:
        """Adds a turn under a row that is free."""
        words, language = document_words(text, prevailing=self._prevailing)
        if row >= len(self._there):
            for name, array_ in self._arrays.items():
                more = np.zeros(max(row + 1 - len(array_), len(array_)), dtype=array_.dtype)
                setattr(self, name, np.concatenate([array_, more]))
        kind = hash(_DIGITS.sub("", " ".join(words)))
        self._there[row] = True
        self._lengths[row] = len(words)
        self._kinds[row] = kind
        self._of_kind[kind] += 1
        self._turns += 1
        self._words += len(words)
        if language is not None:
            self._taken_for[row] = _NUMBERS[language]
            self._languages[language] += 1
        for word, times in Counter(words).items():
            postings = self._postings.get(word)
            if postings is None:
                postings = self._postings[word] = array("i")
                self._letters += len(word)
            postings.append(row)
            postings.append(times)
            self._entries += 1
        if self._of_kind[kind] <= _SAME_KIND:
            self._counts[row] = True
            self._counted += 1
        else:
            self._recount(kind)

    def remove(self, texts: Mapping[int, str]) -> None:
        """Removes the turns at these rows, with every word that only they had: nothing of a forgotten text stays."""
        gone = np.zeros(len(self._there), dtype=np.bool_)
        touched: set[str] = set()
        kinds: set[int] = set()
        for row, text in texts.items():
            language = LANGUAGES[self._taken_for[row] - 1] if self._taken_for[row] else None
            touched.update(document_words(text, prevailing=language)[0])
            gone[row] = True
            if language is not None:
                self._languages[language] -= 1
            kind = int(self._kinds[row])
            self._of_kind[kind] -= 1
            kinds.add(kind)
            self._words -= int(self._lengths[row])
        self._turns -= len(texts)
        self._counted -= int(np.count_nonzero(self._counts[gone]))
        for array_ in self._arrays.values():
            array_[gone] = 0
        self._of_kind += Counter()  # without those that are 0
        self._languages += Counter()
        for kind in kinds:
            if self._of_kind[kind]:
                self._recount(kind)
        for word in touched:
            # All turns of a word at once: a session of thousands is forgotten in a moment.
            pairs = _pairs(self._postings[word])
            kept = pairs[~gone[pairs[:, 0]]]
            self._entries -= len(pairs) - len(kept)
            if len(kept):
                self._postings[word] = array("i", kept.tobytes())
            else:
                del self._postings[word]
                self._letters -= len(word)

    def lengths(self, size: int) -> Floats:
        """How many words each turn has, by row."""
        if size > len(self._lengths):
            return np.concatenate([self._lengths, np.zeros(size - len(self._lengths), dtype=np.float32)])
        return self._lengths[:size]

    def scores(self, question: str, *, size: int, beside: Beside | None) -> Floats:
        """How well each turn has the question's words, by row.

        A word that stands in a neighbour counts too, before the saturation: said twice in a row is not twice as much.

        Args:
            question: its words are stemmed as the turns' are, in each of their languages.
            size: the rows that there are are below this.
            beside: the turns' neighbours, or None where they count for nothing.
        """
        total = np.zeros(size, dtype=np.float32)
        weighed = [
            (weight * self._rarity(known), known)
            for forms, weight in query_words(question, languages=self._spoken)
            if (known := [self._postings[form] for form in forms if form in self._postings])
        ]
        weighed.sort(key=lambda word: -word[0])
        words = [(weight, [_pairs(postings) for postings in known]) for weight, known in weighed[:_MOST_WORDS]]
        norm = 1 - _BY_LENGTH + _BY_LENGTH * self.lengths(size) * np.float32(self._turns / max(self._words, 1))
        at_once = max(1, _AT_ONCE // (size + 1))
        for start in range(0, len(words), at_once):
            total += _scored(words[start : start + at_once], norm=norm, beside=beside)
        return total

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        names = ("_there", "_lengths", "_kinds", "_counts", "_taken_for")
        return {name: getattr(self, name) for name in names}

    def _recount(self, kind: int) -> None:
        """Of turns of a kind the first ones count."""
        rows = np.flatnonzero(self._kinds == kind)
        rows = rows[self._there[rows]]
        self._counted -= int(np.count_nonzero(self._counts[rows]))
        self._counts[rows] = False
        self._counts[rows[:_SAME_KIND]] = True
        self._counted += min(len(rows), _SAME_KIND)

    def _rarity(self, known: list[array[int]]) -> float:
        """How much it says that a turn has one of these: the inverse document frequency, the same for any size of
        store."""
        count = min(sum(self._counted_in(postings) for postings in known), self._counted)
        rarity = math.log1p((self._counted - count + 0.5) / (count + 0.5))
        return rarity * _RAREST / math.log1p(max(self._counted, 1) / 1.5)

    def _counted_in(self, postings: array[int]) -> int:
        if len(postings) == 2:  # most words are in one turn
            return int(self._counts[postings[0]])
        return int(np.count_nonzero(self._counts[_pairs(postings)[:, 0]]))

    @property
    def _prevailing(self) -> str | None:
        return max(self._languages, key=self._languages.__getitem__) if self._languages else "english"

    @property
    def _spoken(self) -> list[str]:
        """The languages of the turns, the most frequent first."""
        least = _A_LANGUAGE * self._turns
        return [language for language, count in self._languages.most_common() if count >= least]


def _pairs(postings: array[int]) -> Rows:
    """Row and number of occurrences, one turn a line; no copy, so nothing may be added while it is in use."""
    return np.frombuffer(postings, dtype=np.int32).reshape(-1, 2)


def _scored(words: list[tuple[float, list[Rows]]], *, norm: Floats, beside: Beside | None) -> Floats:
    """What words, each with its weight and its turns, add to the turns' scores, by row.

    All words at once, in an array with a line a word: for a small store numpy's calls cost more than its work.
    """
    line = len(norm) + 1  # the last one of a line stands for "no neighbour"
    found = np.zeros(len(words) * line, dtype=np.float32)
    touched, weights = [], []
    # A word has more than one form where the turns are in several languages. A row stands once in a form's turns and
    # once in each list of neighbours: of one form a word at a time nothing is lost.
    for forms in zip_longest(*(known for _, known in words)):
        present = [(place, pairs) for place, pairs in enumerate(forms) if pairs is not None]
        counts = [len(pairs) for _, pairs in present]
        pairs = np.concatenate([pairs for _, pairs in present])
        rows = pairs[:, 0]
        own = pairs[:, 1].astype(np.float32) / norm[rows]
        start = np.repeat(np.array([place * line for place, _ in present]), counts)
        weights.append(np.repeat(np.array([words[place][0] for place, _ in present], dtype=np.float32), counts))
        at = (start + rows)[None]
        found[at[0]] += own
        if beside is not None:
            others = start + beside.rows[:, rows]
            for places, share in zip(others, beside.words[:, rows], strict=True):
                found[places] += share * own
            at = np.concatenate([at, others])
        touched.append(at)
    # Read all before the first is written: one that stands there twice has the same value twice.
    values = [
        weight * found[at] / (np.float32(_SATURATION) + found[at])
        for at, weight in zip(touched, weights, strict=True)
    ]  # fmt: skip
    for at, value in zip(touched, values, strict=True):
        found[at] = value
    scores: Floats = found.reshape(len(words), line)[:, :-1].sum(axis=0)
    return scores
