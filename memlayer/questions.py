"""A question, read before anything is compared with it: who is meant. Pure functions.

What somebody said is in the first person ("I went to Oslo"), and a question about them in the third, with their name
("When did Caroline go to Oslo?"). To an embedder the name is most of such a question, and the turns nearest to it are
those in which others address her ("Hey Caroline!"). So where the store knows the speaker, the question is embedded as
she would have said it, and that she is meant is a signal of its own. With all-MiniLM-L6-v2 on LoCoMo that lifts the
vector leg's recall@10 from .45 to .61, and the signal to .67 (docs/decisions/0012).

Where a script has no spaces a name stands inside of its run: "小明什么时候去了北京", "Caroline什么时候去了北京".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from memlayer.languages import MARKS, SMALL_WORDS, UNSPACED
from memlayer.words import is_unspaced

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Question", "read_question"]

# A sentence that ends so states something, but for a request.
_STATING: Final = (".", "!", "。", "\uff01", "…")
_CLOSING: Final = " \t\n\"'”’)]」』"
_SENTENCE: Final = re.compile(f"[^.!?。\uff01\uff1f…\n]*+[.!?。\uff01\uff1f…\n]*+[{re.escape(_CLOSING)}]*+")
_REQUEST: Final = re.compile(
    r"\W*(?:please\W+)?(?:(?:can|could|would|will) you\W+)?(?:tell|remind|show|list|find|give|name|describe|explain|"
    r"recall|remember|summari[sz]e|search|look)\b|\W*(?:请|請)?(?:告诉|告訴|提醒|说说|說說|总结|總結|列出|回忆|回憶|找|描述|教えて)",
    re.IGNORECASE,
)
# Speakers that are roles and no persons: a question may say "user" and mean nobody.
_ROLES = frozenset({"user", "assistant", "system", "tool", "memory", "ai", "bot", "human", "me", "you", "i"})
# More than these are a crowd, and no conversation; looking for each in a question would take its time.
_MOST_SPEAKERS = 200
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "miss", "prof", "sir", "the"})
_LETTERS: Final = f"(?:[^\\W{UNSPACED}][{MARKS}]*+)++"
_WORD: Final = re.compile(f"[{UNSPACED}]++|{_LETTERS}")
# A name of three such characters is a family's of one and one's own of two; of four, two and two. People are called by
# either of two.
_FAMILY_FIRST: Final = re.compile("[\u4e00-\u9fff]{3,4}|[\uac00-\ud7a3]{3}")
_COURTESY: Final = re.compile("(?:先生|女士|小姐|老师|同学|さん|ちゃん|くん|君|様|씨|님)?")
_KANA: Final = re.compile("[\u3040-\u30ff]")
_HANGUL: Final = re.compile("[\uac00-\ud7a3]")
_THAI: Final = re.compile("[\u0e00-\u0e7f]")
_UNSPACED: Final = re.compile(f"[{UNSPACED}]")
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

    @property
    def asking(self) -> str:
        """What of it asks. A time in a sentence that states something ("I was ill yesterday.") is when that was, and
        no time of what is looked for."""
        return " ".join(sentence[0] for sentence in _SENTENCE.finditer(self.words) if _asks(sentence[0]))


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
    me, my = _first_person(text)
    spoken = _replaced(text, ((name, my if name.possessive else me) for name in found))
    words = _replaced(text, ((name, " ") for name in found))
    if not words.strip():
        return Question(spoken=text, words=text, about=about)
    return Question(spoken=spoken, words=words, about=about)


def _asks(sentence: str) -> bool:
    return not sentence.rstrip(_CLOSING).endswith(_STATING) or _REQUEST.match(sentence) is not None


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
    parts = {part for forms in names.values() for form in forms for part in form if _UNSPACED.match(part)}
    words = [(word.start(), word.end(), word[0].casefold()) for word in _words_with(parts).finditer(text)]
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
        if _UNSPACED.match(form[-1]):
            end = _COURTESY.match(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
            while place < len(words) and words[place][0] < end:
                place += 1
        owns = _POSSESSIVE.match(text, end)
        if owns is not None:
            end = owns.end()
            place += owns[0][-1] in "sS"
        found.append(_Name(start, end, owns is not None, frozenset(names[form[0]][form])))
    return found


def _forms(person: str) -> set[tuple[str, ...]]:
    """What somebody is called: by the whole name, and by the first one where that is a name at all."""
    whole = tuple(word.casefold() for word in _WORD.findall(person))
    if not whole or (len(whole) == 1 and (whole[0].isdigit() or (len(whole[0]) == 1 and _UNSPACED.match(whole[0])))):
        return set()
    if len(whole) == 1 and _FAMILY_FIRST.fullmatch(whole[0]):
        name = whole[0]
        return {whole, (name[-2:],), *([(name[:2],)] if len(name) == 4 else [])}
    first, rest = whole[0], whole[1:]
    # "Speaker 2", "Person B", "The Boss", "Dr. Li".
    told_apart = any(len(word) == 1 or word.isdigit() for word in rest[:1])
    if not rest or len(first) == 1 or told_apart or first in _ROLES | _TITLES | SMALL_WORDS["english"]:
        return {whole}
    return {whole, (first,)}


def _words_with(names: Collection[str]) -> re.Pattern[str]:
    """What finds the words of a text, and these names in what has no spaces; of two at one place the longer."""
    if not names:
        return _WORD
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(f"{longest_first}|[{UNSPACED}]|{_LETTERS}")


def _first_person(text: str) -> tuple[str, str]:
    """I and my, in the language of a script without spaces, else in English: it is what the small models know."""
    if not is_unspaced(text):
        return "I", "my"
    if _KANA.search(text):
        return "私", "私の"
    if _HANGUL.search(text):
        return "나", "나의"
    return ("ฉัน", "ของฉัน") if _THAI.search(text) else ("我", "我的")


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
