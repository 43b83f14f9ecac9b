"""What stands inside of a record's two seals: the turn as compact JSON, and its vectors.

Text field, padded:    {"a": at, "c": written, "i": own id, "m": metadata, "o": source, "r": role, "s": session,
                        "t": text, "w": speaker, "x": expires, "p": SHA-256 of the image, 64 hex digits}; times in
                        microseconds, absent keys are None or {}.
Vector field:          layout u8 = 1 | dimensions u16 | count u16 | count x (kind u8, dtype u8, part u16) | vectors

Both are read after they have been authenticated, so a surprise in them is a later version's or our own mistake, never
an attacker's; it is refused all the same.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer.envelope import pad, unpad
from memlayer.errors import FormatTooNewError, LimitExceededError, StoreDamagedError
from memlayer.records import Memory, from_microseconds, to_microseconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VectorKind", "count_pictures", "decode_turn", "decode_vectors", "encode_turn", "encode_vectors"]

_ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
_SOURCES = {"u": "user", "a": "assistant", "t": "tool", "d": "document", "i": "import"}
_ROLE_CODES = {role: code for code, role in _ROLES.items()}
_SOURCE_CODES = {source: code for code, source in _SOURCES.items()}
_TYPES = {
    "a": int, "c": int, "i": str, "m": dict, "o": str, "p": str, "r": str, "s": str, "t": str, "w": str, "x": int,
}  # fmt: skip

MAX_PARTS = 4096
"""How many vectors a memory may have: the longest text in parts of 254 word pieces has about a thousand."""

_LAYOUT = 1
_FLOAT32 = 1
_HEAD = struct.Struct(">BHH")
_ENTRY = struct.Struct(">BBH")


class VectorKind(IntEnum):
    """What a vector was made from. The numbers are part of the format: never reuse one."""

    OWN = 1
    PART = 2
    CONTEXT = 3
    IMAGE = 4


# One encoder for all: `json.dumps` makes one a call, which takes as long as the encoding.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encode_turn(memory: Memory, *, own_id: str | None) -> bytes:
    """The padded content of a text field; `own_id` is the caller's id, None where memlayer chose one."""
    values: dict[str, Any] = {
        "a": to_microseconds(memory.at),
        "c": to_microseconds(memory.written),
        "i": own_id,
        "m": memory.metadata or None,
        "o": _SOURCE_CODES[memory.source],
        "p": memory.image_sha256,
        "r": _ROLE_CODES[memory.role],
        "s": memory.session,
        "t": memory.text,
        "w": memory.speaker,
        "x": None if memory.expires is None else to_microseconds(memory.expires),
    }
    compact = {key: value for key, value in values.items() if value is not None}
    return pad(_encode(compact).encode())


def decode_turn(padded: bytes, *, memory_id: bytes) -> tuple[Memory, str | None]:
    """The memory, and the caller's own id of it or None.

    Raises:
        FormatTooNewError: it has keys or codes that this version does not know.
        StoreDamagedError: it is not what `encode_turn` makes.
    """
    try:
        values = json.loads(unpad(padded))
        if not isinstance(values, dict):
            raise TypeError
        if not _TYPES.keys() >= values.keys():
            raise FormatTooNewError("a memory has fields that this memlayer does not know")
        if any(type(value) is not _TYPES[key] for key, value in values.items()):
            raise TypeError
        own_id = values.get("i")
        expires = values.get("x")
        memory = Memory.model_construct(
            id=own_id if own_id is not None else memory_id.hex(),
            text=values["t"],
            role=_ROLES[values["r"]],
            speaker=values.get("w"),
            session=values.get("s"),
            at=from_microseconds(values["a"]),
            metadata=values.get("m", {}),
            source=_SOURCES[values["o"]],
            expires=None if expires is None else from_microseconds(expires),
            written=from_microseconds(values["c"]),
            image_sha256=values.get("p"),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise StoreDamagedError("a memory is not written as it must be") from None
    return memory, own_id


def encode_vectors(vectors: NDArray[np.float32], *, pictures: int = 0) -> bytes:
    """The content of a vector field.

    Args:
        vectors: `(n, dimensions)`, those of the text first: one row is the turn's own, several are its parts.
        pictures: how many rows at the end are of the turn's image: 0 or 1.
    """
    count, dimensions = vectors.shape
    if count > MAX_PARTS:
        raise LimitExceededError(
            f"the embedder splits this text into {count} parts, over {MAX_PARTS}; split it into several turns",
            limit=MAX_PARTS,
        )
    return _HEAD.pack(_LAYOUT, dimensions, count) + _entries(count, pictures) + vectors.astype("<f4").tobytes()


def decode_vectors(encoded: bytes) -> NDArray[np.float32]:
    """`(n, dimensions)` float32, a view of `encoded`; what the rows are of, `count_pictures` tells.

    Raises:
        FormatTooNewError: a layout, kind or dtype that this version does not know.
        StoreDamagedError: it is not what `encode_vectors` makes.
    """
    if len(encoded) < _HEAD.size:
        raise StoreDamagedError("a vector field is cut short")
    layout, dimensions, count = _HEAD.unpack_from(encoded)
    body = _HEAD.size + count * _ENTRY.size
    if layout != _LAYOUT:
        raise FormatTooNewError("a vector field has a layout that this memlayer does not know", layout=layout)
    if not 1 <= count <= MAX_PARTS or not dimensions or len(encoded) != body + count * dimensions * 4:
        raise StoreDamagedError("a vector field has the wrong size")
    entries = encoded[_HEAD.size : body]
    if entries != _entries(count, count_pictures(encoded)):
        for kind, dtype, _ in _ENTRY.iter_unpack(entries):
            if dtype != _FLOAT32 or kind not in (VectorKind.OWN, VectorKind.PART, VectorKind.IMAGE):
                raise FormatTooNewError(
                    "a vector is of a kind that this memlayer does not know", kind=kind, dtype=dtype
                )
        raise StoreDamagedError("a vector field has other parts than it must have")
    return np.frombuffer(encoded, dtype="<f4", offset=body).reshape(count, dimensions).astype(np.float32, copy=False)


def count_pictures(encoded: bytes) -> int:
    """How many of the vectors, at the end, are of the turn's image: 0 or 1. For what `decode_vectors` takes."""
    _, _, count = _HEAD.unpack_from(encoded)
    return int(count > 1 and encoded[_HEAD.size + (count - 1) * _ENTRY.size] == VectorKind.IMAGE)


def _entries(count: int, pictures: int) -> bytes:
    """What a turn's vectors are: one of the text is its own, several are its parts in their order; its image's last."""
    texts = count - pictures
    kind = VectorKind.OWN if texts == 1 else VectorKind.PART
    entries = [_ENTRY.pack(kind, _FLOAT32, part) for part in range(texts)]
    return b"".join(entries + [_ENTRY.pack(VectorKind.IMAGE, _FLOAT32, part) for part in range(pictures)])
