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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Question", "read_question"]

# Speakers that are roles and no persons: a question may say "user" and mean nobody.
_ROLES = frozenset({"user", "assistant", "system", "tool", "memory", "ai", "bot", "human", "me", "you", "i"})
# More than these are a crowd, and no conversation; looking for each in a question would take its time.
_MOST_SPEAKERS = 200


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
    persons = [speaker for speaker in speakers if speaker.casefold() not in _ROLES]
    if not 2 <= len(persons) <= _MOST_SPEAKERS:
        return Question(spoken=text, words=text)
    spoken, words, about = text, text, set()
    folded = text.casefold()
    for person in persons:
        forms = {person, person.split()[0]} if person.split() else {person}
        if not any(form.casefold() in folded for form in forms):
            continue
        name = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(forms, key=len)[::-1]))})(['’]s)?(?!\w)", re.I)
        if name.search(spoken):
            about.add(person)
            spoken = name.sub(lambda found: "my" if found[1] else "I", spoken)
            words = name.sub(" ", words)
    if not about or not words.strip():
        return Question(spoken=text, words=text, about=frozenset(about))
    return Question(spoken=spoken, words=words, about=frozenset(about))
