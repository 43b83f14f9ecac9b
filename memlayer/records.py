"""The values that go in and come out: a turn to remember, a memory, a hit, a session.

They are frozen. A text is reached through `.text` only: `repr` and `str` show an id, a role and a length, so that a log
line or an error reporter that prints a memory does not print what somebody said.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from memlayer.errors import InvalidInputError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "History",
    "Hit",
    "JsonObject",
    "Memory",
    "Recall",
    "Role",
    "Session",
    "Source",
    "Turn",
    "from_microseconds",
    "image_digest",
    "to_microseconds",
    "utc",
    "valid_image",
    "valid_name",
]

Role: TypeAlias = Literal["user", "assistant", "system", "tool"]
"""Who spoke, in the words of the chat APIs."""

Source: TypeAlias = Literal["user", "assistant", "tool", "document", "import"]
"""Where a text came from, whoever put it into the conversation."""

JsonObject: TypeAlias = dict[str, Any]

# A turn of a chat is rarely over 10 kB. The bound keeps one record's seal, its embedding (about 250 parts at this
# size) and its place in RAM small enough that one call cannot take the process down.
MAX_TEXT_BYTES = 262_144
MAX_METADATA_BYTES = 16_384
# Deep enough for any honest metadata, and far from the interpreter's recursion limit.
MAX_METADATA_DEPTH = 32
MAX_NAME_BYTES = 512
# A photo of a phone is 2 to 5 MB, as chat programs send it far less. One image is one sealed item (`memlayer.items`).
MAX_IMAGE_BYTES = 4_000_000
# How the files begin that browsers and phones send, and that `memlayer.embedders.images` opens.
_IMAGE_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INT64 = range(-(2**63), 2**63)


def to_microseconds(at: datetime) -> int:
    """Microseconds since 1970 of an aware time, exactly (a float would lose the last digits)."""
    return (at - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The UTC time of `to_microseconds`."""
    return _EPOCH + timedelta(microseconds=microseconds)


def utc(at: datetime, *, name: str) -> datetime:
    """An aware time in UTC; a naive one is refused, because a guessed zone is silently wrong.

    Args:
        at: the time.
        name: what the caller calls it, for the message.
    """
    if not isinstance(at, datetime):
        raise InvalidInputError(f"{name} must be a datetime, not {type(at).__name__}", name=name)
    if at.utcoffset() is None:
        raise InvalidInputError(f"{name} has no time zone; pass an aware datetime such as datetime.now(UTC)", name=name)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(f"{name} is out of range in UTC", name=name) from None


def utf8(text: str, *, name: str) -> bytes:
    """The text as UTF-8; a lone surrogate is no character and is refused."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{name} holds a lone surrogate, which is no Unicode character", name=name) from None


def valid_name(value: str, *, name: str) -> str:
    """A user id, session, speaker or memory id: taken exactly, never folded, normalised or matched as a pattern."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a str, not {type(value).__name__}", name=name)
    if not value:
        raise InvalidInputError(f"{name} is empty", name=name)
    # Before encoding: a hostile id of megabytes is not worth a copy.
    if len(value) > MAX_NAME_BYTES or len(utf8(value, name=name)) > MAX_NAME_BYTES:
        raise LimitExceededError(
            f"{name} is longer than {MAX_NAME_BYTES} bytes in UTF-8", name=name, limit=MAX_NAME_BYTES
        )
    return value


def valid_text(text: str) -> str:
    """A text that can be remembered or asked."""
    if not isinstance(text, str):
        raise InvalidInputError(f"text must be a str, not {type(text).__name__}")
    if not text.strip():
        raise InvalidInputError("text is empty; it says nothing that could be found")
    if len(text) > MAX_TEXT_BYTES or len(utf8(text, name="text")) > MAX_TEXT_BYTES:
        raise LimitExceededError(
            f"text is longer than {MAX_TEXT_BYTES} bytes in UTF-8; split it into several turns",
            limit=MAX_TEXT_BYTES,
        )
    return text


def valid_image(image: bytes) -> bytes:
    """A PNG, JPEG, WebP or GIF file by its first bytes. It is not opened: only an embedder that reads images does."""
    if type(image) is not bytes:
        raise InvalidInputError(f"image must be the bytes of a file, not {type(image).__name__}")
    if len(image) > MAX_IMAGE_BYTES:
        raise LimitExceededError(
            f"image is larger than {MAX_IMAGE_BYTES} bytes; scale it down", size=len(image), limit=MAX_IMAGE_BYTES
        )
    if not image.startswith(_IMAGE_HEADS) and not (image.startswith(b"RIFF") and image[8:12] == b"WEBP"):
        raise InvalidInputError("image is no PNG, JPEG, WebP or GIF file")
    return image


def image_digest(image: bytes) -> str:
    """What a memory says of its image: SHA-256 of the file, 64 hex digits."""
    return hashlib.sha256(image).hexdigest()


def valid_metadata(metadata: JsonObject) -> JsonObject:
    """A copy of `metadata`, if it is a JSON object whose values come back as they went in."""
    if type(metadata) is not dict:
        raise InvalidInputError(f"metadata must be a dict, not {type(metadata).__name__}")
    # A value takes at least a byte: what has more values than bytes is refused before it is walked to its end, which
    # for lists that share lists can be far away.
    room = iter(range(MAX_METADATA_BYTES))
    copy = {_json_key(key): _json_value(value, depth=1, room=room) for key, value in metadata.items()}
    size = len(json.dumps(copy, separators=(",", ":"), ensure_ascii=False).encode())
    if size > MAX_METADATA_BYTES:
        raise LimitExceededError(
            f"metadata is {size} bytes as JSON, over {MAX_METADATA_BYTES}", size=size, limit=MAX_METADATA_BYTES
        )
    return copy


def _json_key(key: object) -> str:
    if type(key) is not str:
        raise InvalidInputError(f"metadata keys must be str, not {type(key).__name__}")
    utf8(key, name="a metadata key")
    return key


def _json_value(value: object, *, depth: int, room: Iterator[int]) -> object:
    if next(room, None) is None:
        raise LimitExceededError(f"metadata is over {MAX_METADATA_BYTES} bytes as JSON", limit=MAX_METADATA_BYTES)
    if depth > MAX_METADATA_DEPTH:
        raise LimitExceededError(f"metadata is nested more than {MAX_METADATA_DEPTH} deep", limit=MAX_METADATA_DEPTH)
    # Exact types: a subclass (an enum, a numpy scalar) would come back as another type than it went in.
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        utf8(value, name="a metadata value")
        return value
    if type(value) is int:
        # Larger ones are floats to SQLite, and would compare wrong without a word.
        if value not in _INT64:
            raise InvalidInputError("a metadata integer does not fit 64 bits; store it as a string")
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise InvalidInputError("a metadata number is NaN or infinite, which JSON cannot hold")
        return value
    if type(value) is list:
        return [_json_value(item, depth=depth + 1, room=room) for item in value]
    if type(value) is dict:
        return {_json_key(key): _json_value(item, depth=depth + 1, room=room) for key, item in value.items()}
    raise InvalidInputError(f"metadata holds a {type(value).__name__}, which is no JSON value")


class _Value(BaseModel):
    """A frozen value whose errors are memlayer's own and never repeat what was passed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, strict=True)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # What pretty printers ask for, `rich` and its tracebacks above all; `__repr__` says what may be shown.
        return []

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _own_error(error) from None


def _own_error(error: ValidationError) -> InvalidInputError:
    """The first thing that is wrong, as one of ours; `from None` at the raise, because pydantic's holds the input."""
    first = error.errors(include_input=False, include_url=False)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, InvalidInputError):
        return own
    name = ".".join(str(part) for part in first["loc"])
    return InvalidInputError(f"{name}: {first['msg']}", name=name)


class Turn(_Value):
    """One thing that somebody said, to be remembered.

    Attributes:
        text: what was said, at most 262,144 bytes in UTF-8; comes back exactly as it went in.
        role: who spoke, in the chat APIs' words.
        speaker: a name, where there are several; at most 512 bytes.
        session: which conversation it belongs to; at most 512 bytes.
        at: when it was said, with a time zone; None means now.
        metadata: a JSON object of the caller's, at most 16 KiB, that `where` filters on.
        id: the caller's own id; remembering the same id with the same content again changes nothing.
        source: where the text came from; by default what the role says.
        expires: from when on it is no longer recalled; None means never.
        image: a PNG, JPEG, WebP or GIF file of at most 4,000,000 bytes, of which the text is the caption. It is found
            by its picture where the embedder reads images, else by its caption.
    """

    text: str
    role: Role = "user"
    speaker: str | None = None
    session: str | None = None
    at: datetime | None = None
    metadata: JsonObject | None = None
    id: str | None = None
    source: Source | None = None
    expires: datetime | None = None
    image: bytes | None = None

    @field_validator("text")
    @classmethod
    def _text(cls, text: str) -> str:
        return valid_text(text)

    @field_validator("speaker", "session", "id")
    @classmethod
    def _name(cls, value: str | None, info: Any) -> str | None:
        return value if value is None else valid_name(value, name=info.field_name)

    @field_validator("at", "expires")
    @classmethod
    def _time(cls, at: datetime | None, info: Any) -> datetime | None:
        return at if at is None else utc(at, name=info.field_name)

    @field_validator("image", mode="before")
    @classmethod
    def _image(cls, image: object) -> bytes | None:
        return None if image is None else valid_image(image)  # type: ignore[arg-type]

    @field_validator("metadata", mode="before")
    @classmethod
    def _metadata(cls, metadata: object) -> JsonObject | None:
        return None if metadata is None else valid_metadata(metadata)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        # By the dict: an error reporter may show one that is only half made.
        return f"Turn(role={self.__dict__.get('role')!r}, {len(self.__dict__.get('text', ''))} characters)"

    __str__ = __repr__


class Memory(_Value):
    """One remembered turn.

    Attributes:
        id: the caller's own id where one was given, else 32 hex digits.
        text: exactly what was remembered.
        role: who spoke.
        speaker: a name, or None.
        session: the conversation, or None.
        at: when it was said, UTC.
        metadata: the caller's JSON object, {} where none was given.
        source: where the text came from.
        expires: from when on it is no longer recalled, UTC, or None.
        written: when it was stored or last updated, UTC.
        image_sha256: the SHA-256 of its image, 64 hex digits, or None; `UserMemory.image` gives the file.
    """

    id: str
    text: str
    role: Role
    speaker: str | None
    session: str | None
    at: datetime
    metadata: JsonObject
    source: Source
    expires: datetime | None
    written: datetime
    image_sha256: str | None = None

    @property
    def has_image(self) -> bool:
        """Whether it has an image."""
        return self.image_sha256 is not None

    def __repr__(self) -> str:
        known = self.__dict__
        id_, source, text = known.get("id", ""), known.get("source"), known.get("text", "")
        return f"{type(self).__name__}(id={id_[:8]!r}, source={source!r}, {len(text)} characters)"

    __str__ = __repr__


class Hit(Memory):
    """A memory that was recalled.

    Attributes:
        score: how well it fits, 0 to 1, larger is better. For a question it is calibrated: it means the same for every
            user and size of store. For a vector it is the cosine with the memory, or with its best part.
        count: how many memories have this text, but for case, spaces and punctuation; they are one hit.
        beside: the id of the hit that this one stands next to in its conversation, where `neighbours` asked for it; it
            has that one's score. None for what was found by itself.
        passage: the part of a long text that fits best, where `passages` asked for it; else None.
        parts: with `explain=True`, what the score is made of, by name (see `memlayer.ranking.Part`); else None.
        sources: of a fact, the ids of the turns that a model wrote it from (see `memlayer.facts`); () for a turn.
    """

    score: float
    count: int = 1
    beside: str | None = None
    passage: str | None = None
    parts: dict[str, float] | None = None
    sources: tuple[str, ...] = ()


class Session(_Value):
    """One conversation of one user.

    Attributes:
        id: its name, as it was remembered.
        first: the time of its earliest turn, UTC.
        last: the time of its latest turn, UTC.
        count: how many turns it has.
    """

    id: str
    first: datetime
    last: datetime
    count: int


class Recall(Sequence[Hit]):
    """What was found, best first. Immutable."""

    __slots__ = ("_hits",)

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._hits = tuple(hits)

    def as_prompt(self, *, max_tokens: int = 800) -> str:
        """The block that goes to the model, or "" when there is nothing to say; see `memlayer.prompt.render`."""
        from memlayer.prompt import render

        return render(self._hits, max_tokens=max_tokens)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Recall: ...
    def __getitem__(self, index: int | slice) -> Hit | Recall:
        return Recall(self._hits[index]) if isinstance(index, slice) else self._hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        return f"Recall({len(self._hits)} hits)"


class History(Sequence[Memory]):
    """Turns in the order in which they were said, oldest first. Immutable.

    Attributes:
        cursor: pass it as `before=` to get the turns before these; None when there are none.
    """

    __slots__ = ("_memories", "cursor")

    def __init__(self, memories: Sequence[Memory], *, cursor: str | None) -> None:
        self._memories = tuple(memories)
        self.cursor = cursor

    @overload
    def __getitem__(self, index: int) -> Memory: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Memory]: ...
    def __getitem__(self, index: int | slice) -> Memory | Sequence[Memory]:
        return self._memories[index]

    def __len__(self) -> int:
        return len(self._memories)

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories)

    def __repr__(self) -> str:
        return f"History({len(self._memories)} turns)"
