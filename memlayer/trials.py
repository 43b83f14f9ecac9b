"""Small memories to try an embedder on: which questions they answer is known, and which they do not.

Made of chats that were written for this and are shipped with memlayer, `calibration_data.jsonl`: between friends,
between colleagues, and of a user with an assistant. No two tell the same story, so that a question about one, asked
with the names of another, is a question that the other cannot answer. Five more are small talk without questions, put
together from sentences with changing words: what a large memory is full of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import as_file, files
from itertools import cycle, islice
from typing import TYPE_CHECKING

from memlayer.evaluation_file import read_conversations
from memlayer.questions import read_question
from memlayer.records import Memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from memlayer.evaluation_file import Conversation
    from memlayer.records import Role, Turn

__all__ = ["Asked", "Chat", "Trial", "chats", "trials"]

_FILE = "calibration_data.jsonl"
_ASSISTANT = "assistant"
# Everybody is called alike in all chats: so that several make one memory of the same persons, and a question about one
# is a question about them in the next.
_NAMES = ("Alex", "Robin", "Kim")
# Of how many turns the small memories are, and of how many chats the middle ones: a score must mean the same in all.
_TURNS = (2, 10)
_CHATS = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question to a memory.

    Attributes:
        text: the question.
        evidence: the ids of the turns that answer it; none where nothing does.
    """

    text: str
    evidence: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One of the chats.

    Attributes:
        id: its name.
        persons: who speaks, in the order of their first turns; nobody in a chat of a user with an assistant.
        turns: as they are remembered.
        questions: about it.
    """

    id: str
    persons: tuple[str, ...]
    turns: tuple[Memory, ...]
    questions: tuple[Asked, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One memory, and what it is asked.

    Attributes:
        turns: what it holds, in the order of writing.
        asked: questions, those that it answers and those that it does not.
    """

    turns: tuple[Memory, ...]
    asked: tuple[Asked, ...]

    @property
    def speakers(self) -> set[str]:
        """Who speaks in it."""
        return {turn.speaker for turn in self.turns if turn.speaker}


def chats() -> list[Chat]:
    """The chats that are shipped."""
    with as_file(files("memlayer") / _FILE) as path:
        return [_chat(conversation) for conversation in read_conversations(path)]


def trials(chats: Sequence[Chat]) -> list[Trial]:
    """Memories of two turns to some six hundred, each asked what it answers and about as much that it does not."""
    people = [chat for chat in chats if chat.persons]
    assistants = [chat for chat in chats if not chat.persons]
    made = []
    for group, others in ((people, assistants), (assistants, people)):
        told = [chat for chat in group if chat.questions]
        talk = [chat for chat in group if not chat.questions]
        strangers = [chat for chat in others if chat.questions]
        for place, chat in enumerate(told):
            ring = list(islice(cycle(told), place, place + len(told)))
            for size in _CHATS:
                made.append(_joined(ring[:size], asked=1, foreign=[ring[size], strangers[place % len(strangers)]]))
            made += _small(chat, foreign=[*ring[1:], *strangers])
        for own, foreign in ((told[::2], told[1::2]), (told[1::2], told[::2])):
            made.append(_joined([*own, *talk], asked=len(own), foreign=foreign))
    return made


def _joined(chats: Sequence[Chat], *, asked: int, foreign: Iterable[Chat]) -> Trial:
    """A memory of several chats that is asked about the first few."""
    return Trial(
        turns=tuple(turn for chat in chats for turn in chat.turns),
        asked=(
            *(question for chat in chats[:asked] for question in chat.questions),
            *_foreign(foreign, named=bool(chats[0].persons)),
        ),
    )


def _small(chat: Chat, *, foreign: Sequence[Chat]) -> Iterator[Trial]:
    """Memories of a few turns around the answer of each question."""
    places = {turn.id: place for place, turn in enumerate(chat.turns)}
    others = cycle(_foreign(foreign, named=bool(chat.persons)))
    for question in chat.questions:
        middle = min(places[turn] for turn in question.evidence)
        for size in _TURNS:
            first = max(0, min(middle - size // 2, len(chat.turns) - size))
            turns = chat.turns[first : first + size]
            evidence = question.evidence & {turn.id for turn in turns}
            yield Trial(turns=turns, asked=(replace(question, evidence=evidence), next(others)))


def _foreign(chats: Iterable[Chat], *, named: bool) -> list[Asked]:
    """The questions about other chats; to a memory in which nobody has a name, as the user would ask them."""
    return [
        Asked(text=question.text if named else read_question(question.text, speakers=chat.persons).spoken)
        for chat in chats
        for question in chat.questions
    ]


def _chat(conversation: Conversation) -> Chat:
    speakers = list(dict.fromkeys(turn.speaker for turn in conversation.turns if turn.speaker))
    names = {} if _ASSISTANT in speakers else dict(zip(speakers, _NAMES, strict=False))
    name = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b" if names else r"(?!)")

    def renamed(text: str) -> str:
        return name.sub(lambda found: names[found[0]], text)

    def memory(turn: Turn) -> Memory:
        role: Role = "assistant" if turn.speaker == _ASSISTANT else "user"
        at = turn.at or datetime(2024, 1, 1, tzinfo=UTC)
        return Memory.model_construct(
            id=f"{conversation.id}/{turn.id}",
            # What people say to an assistant is remembered without a name before it.
            text=renamed(turn.text) if names else turn.text.removeprefix(f"{turn.speaker}: "),
            role=role,
            speaker=names.get(turn.speaker or ""),
            session=f"{conversation.id}/{turn.session}",
            at=at,
            metadata={},
            source=role,
            expires=None,
            written=at,
        )

    return Chat(
        id=conversation.id,
        persons=tuple(names.values()),
        turns=tuple(map(memory, conversation.turns)),
        questions=tuple(
            Asked(
                text=renamed(question.text),
                evidence=frozenset(f"{conversation.id}/{turn}" for turn in question.evidence),
            )
            for question in conversation.questions
        ),
    )
