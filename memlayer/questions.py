"""A question, read before anything is compared with it: who is meant. Pure functions.

What somebody said is in the first person ("I went to Oslo"), and a question about them in the third, with their name
("When did Caroline go to Oslo?"). To an embedder the name is most of such a question, and the turns nearest to it are
those in which others address her ("Hey Caroline!"). So where the store knows the speaker, the question is embedded as
she would have said it, and that she is meant is a signal of its own. With all-MiniLM-L6-v2 on LoCoMo that lifts the
vector leg's recall@10 from .45 to .61, and the signal to .67 (docs/decisions/0012).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from memlayer.languages import MARKS, SMALL_WORDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Question", "read_question"]

# Speakers that are roles and no persons: a question may say "user" and mean nobody.
_ROLES = frozenset({"user", "assistant", "system", "tool", "memory", "ai", "bot", "human", "me", "you", "i"})
# More than these are a crowd, and no conversation; looking for each in a question would take its time.
_MOST_SPEAKERS = 200
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "miss", "prof", "sir", "the"})
_WORD: Final = re.compile(f"(?:\\w[{MARKS}]*+)++")
_POSSESSIVE: Final = re.compile(r"['’](?:s(?!\w)|(?<=s['’])(?=\s+\w))", re.IGNORECASE)
# Between the words of a name there is a space, a dot and a space, a hyphen, and not the end of a sentence.
_APART = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question as each leg takes it.

    Attributes:
        spoken: what is embedded: as the person whom it is about would say it.
        words: what is compared word by word: without the names of those whom it is about.
        about: the speakers whom it names.
    """

    spoken: str = field(repr=False)
    words: str = field(repr=False)
    about: frozenset[str] = field(default=frozenset(), repr=False)


def read_question(text: str, *, speakers: Collection[str]) -> Question:
    """Reads a question.

    Args:
        text: what is asked.
        speakers: who speaks in the memories that are searched. With fewer than two, nothing is to be told apart.
    """
    # Counted first: of a crowd not even the names are read.
    if not 2 <= len(speakers) <= _MOST_SPEAKERS + len(_ROLES):
        return Question(spoken=text, words=text)
    persons = [speaker for speaker in speakers if speaker.strip().casefold() not in _ROLES]
    if not 2 <= len(persons) <= _MOST_SPEAKERS:
        return Question(spoken=text, words=text)
    found = _named(text, persons)
    about = frozenset(person for name in found for person in name.persons)
    spoken = _replaced(text, ((name, "my" if name.possessive else "I") for name in found))
    words = _replaced(text, ((name, " ") for name in found))
    if not words.strip():
        return Question(spoken=text, words=text, about=about)
    return Question(spoken=spoken, words=words, about=about)


class _Name(NamedTuple):
    """A name that stands in a question, with its possessive, from `start` to `end`; and whose it may be."""

    start: int
    end: int
    possessive: bool
    persons: frozenset[str]


def _named(text: str, persons: Iterable[str]) -> list[_Name]:
    """The names in a text, in order; where two begin at one place, the longer one."""
    # By their first words: the words of names, and of whom they are.
    names: dict[str, dict[tuple[str, ...], set[str]]] = {}
    folded = text.casefold()
    for person in persons:
        for form in _forms(person):
            if form[0] in folded:
                names.setdefault(form[0], {}).setdefault(form, set()).add(person)
    if not names:
        return []
    words = [(word.start(), word.end(), word[0].casefold()) for word in _WORD.finditer(text)]
    found = []
    place = 0
    while place < len(words):
        fitting = [form for form in names.get(words[place][2], ()) if _stands_at(form, words, place)]
        if not fitting:
            place += 1
            continue
        form = max(fitting, key=len)
        start, end = words[place][0], words[place + len(form) - 1][1]
        place += len(form)
        if not _is_meant(text, start, end, names[form[0]][form]):
            continue
        owns = _POSSESSIVE.match(text, end)
        if owns is not None:
            end = owns.end()
            place += owns[0][-1] in "sS"
        found.append(_Name(start, end, owns is not None, frozenset(names[form[0]][form])))
    return found


def _forms(person: str) -> set[tuple[str, ...]]:
    """What somebody is called: by the whole name, and by the first one where that is a name at all."""
    whole = tuple(word.casefold() for word in _WORD.findall(person))
    if not whole or (len(whole) == 1 and whole[0].isdigit()):
        return set()
    first, rest = whole[0], whole[1:]
    # "Speaker 2", "Person B", "The Boss", "Dr. Li".
    told_apart = any(len(word) == 1 or word.isdigit() for word in rest[:1])
    if not rest or len(first) == 1 or told_apart or first in _ROLES | _TITLES | SMALL_WORDS["english"]:
        return {whole}
    return {whole, (first,)}


def _stands_at(form: tuple[str, ...], words: list[tuple[int, int, str]], place: int) -> bool:
    stands = words[place : place + len(form)]
    return tuple(word for _, _, word in stands) == form and all(
        later[0] - earlier[1] <= _APART for earlier, later in pairwise(stands)
    )


def _is_meant(text: str, start: int, end: int, persons: Iterable[str]) -> bool:
    """Whether a word that may be a name is one: "Will" as written and within a sentence, "will" never."""
    word = text[start:end]
    if len(word) > 1 and word.casefold() not in SMALL_WORDS["english"]:
        return True
    named = word != word.lower() and any(word in _WORD.findall(person) for person in persons)
    return named and (start > 0 or _POSSESSIVE.match(text, end) is not None)


def _replaced(text: str, names: Iterable[tuple[_Name, str]]) -> str:
    pieces, at = [], 0
    for name, instead in names:
        pieces += [text[at : name.start], instead]
        at = name.end
    return "".join([*pieces, text[at:]])
