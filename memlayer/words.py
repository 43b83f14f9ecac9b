"""The words of a text, as the lexical leg compares them: folded, stemmed, without those that say nothing.

- Case, width and compatibility forms are folded (NFKC, casefold); "don't" stays one word, and a possessive goes.
- A word is stemmed in the language of its text. A number is a word. What is joined by hyphens, dots, slashes, colons or
  at-signs and has a digit or two joints in it ("HV-67965", "10.0.0.7", "a@b.org") is a word as a whole too.
- Scripts without spaces between words are cut into single characters and pairs: two characters that stand side by side
  say more than each of them, and a single one finds what was cut elsewhere (Nie et al., On the use of words
  and n-grams for Chinese information retrieval, 2000).
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from memlayer.languages import SMALL_WORDS, UNSPACED, language_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["QueryWord", "document_words", "is_unspaced", "query_words", "width"]

# Possessive, and begun at a word's beginning only: a text of one endless word costs its length, not its square.
_LETTERS = f"[^\\W_{UNSPACED}]"
_TOKEN = re.compile(f"[{UNSPACED}]++|{_LETTERS}++(?:['’]{_LETTERS}++)*+")
_JOINED = re.compile(f"(?<!{_LETTERS}){_LETTERS}++(?:[-./:@_]{_LETTERS}++)++")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORDY = re.compile(r"\w")
# Single characters that are grammar: Chinese pronouns, particles and verbs of being; Japanese particles.
_SMALL_CHARACTERS: Final = frozenset(
    "的了我你他她它们是在不有就也都和吗呢吧啊这那很说要会到得着过去来给把被让与及或而但对为以于从のはがをにでともへや"
)
# What a single character of these scripts says, beside a pair.
_SINGLE: Final = 0.4
# As long as any word; longer runs (a key, a digest) are compared whole, and not stemmed.
_LONGEST = 64

_local = threading.local()


class QueryWord(NamedTuple):
    """A word of a question.

    Attributes:
        forms: as it may stand in what was said.
        weight: what it counts.
    """

    forms: tuple[str, ...]
    weight: float


def document_words(text: str, *, prevailing: str | None) -> tuple[list[str], str | None]:
    """The words of a text that was said, each as often as it stands there, and the language that it was taken for.

    Args:
        text: what was said.
        prevailing: the language of the texts around it, for one that does not say.
    """
    language = language_of(text, prevailing=prevailing)
    stem = _stemmer(language)
    small = SMALL_WORDS.get(language or "", frozenset())
    words = []
    for token in _tokens(text):
        if _UNSPACED.match(token):
            words += _grams(token)
        elif token not in small:
            words.append(stem(token))
    return words, language


def query_words(text: str, *, languages: Collection[str]) -> list[QueryWord]:
    """The words of a question, once each; said twice, a word counts half as much again.

    Args:
        text: the question.
        languages: those of the texts that are searched: a name in a German question stands in English turns too.
    """
    own = language_of(text, prevailing=next(iter(languages), None))
    stems = [_stemmer(language) for language in {own, *languages}]
    small = SMALL_WORDS.get(own or "", frozenset())
    found: Counter[tuple[str, ...]] = Counter()
    for token in _tokens(text):
        if _UNSPACED.match(token):
            found.update((gram,) for gram in _grams(token))
        elif token not in small:
            found[tuple(sorted({stem(token) for stem in stems}))] += 1
    return [QueryWord(forms, times**0.5 * (_SINGLE if _is_single(forms) else 1)) for forms, times in found.items()]


def is_unspaced(text: str) -> bool:
    """Whether a good part of it is in a script without spaces between words."""
    return len(_UNSPACED.findall(text)) > 0.3 * max(1, len(_WORDY.findall(text)))


def width(text: str) -> int:
    """How long a text is, in letters of an alphabet: a character of a script without spaces says as much as three."""
    return len(text) if text.isascii() else len(text) + 2 * len(_UNSPACED.findall(text))


def _tokens(text: str) -> Iterator[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    for token in _TOKEN.findall(folded):
        yield token.removesuffix("'s") or token
    for joined in _JOINED.findall(folded):
        if any(character.isdigit() for character in joined) or len(re.findall(r"[-./:@_]", joined)) > 1:
            yield joined


def _grams(run: str) -> list[str]:
    single = [character for character in run if character not in _SMALL_CHARACTERS]
    return single + [run[place : place + 2] for place in range(len(run) - 1)]


def _is_single(forms: tuple[str, ...]) -> bool:
    return len(forms[0]) == 1 and _UNSPACED.match(forms[0]) is not None


def _stemmer(language: str | None) -> Callable[[str], str]:
    if language is None:
        return _as_it_is
    # One a thread: an object of PyStemmer's keeps a buffer that two threads would share.
    stemmers: dict[str, Callable[[str], str]] = _local.__dict__.setdefault("stemmers", {})
    if language not in stemmers:
        import Stemmer

        # Its cache would keep words of forgotten texts.
        stem = Stemmer.Stemmer(language, 0).stemWord
        stemmers[language] = lambda word: stem(word) if len(word) <= _LONGEST else word
    return stemmers[language]


def _as_it_is(word: str) -> str:
    return word
