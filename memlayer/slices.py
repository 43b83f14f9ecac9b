"""What kind of question a question is, so that an average can be looked at in parts. Pure functions.

Each gives a label; the labels that have an order have it in `QUESTION_LENGTHS` and `EVIDENCE_AGES`.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from memlayer.languages import UNSPACED, language_of
from memlayer.words import is_unspaced

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

__all__ = [
    "EVIDENCE_AGES",
    "QUESTION_LENGTHS",
    "UNKNOWN",
    "count_words",
    "evidence_age",
    "prevailing_language",
    "question_length",
    "written_language",
]

UNKNOWN: Final = "unknown"

_LENGTHS: Final = ((5, "up to 5 words"), (10, "6 to 10 words"), (20, "11 to 20 words"))
_LONGER: Final = "over 20 words"
QUESTION_LENGTHS: Final = (*(label for _, label in _LENGTHS), _LONGER)

_AGES: Final = (
    (timedelta(days=1), "the last day"),
    (timedelta(days=7), "the last week"),
    (timedelta(days=30), "the last month"),
    (timedelta(days=91), "the last 3 months"),
    (timedelta(days=365), "the last year"),
)
_OLDER: Final = "older"
EVIDENCE_AGES: Final = (*(label for _, label in _AGES), _OLDER, UNKNOWN)

# Of the scripts without spaces, what a text in one is taken for. Japanese before Chinese: it has Chinese characters.
_SCRIPTS: Final = (
    ("\u3040-\u30ff\u31f0-\u31ff", "japanese"),
    ("\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff", "korean"),
    ("\u0e00-\u0e7f", "thai"),
    ("\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", "chinese"),
)
_SCRIPT = tuple((re.compile(f"[{characters}]"), language) for characters, language in _SCRIPTS)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001 - both apostrophes
# What a word is, in characters, where none are parted by spaces.
_CHARACTERS_A_WORD: Final = 2


def count_words(text: str) -> int:
    """How many words there are; in a script without spaces two characters are one."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_WORD.findall(_UNSPACED.sub(" ", text))) + -(-unspaced // _CHARACTERS_A_WORD)


def question_length(text: str) -> str:
    """Which of `QUESTION_LENGTHS`."""
    words = count_words(text)
    return next((label for most, label in _LENGTHS if words <= most), _LONGER)


def evidence_age(said: Iterable[datetime | None], *, end: datetime | None) -> str:
    """Which of `EVIDENCE_AGES`: how long before the end of the conversation the oldest of the evidence was said."""
    times = list(said)
    known = [at for at in times if at is not None]
    if end is None or not known or len(known) < len(times):
        return UNKNOWN
    age = end - min(known)
    return next((label for most, label in _AGES if age <= most), _OLDER)


def written_language(text: str, *, prevailing: str | None = None) -> str:
    """The language of a text, in English; `UNKNOWN` where neither script nor words say.

    Args:
        text: any text.
        prevailing: what the texts around it are in, where this one does not say.
    """
    if is_unspaced(text):
        return next((language for script, language in _SCRIPT if script.search(text)), UNKNOWN)
    return language_of(text, prevailing=prevailing) or UNKNOWN


def prevailing_language(texts: Iterable[str]) -> str | None:
    """What most of them are in that say."""
    languages = Counter(written_language(text) for text in texts)
    del languages[UNKNOWN]
    return languages.most_common(1)[0][0] if languages else None
