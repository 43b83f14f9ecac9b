"""An export: all memories of one user in one sealed file, with a key of its own.

    "memlayer export\\n" | format u8 = 1 | Argon2id memory u32, passes u32, lanes u32 | salt 16 | commitment 32
    chunk ...

Each chunk is AES-256-GCM of 64 KiB (the last one of less), in the STREAM construction (Hoang et al., CRYPTO 2015; as
in age): the nonce is the number of the chunk and a flag on the last one, so that chunks cannot be reordered, dropped,
or taken for the end. Counting nonces are safe because the key is new in every file: it is derived from a random salt.
The header is associated data of every chunk.

Inside is a sequence of frames, each with its length before it: first what the export is, then the memories, oldest
first, each as its id, its text field and its vector field (see `memlayer.payload`). A memory that says that it has an
image is followed by a frame that is the file.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import ValidationError

from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.embedding import given_vectors
from memlayer.errors import (
    ExportDamagedError,
    FormatTooNewError,
    InvalidInputError,
    StoreDamagedError,
    WrongKeyError,
)
from memlayer.keys import derive, passphrase_key
from memlayer.newfile import named, new_file, storage_error
from memlayer.payload import count_pictures, decode_turn, decode_vectors, encode_turn, encode_vectors
from memlayer.records import Memory, Turn, image_digest
from memlayer.sources import RFC_9106_LOW_MEMORY, Argon2Cost, Passphrase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.vault import OpenedRecord

__all__ = ["ExportedRecord", "SealedExport", "open_export", "write_export"]

_MAGIC = b"memlayer export\n"
_FORMAT = 1
_HEADER = struct.Struct(">16sBIII16s32s")
_CHUNK = 65_536
_TAG = 16
_NONCE = struct.Struct(">3xQB")
_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">16sII")
# The longest text with the most vectors that a record can hold is far below; a length is never trusted further.
_MAX_FRAME = 1 << 28
_PORTION = 500
_PORTION_IMAGE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRecord:
    """One memory of an export.

    Attributes:
        memory_id: the 16 bytes that it had in its store.
        memory: what was remembered.
        own_id: the caller's id of it, or None.
        vectors: `(n, dimensions)` float32, unit length.
        pictures: how many of them, at the end, are of the image: 0 or 1.
        image: the file, or None.
    """

    memory_id: bytes
    memory: Memory
    own_id: str | None
    vectors: NDArray[np.float32]
    pictures: int = 0
    image: bytes | None = None


def write_export(
    path: str | os.PathLike[str],
    records: Iterable[OpenedRecord],
    *,
    identity: EmbedderIdentity,
    passphrase: str,
    image: Callable[[OpenedRecord], bytes | None] = lambda _: None,
    cost: Argon2Cost = RFC_9106_LOW_MEMORY,
) -> int:
    """Writes an export, mode 0600; how many memories it holds.

    Args:
        path: a file that does not exist.
        records: read one after the other, never all at once.
        identity: of the embedder that made the vectors.
        passphrase: opens the export, whatever the store's own key.
        image: gives the image of a memory.
        cost: of a guess at it.
    """
    target = named(path)
    salt = os.urandom(16)
    key = passphrase_key(Passphrase(passphrase).secret(store_id=b"", create=True), salt=salt, cost=cost)
    header = _HEADER.pack(
        _MAGIC, _FORMAT, cost.memory_kib, cost.iterations, cost.lanes, salt, derive(key, b"export commitment")
    )
    written = 0

    def frames() -> Iterator[bytes]:
        nonlocal written
        about = {"identity": json.loads(identity.to_json()), "version": _FORMAT}
        yield json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
        for record in records:
            text = encode_turn(record.memory, own_id=record.own_id)
            vectors = encode_vectors(record.vectors, pictures=record.pictures)
            yield _RECORD.pack(record.memory_id, len(text), len(vectors)) + text + vectors
            if (file_of_it := image(record)) is not None:
                yield file_of_it
            written += 1

    try:
        with new_file(target) as draft, open(draft, "wb") as file:
            file.write(header)
            for chunk in _sealed(frames(), aead=AESGCM(derive(key, b"export")), header=header):
                file.write(chunk)
    except OSError as error:
        raise storage_error(error, target) from None
    return written


def _sealed(frames: Iterable[bytes], *, aead: AESGCM, header: bytes) -> Iterator[bytes]:
    buffer = bytearray()
    number = 0
    for frame in frames:
        buffer += _LENGTH.pack(len(frame)) + frame
        # More than one chunk's worth must be there before one is sealed as not the last.
        while len(buffer) > _CHUNK:
            yield aead.encrypt(_NONCE.pack(number, 0), bytes(buffer[:_CHUNK]), header)
            del buffer[:_CHUNK]
            number += 1
    yield aead.encrypt(_NONCE.pack(number, 1), bytes(buffer), header)


@contextmanager
def open_export(path: str | os.PathLike[str], *, passphrase: str) -> Iterator[SealedExport]:
    """An export, once every byte of it has been authenticated and every memory in it read.

    Raises:
        ExportDamagedError: cut short, altered, or no export.
        FormatTooNewError: written by a later memlayer.
        WrongKeyError: not its passphrase.
    """
    try:
        file = open(named(path), "rb")  # noqa: SIM115  closed below; an error of the block is not an error of the opening
    except OSError as error:
        raise InvalidInputError(f"the export {os.fspath(path)} cannot be read: {error.strerror}") from None
    with file:
        export = SealedExport(file, passphrase=passphrase)
        for _ in export.portions():
            pass
        yield export


class SealedExport:
    """An open export. A class because it is read twice, first to check and then to take.

    Attributes:
        identity: of the embedder that made the vectors.
    """

    def __init__(self, file: BinaryIO, *, passphrase: str) -> None:
        self._file = file
        self._header = file.read(_HEADER.size)
        if len(self._header) != _HEADER.size or not self._header.startswith(_MAGIC):
            raise ExportDamagedError("this file is no memlayer export")
        _, version, memory_kib, iterations, lanes, salt, commitment = _HEADER.unpack(self._header)
        if version != _FORMAT:
            raise FormatTooNewError("this export is in a format that this memlayer does not know", format=version)
        cost = Argon2Cost(memory_kib=memory_kib, iterations=iterations, lanes=lanes)
        try:
            key = passphrase_key(Passphrase(passphrase).secret(store_id=b"", create=False), salt=salt, cost=cost)
        except StoreDamagedError:
            raise ExportDamagedError("the header of this export is damaged") from None
        if not hmac.compare_digest(derive(key, b"export commitment"), commitment):
            raise WrongKeyError("this passphrase does not open the export, or its header was altered")
        self._aead = AESGCM(derive(key, b"export"))
        self.identity = self._identity(next(self._frames(), b""))

    def portions(self) -> Iterator[list[ExportedRecord]]:
        """All memories from the first on, some hundreds at a time; fewer where they have images."""
        frames = self._frames()
        next(frames)
        portion: list[ExportedRecord] = []
        image_bytes = 0
        seen: set[bytes | str | None] = set()
        for frame in frames:
            record = self._record(frame, frames)
            ids = {record.memory_id, record.own_id} - {None}
            if seen & ids:
                raise ExportDamagedError("two memories of this export have the same id")
            seen |= ids
            portion.append(record)
            image_bytes += len(record.image or b"")
            if len(portion) == _PORTION or image_bytes > _PORTION_IMAGE_BYTES:
                yield portion
                portion, image_bytes = [], 0
        yield portion

    def _frames(self) -> Iterator[bytes]:
        buffer = bytearray()
        for chunk in self._chunks():
            buffer += chunk
            while len(buffer) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer)
                if length > _MAX_FRAME:
                    raise ExportDamagedError("a memory of this export is larger than any can be")
                if len(buffer) < _LENGTH.size + length:
                    break
                yield bytes(buffer[_LENGTH.size : _LENGTH.size + length])
                del buffer[: _LENGTH.size + length]
        if buffer:
            raise ExportDamagedError("this export ends in the middle of a memory")

    def _chunks(self) -> Iterator[bytes]:
        self._file.seek(_HEADER.size)
        number = 0
        sealed = self._file.read(_CHUNK + _TAG)
        while True:
            following = self._file.read(_CHUNK + _TAG)
            try:
                yield self._aead.decrypt(_NONCE.pack(number, 0 if following else 1), sealed, self._header)
            except (InvalidTag, ValueError):
                raise ExportDamagedError("this export was altered or cut short; nothing was imported") from None
            if not following:
                return
            sealed, number = following, number + 1

    @staticmethod
    def _identity(frame: bytes) -> EmbedderIdentity:
        try:
            about = json.loads(frame)
            if about["version"] != _FORMAT:
                raise FormatTooNewError("this export was written by a later memlayer")
            return EmbedderIdentity.model_validate(about["identity"])
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
            raise ExportDamagedError("this export does not say what it is") from None

    def _record(self, frame: bytes, following: Iterator[bytes]) -> ExportedRecord:
        try:
            memory_id, text_size, vector_size = _RECORD.unpack_from(frame)
            if len(frame) != _RECORD.size + text_size + vector_size:
                raise ExportDamagedError("a memory of this export has the wrong size")
            text_end = _RECORD.size + text_size
            memory, own_id = decode_turn(frame[_RECORD.size : text_end], memory_id=memory_id)
            vectors, pictures = decode_vectors(frame[text_end:]), count_pictures(frame[text_end:])
            image = next(following, b"") if memory.has_image else None
            # Whoever gave us this file may have written it: what it holds must pass what a new turn must pass.
            _as_turn(memory, own_id=own_id, image=image)
            if (pictures and image is None) or (image is not None and image_digest(image) != memory.image_sha256):
                raise ExportDamagedError("an image of this export is not the one that its memory was remembered with")
            vectors = given_vectors(vectors, rows=len(vectors), dimensions=self.identity.dimensions)
        except (struct.error, InvalidInputError, StoreDamagedError):
            raise ExportDamagedError("a memory of this export is not as it must be") from None
        return ExportedRecord(
            memory_id=memory_id, memory=memory, own_id=own_id, vectors=vectors, pictures=pictures, image=image
        )


def _as_turn(memory: Memory, *, own_id: str | None, image: bytes | None) -> Turn:
    return Turn(
        text=memory.text,
        role=memory.role,
        speaker=memory.speaker,
        session=memory.session,
        at=memory.at,
        metadata=memory.metadata,
        id=own_id,
        source=memory.source,
        expires=memory.expires,
        image=image,
    )
