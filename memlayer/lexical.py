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
from typing import TYPE_CHECKING

import numpy as np

from memlayer.ranking import LEXICAL_NEIGHBOURS
from memlayer.words import document_words, query_words

if TYPE_CHECKING:
    from memlayer.ranking import Floats, Weights

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

_DIGITS = re.compile(r"\d+")

# What a posting's place in a dict, its two arrays and its word take, measured on CPython 3.11.
_WORD_BYTES = 460
_POSTING_BYTES = 8
_TURN_BYTES = 150


class _Postings:
    """The turns that have a word."""

    __slots__ = ("counted", "counts", "rows")

    def __init__(self) -> None:
        # Arrays of their own and not one matrix: a turn adds to some twenty of them, each in constant time.
        self.rows = array("i")
        self.counts = array("f")
        # In how many turns it is, for its rarity.
        self.counted = 0


class LexicalIndex:
    """The words of one user's turns."""

    def __init__(self) -> None:
        self._postings: dict[str, _Postings] = {}
        self._lengths = np.zeros(64, dtype=np.float32)
        self._languages: Counter[str] = Counter()
        # By row: the language that its turn was taken for, the kind of text that it is (a hash), whether it counts.
        self._turns: dict[int, tuple[str | None, int, bool]] = {}
        self._kinds: Counter[int] = Counter()
        self._counted = 0
        self._words = 0
        self._entries = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, roughly."""
        held = len(self._postings) * _WORD_BYTES + self._entries * _POSTING_BYTES + len(self._turns) * _TURN_BYTES
        return held + self._lengths.nbytes

    def add(self, row: int, text: str) -> None:
        """Adds a turn under a row that is free."""
        words, language = document_words(text, prevailing=self._prevailing)
        kind = hash(_DIGITS.sub("", " ".join(words)))
        self._kinds[kind] += 1
        counts = self._kinds[kind] <= _SAME_KIND
        self._turns[row] = language, kind, counts
        self._counted += counts
        self._words += len(words)
        if language is not None:
            self._languages[language] += 1
        if row >= len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros(max(row + 1, 64), dtype=np.float32)])
        self._lengths[row] = len(words)
        for word, times in Counter(words).items():
            postings = self._postings.setdefault(word, _Postings())
            postings.rows.append(row)
            postings.counts.append(times)
            postings.counted += counts
            self._entries += 1

    def remove(self, row: int, text: str) -> None:
        """Removes the turn at a row, with every word that only it had: nothing of a forgotten text stays."""
        language, kind, counts = self._turns.pop(row)
        words = set(document_words(text, prevailing=language)[0])
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
        self._counted -= counts
        if language is not None:
            self._languages[language] -= 1
        self._words -= int(self._lengths[row])
        self._lengths[row] = 0
        for word in words:
            postings = self._postings[word]
            place = postings.rows.index(row)
            # The order does not matter: the last one takes the free place.
            postings.rows[place], postings.counts[place] = postings.rows[-1], postings.counts[-1]
            postings.rows.pop()
            postings.counts.pop()
            postings.counted -= counts
            self._entries -= 1
            if not postings.rows:
                del self._postings[word]

    def lengths(self, size: int) -> Floats:
        """How many words each turn has, by row."""
        if size > len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros(size, dtype=np.float32)])
        return self._lengths[:size]

    def scores(self, question: str, *, size: int, beside: Weights | None) -> Floats:
        """How well each turn has the question's words, by row.

        A word that stands in a neighbour counts too, before the saturation: said twice in a row is not twice as much.

        Args:
            question: its words are stemmed as the turns' are, in each of their languages.
            size: the rows that there are are below this.
            beside: the turns' neighbours, or None where they count for nothing.
        """
        total = np.zeros(size + 1, dtype=np.float32)  # the last row stands for "no neighbour"
        if not self._turns:
            return total[:-1]
        found = np.zeros(size + 1, dtype=np.float32)
        words = [
            (weight * self._rarity(known), known)
            for forms, weight in query_words(question, languages=self._spoken)
            if (known := [self._postings[form] for form in forms if form in self._postings])
        ]
        words.sort(key=lambda word: -word[0])
        norm = 1 - _BY_LENGTH + _BY_LENGTH * self.lengths(size) * np.float32(len(self._turns) / max(self._words, 1))
        for weight, known in words[:_MOST_WORDS]:
            touched = []
            for postings in known:
                rows = np.array(postings.rows, dtype=np.int32)
                own = np.array(postings.counts, dtype=np.float32) / norm[rows]
                # A row stands once in a word's postings, and once in each list of neighbours: nothing is lost.
                found[rows] += own
                touched.append(rows)
                if beside is not None:
                    for distance, share in LEXICAL_NEIGHBOURS.items():
                        # The turns whose neighbour at this distance is one of these.
                        others = beside[-distance][0][rows]
                        found[others] += np.float32(share) * beside[distance][1][others] * own
                        touched.append(others)
            where = np.concatenate(touched)
            # Twice in `where` is the same value twice, and assigned, not added.
            total[where] += np.float32(weight) * found[where] / (np.float32(_SATURATION) + found[where])
            found[where] = 0
        return total[:-1]

    def _rarity(self, known: list[_Postings]) -> float:
        """How much it says that a turn has one of these: the inverse document frequency, the same for any size of
        store."""
        count = min(sum(postings.counted for postings in known), self._counted)
        rarity = math.log1p((self._counted - count + 0.5) / (count + 0.5))
        return rarity * _RAREST / math.log1p(max(self._counted, 1) / 1.5)

    @property
    def _prevailing(self) -> str | None:
        return max(self._languages, key=self._languages.__getitem__) if self._languages else "english"

    @property
    def _spoken(self) -> list[str]:
        """The languages of the turns, the most frequent first."""
        least = _A_LANGUAGE * len(self._turns)
        return [language for language, count in self._languages.most_common() if count > 0 and count >= least]
