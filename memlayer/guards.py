"""Conversations changed, to see whether what helps on a file also helps on others. Pure functions.

A file is of one kind: short turns of two friends with names, say. A rule that was tuned on it may know that kind and no
other. Each guard makes another kind out of the same conversations; a gain over plain cosine that is gone there was the
file's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from memlayer.words import is_unspaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from memlayer.evaluation_file import Conversation, Question
    from memlayer.records import Turn

__all__ = ["GUARDS", "Guard", "cut", "guarded", "joined", "nameless", "renamed", "with_foreign"]

Guard: TypeAlias = Literal["joined", "cut", "renamed", "nameless"]
"""Short turns joined into long ones of a user and an assistant in turn; turns cut into their sentences; speakers under
other names; speakers without names."""

GUARDS: Final[tuple[Guard, ...]] = get_args(Guard)

# As long as an assistant's answer.
_LONG, _MOST_JOINED = 1_200, 8
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")
# "Yes." is no message of its own.
_SHORTEST = 18
_ROLES: Final = frozenset({"user", "assistant", "system", "tool"})
_NAMES: Final = (
    "Priya", "Tobias", "Yuki", "Marek", "Ingrid", "Omar", "Leila", "Stefan", "Chloe", "Rafael", "Anneke", "Hiro",
    "Zara", "Lukas", "Noor", "Pavel", "Signe", "Diego", "Amara", "Felix",
)  # fmt: skip


def guarded(conversations: Sequence[Conversation], guard: Guard) -> list[Conversation]:
    """All of them, changed by one guard."""
    changes: dict[Guard, Callable[[Conversation], Conversation]] = {
        "joined": joined,
        "cut": cut,
        "renamed": renamed,
        "nameless": nameless,
    }
    return [changes[guard](conversation) for conversation in conversations]


def joined(conversation: Conversation) -> Conversation:
    """Turns of one session that follow each other as one long turn; the roles of user and assistant alternate, as if
    half of it were an assistant's answers. Who said what stands in the text alone."""
    turns: list[Turn] = []
    into: dict[str, str] = {}
    for block in _blocks(conversation.turns):
        id_ = str(len(turns))
        into.update((turn.id or "", id_) for turn in block)
        role: Literal["user", "assistant"] = "assistant" if len(turns) % 2 else "user"
        text = "\n".join(turn.text for turn in block)
        turns.append(block[-1].model_copy(update={"id": id_, "text": text, "role": role, "speaker": None}))
    questions = tuple(
        replace(question, evidence=frozenset(into[turn] for turn in question.evidence))
        for question in conversation.questions
    )
    return replace(conversation, turns=tuple(turns), questions=questions)


def cut(conversation: Conversation) -> Conversation:
    """Every sentence as a turn of its own. Any of them counts as the turn that it was cut from."""
    turns: list[Turn] = []
    origins: dict[str, str] = {}
    for turn in conversation.turns:
        said = _said(turn)
        for sentence in _sentences(said):
            id_ = str(len(turns))
            origins[id_] = turn.id or ""
            text = turn.text.removesuffix(said) + sentence
            turns.append(turn.model_copy(update={"id": id_, "text": text}))
    return replace(conversation, turns=tuple(turns), origins=origins)


def renamed(conversation: Conversation) -> Conversation:
    """Every speaker under another name, in what is said and asked too. Short forms of a name stay as they are."""
    present = " ".join(turn.text for turn in conversation.turns)
    free = [name for name in _NAMES if name not in present]
    names = dict(zip(_speakers(conversation.turns), free, strict=False))
    return replace(
        conversation,
        turns=tuple(
            turn.model_copy(
                update={"text": _called(turn.text, names), "speaker": names.get(turn.speaker or "", turn.speaker)}
            )
            for turn in conversation.turns
        ),
        questions=tuple(replace(each, text=_called(each.text, names)) for each in conversation.questions),
        foreign=tuple(_called(text, names) for text in conversation.foreign),
    )


def nameless(conversation: Conversation) -> Conversation:
    """Nothing says who spoke, but for the names by which they call each other."""
    turns = tuple(turn.model_copy(update={"text": _said(turn), "speaker": None}) for turn in conversation.turns)
    return replace(conversation, turns=turns)


def with_foreign(
    conversations: Sequence[Conversation], *, asked: Mapping[str, Sequence[Question]]
) -> list[Conversation]:
    """Each with the questions of the next one as foreign ones: to which it has no answer, though they are of the same
    kind. The speakers' names in them are replaced by its own, so that a strange name gives nothing away.

    Args:
        conversations: one that is alone gets none.
        asked: by conversation, the questions that count.
    """
    if len(conversations) < 2:
        return list(conversations)
    given = []
    for number, conversation in enumerate(conversations):
        other = conversations[(number + 1) % len(conversations)]
        own = _speakers(conversation.turns)
        names = {name: own[place % len(own)] for place, name in enumerate(_speakers(other.turns)) if own}
        foreign = tuple(_called(question.text, names) for question in asked[other.id])
        given.append(replace(conversation, foreign=foreign))
    return given


def _blocks(turns: Iterable[Turn]) -> Iterable[list[Turn]]:
    for _, those in groupby(turns, key=lambda turn: turn.session):
        block: list[Turn] = []
        for turn in those:
            block.append(turn)
            if len(block) == _MOST_JOINED or sum(len(each.text) for each in block) >= _LONG:
                yield block
                block = []
        if block:
            yield block


def _said(turn: Turn) -> str:
    """The text without the speaker's name before it."""
    said = turn.text.removeprefix(f"{turn.speaker}: ") if turn.speaker else turn.text
    return said if said.strip() else turn.text


def _sentences(text: str) -> list[str]:
    """At least one; a short one goes with the one before it."""
    found: list[str] = []
    for sentence in _SENTENCE.split(text):
        if not sentence.strip():
            continue
        if found and (len(found[-1]) < _SHORTEST or len(sentence) < _SHORTEST):
            found[-1] += f" {sentence}"
        else:
            found.append(sentence)
    return found


def _speakers(turns: Iterable[Turn]) -> list[str]:
    """The persons, in the order in which they speak first."""
    names = dict.fromkeys(turn.speaker for turn in turns if turn.speaker)
    return [name for name in names if name.casefold() not in _ROLES]


def _called(text: str, names: Mapping[str, str]) -> str:
    """A text with names replaced, all at once: two people may swap theirs."""
    forms = {form: new for name, new in names.items() for form in (name, name.split()[0])}
    if not forms:
        return text
    patterns = [
        re.escape(form) if is_unspaced(form) else rf"(?<!\w){re.escape(form)}(?!\w)"
        for form in sorted(forms, key=len, reverse=True)
    ]
    return re.sub("|".join(patterns), lambda found: forms[found[0]], text)
