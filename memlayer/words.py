"""The words of a text, as the lexical leg compares them: folded, stemmed, without those that say nothing.

- Case, width and compatibility forms are folded (NFKC, casefold); "don't" stays one word. A possessive goes, and an
  article or a suffix that an apostrophe ties to a word ("l'école", "İzmir'de").
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

from memlayer.languages import MARKS, SMALL_WORDS, UNSPACED, language_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["QueryWord", "document_words", "is_unspaced", "query_words", "width"]

# Possessive, and begun at a word's beginning only: a text of one endless word costs its length, not its square.
_LETTER = f"[^\\W_{UNSPACED}]"
_LETTERS = f"(?:{_LETTER}[{MARKS}]*+)++"
_TOKEN = re.compile(f"[{UNSPACED}]++|{_LETTERS}(?:'{_LETTERS})*+")
_JOINED = re.compile(f"(?<![{MARKS}])(?<!{_LETTER}){_LETTERS}(?:[-./:@_]{_LETTERS})++")
# The same for ASCII, at half the cost.
_ASCII_TOKEN = re.compile("[a-z0-9]++(?:'[a-z0-9]++)*+")
_ASCII_JOINED = re.compile("(?<![a-z0-9])[a-z0-9]++(?:[-./:@_][a-z0-9]++)++")
_JOINT = re.compile("[-./:@_]")
_DIGIT = re.compile(r"\d")
# Hyphens for a line's end, joiners, marks of byte order: nobody sees them, and some copy them along.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
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

# In these an apostrophe ends an article or a pronoun, and the word comes behind it; in Turkish it begins a suffix.
_ELIDING: Final = frozenset({"french", "italian", "catalan"})

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
    words = []
    for token in _tokens(text):
        if _UNSPACED.match(token):
            words += _grams(token)
        elif not _is_small(token, language):
            words.append(stem(token))
    return words, language


def query_words(text: str, *, languages: Collection[str]) -> list[QueryWord]:
    """The words of a question, once each; said twice, a word counts half as much again.

    Args:
        text: the question.
        languages: those of the texts that are searched: a name in a German question stands in English turns too.
    """
    own = language_of(text, prevailing=next(iter(languages), None))
    stem = _stemmer(own)
    others = [_stemmer(language) for language in languages if language != own]
    # By the word in the question's own language: its forms in the others.
    forms: dict[str, set[str]] = {}
    times: Counter[str] = Counter()
    for token in _tokens(text):
        if _UNSPACED.match(token):
            times.update(_grams(token))
        elif not _is_small(token, own):
            word = stem(token)
            times[word] += 1
            if others:
                forms.setdefault(word, set()).update(other(token) for other in others)
    return [
        QueryWord((word, *sorted(forms.get(word, set()) - {word})), count**0.5 * (_SINGLE if _is_single(word) else 1))
        for word, count in times.items()
    ]


def is_unspaced(text: str) -> bool:
    """Whether a good part of it is in a script without spaces between words."""
    return len(_UNSPACED.findall(text)) > 0.3 * max(1, len(_WORDY.findall(text)))


def width(text: str) -> int:
    """How long a text is, in letters of an alphabet: a character of a script without spaces says as much as three."""
    return len(text) if text.isascii() else len(text) + 2 * len(_UNSPACED.findall(text))


def _tokens(text: str) -> Iterator[str]:
    if text.isascii():
        folded, words, joined = text.lower(), _ASCII_TOKEN, _ASCII_JOINED
    else:
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
        # The Turkish capital with a dot is folded to two characters.
        folded, words, joined = folded.replace("’", "'").replace("i\u0307", "i"), _TOKEN, _JOINED
    for token in words.findall(folded):
        yield token.removesuffix("'s") or token
    for code in joined.findall(folded):
        if _DIGIT.search(code) or len(_JOINT.findall(code)) > 1:
            yield code


def _bare(token: str, language: str | None) -> str:
    """The word without what an apostrophe ties to it."""
    if "'" in token:
        if language in _ELIDING:
            return token.rpartition("'")[2]
        if language == "turkish":
            return token.partition("'")[0]
    return token


def _is_small(token: str, language: str | None) -> bool:
    small = SMALL_WORDS.get(language or "", frozenset())
    return token in small or _bare(token, language) in small


def _grams(run: str) -> list[str]:
    single = [character for character in run if character not in _SMALL_CHARACTERS]
    return single + [run[place : place + 2] for place in range(len(run) - 1)]


def _is_single(word: str) -> bool:
    return len(word) == 1 and _UNSPACED.match(word) is not None


def _stemmer(language: str | None) -> Callable[[str], str]:
    if language is None:
        return _as_it_is
    # One a thread: an object of PyStemmer's keeps a buffer that two threads would share.
    stemmers: dict[str, Callable[[str], str]] = _local.__dict__.setdefault("stemmers", {})
    if language not in stemmers:
        import Stemmer

        # Its cache would keep words of forgotten texts.
        stem = Stemmer.Stemmer(language, 0).stemWord
        stemmers[language] = lambda word: stem(_bare(word, language)) if len(word) <= _LONGEST else word
    return stemmers[language]


def _as_it_is(word: str) -> str:
    return word
