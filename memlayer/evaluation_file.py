"""The file that an evaluation reads: JSON lines, one conversation with its questions a line.

    {"id": "conv-1", "turns": [{"id": "t1", "session": "1", "time": "1:56 pm on 8 May, 2023", "speaker": "Ann",
     "text": "Look!", "caption": "a cello"}], "questions": [{"id": "q1", "question": "What does Ann play?",
     "category": 4, "evidence": ["t1"]}]}

A time is ISO 8601 or the form above, UTC where it names no zone, or null. `session`, `time`, `speaker`, `caption` and
`category` may be missing; further keys are passed over. What does not fit is an error that names the line. A speaker
called "assistant", "system" or "tool" has that role, everybody else the user's.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlayer.errors import InvalidInputError
from memlayer.records import Turn, valid_name, valid_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from memlayer.records import Role

__all__ = ["Conversation", "Question", "read_conversations"]

_ROLES: Final[Mapping[str, Role]] = {"assistant": "assistant", "system": "system", "tool": "tool"}
_SPOKEN_TIME = "%I:%M %p on %d %B, %Y"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that is asked of a conversation.

    Attributes:
        id: its name in the file.
        text: the question.
        category: what kind of question it is, as text; "" where the file does not say.
        evidence: the ids of the turns that answer it; may be empty.
    """

    id: str
    text: str
    category: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What one user said and was told, and what is asked of it.

    Attributes:
        id: its name in the file.
        turns: as they are remembered: `"{speaker}: {text}"`, an image's caption behind it in brackets, under the
            file's own ids.
        questions: in the order of the file.
        foreign: questions that nothing in it answers; see `memlayer.guards`.
        origins: for a turn that was cut from another one, the id of that one, which is what evidence names.
    """

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    foreign: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, strict=True)


class _ReadTurn(_Read):
    id: str
    text: str
    session: str | None = None
    time: str | None = None
    speaker: str | None = None
    caption: str | None = None


class _ReadQuestion(_Read):
    id: str
    question: str
    category: str | int | None = None
    evidence: list[str]


class _ReadConversation(_Read):
    id: str
    turns: list[_ReadTurn] = Field(min_length=1)
    questions: list[_ReadQuestion]


def read_conversations(path: str | os.PathLike[str]) -> list[Conversation]:
    """All conversations of a file.

    Raises:
        InvalidInputError: it cannot be read, holds nothing, or a line is not as it must be; `evidence["line"]` is
            its number.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise InvalidInputError(f"{name} cannot be read: {reason}") from None
    conversations = [_numbered(line, number, name) for number, line in enumerate(lines, start=1) if line.strip()]
    if not conversations:
        raise InvalidInputError(f"{name} holds no conversation")
    twice = _twice(conversation.id for conversation in conversations)
    if twice:
        raise InvalidInputError(f"{name}: two conversations have the id {twice!r}")
    return conversations


def _numbered(line: bytes, number: int, name: str) -> Conversation:
    try:
        return _conversation(_ReadConversation.model_validate_json(line))
    except ValidationError as error:
        fault = _fault(error)
    except InvalidInputError as error:
        fault = str(error)
    raise InvalidInputError(f"{name}, line {number}: {fault}", line=number)


def _fault(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "this is no JSON"
    place = ".".join(str(step) for step in first["loc"])
    return f"{place or 'the line'}: {first['msg']}"


def _conversation(read: _ReadConversation) -> Conversation:
    valid_name(read.id, name="id")
    twice = _twice(turn.id for turn in read.turns)
    if twice:
        raise InvalidInputError(f"two turns have the id {twice!r}")
    ids = {turn.id for turn in read.turns}
    return Conversation(
        id=read.id,
        turns=tuple(_turn(turn) for turn in read.turns),
        questions=tuple(_question(question, ids) for question in read.questions),
    )


def _turn(read: _ReadTurn) -> Turn:
    said = f"{read.speaker}: {read.text}" if read.speaker else read.text
    text = f"{said} [{read.caption}]" if read.caption else said
    at = None if read.time is None else _time(read.time)
    role = _ROLES.get((read.speaker or "").casefold(), "user")
    return Turn(text=text, role=role, session=read.session or None, speaker=read.speaker or None, at=at, id=read.id)


def _question(read: _ReadQuestion, ids: set[str]) -> Question:
    valid_text(read.question)
    unknown = next((turn for turn in read.evidence if turn not in ids), None)
    if unknown is not None:
        raise InvalidInputError(f"question {read.id!r} names evidence that is no turn: {unknown!r}")
    category = "" if read.category is None else str(read.category)
    return Question(id=read.id, text=read.question, category=category, evidence=frozenset(read.evidence))


def _time(text: str) -> datetime:
    for parse in (datetime.fromisoformat, _spoken_time):
        try:
            at = parse(text.strip())
        except ValueError:
            continue
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    raise InvalidInputError("a time is neither ISO 8601 nor like '1:56 pm on 8 May, 2023'")


def _spoken_time(text: str) -> datetime:
    return datetime.strptime(text, _SPOKEN_TIME)  # noqa: DTZ007  the zone is set by the caller


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
