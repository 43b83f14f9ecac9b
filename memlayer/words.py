"""The words of a text, as the lexical leg compares them: folded, stemmed, without those that say nothing.

- Case, width and compatibility forms are folded (NFKC, casefold); "don't" stays one word, and a possessive goes.
- A word is stemmed in the language of its text. A number is a word. What is joined by hyphens, dots, slashes, colons or
  at-signs and has a digit or two joints in it ("HV-67965", "10.0.0.7", "a@b.org") is a word as a whole too.
- Scripts without spaces between words are cut into single characters and pairs, and a query into pairs where it has
  any: of two characters that stand side by side, both say more than each (Chinese and Japanese retrieval, Nie et al.
  2000; Korean, Lee and Ahn 1996).
"""

from __future__ import annotations

import re
import threading
import unicodedata
from typing import TYPE_CHECKING

from memlayer.languages import SMALL_WORDS, UNSPACED, language_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["document_words", "query_words"]

_TOKEN = re.compile(f"[{UNSPACED}]+|[^\\W_{UNSPACED}]+(?:['’][^\\W_{UNSPACED}]+)*")
_JOINED = re.compile(f"[^\\W_{UNSPACED}]+(?:[-./:@_][^\\W_{UNSPACED}]+)+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
# As long as any word; longer runs (a key, a digest) are compared whole, and not stemmed.
_LONGEST = 64

_local = threading.local()


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
            words += _grams(token, all_=True)
        elif token not in small:
            words.append(stem(token))
    return words, language


def query_words(text: str, *, languages: Collection[str]) -> list[list[str]]:
    """For each word of a question, once each, the forms that it may have in what was said.

    Args:
        text: the question.
        languages: those of the texts that are searched: a name in a German question stands in English turns too.
    """
    own = language_of(text, prevailing=next(iter(languages), None))
    stems = [_stemmer(language) for language in {own, *languages}]
    small = SMALL_WORDS.get(own or "", frozenset())
    found: dict[tuple[str, ...], None] = {}
    for token in _tokens(text):
        if _UNSPACED.match(token):
            found.update({(gram,): None for gram in _grams(token, all_=len(token) == 1)})
        elif token not in small:
            found[tuple(sorted({stem(token) for stem in stems}))] = None
    return [list(forms) for forms in found]


def _tokens(text: str) -> Iterator[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    for token in _TOKEN.findall(folded):
        yield token.removesuffix("'s") or token
    for joined in _JOINED.findall(folded):
        if any(character.isdigit() for character in joined) or len(re.findall(r"[-./:@_]", joined)) > 1:
            yield joined


def _grams(run: str, *, all_: bool) -> list[str]:
    pairs = [run[place : place + 2] for place in range(len(run) - 1)]
    return [*run, *pairs] if all_ else pairs


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
