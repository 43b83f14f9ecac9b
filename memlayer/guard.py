"""The rollback guard: remembers, outside of the database, how far the store has come.

Whoever can replace the file by an older copy of itself replaces it by something authentic; nothing inside can tell.
Damage to the tail of a write-ahead log has the same effect without anybody's intent. So after each commit the guard
notes the generation of the bucket that was written, in a file in the user's state folder, and opening a store whose
bucket is behind its note is a `RollbackDetectedError`.

What it does not see: the last write before a crash, if the process died between the commit and the note; and somebody
who rolls back the guard's file together with the store.

The file of one store at one path: a header with the path and the file's identity, so that a store that is renamed takes
its notes along (to another file system it does not: there, as for a copy, the guard begins anew); then for each of the
4,096 buckets, and for the store's own manifest behind them, two slots that are written in turn, each

    generation u64 | last 8 bytes of the bucket's seal | HMAC-SHA256 of both and their place, 16 bytes

The seal tells two states of one generation apart, such as one that was restored and written to again. A note that is
torn or lost leaves the one before it, and an old note only weakens the guard, so it is not synced. The file is sparse:
a store with few users takes few blocks.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import struct
import threading
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from memlayer.errors import RollbackDetectedError, StoreMissingError
from memlayer.manifest import BUCKETS
from memlayer.newfile import new_file, private_folder, storage_error

try:
    import fcntl
except ImportError:  # not on Windows: two processes may then overwrite each other's note by an older one
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FileGuard", "Note", "compare", "forget_path", "refuse_missing", "refuse_other", "state_folder"]

log = logging.getLogger("memlayer")

_MAGIC = b"MLGUARD1"
_HEADER = 8192
_HEAD = struct.Struct(">8sQQH")
_NOTE = struct.Struct(">Q8s")
_SLOT = 32
_EMPTY = bytes(_SLOT)
_PAIRS = BUCKETS + 1

Note: TypeAlias = tuple[int, bytes]
"""How far a bucket has come: its generation, and the tag of its seal."""


class FileGuard:
    """The guard's file for one store at one path.

    Args:
        folder: where all guards of this user are kept.
        store_id: 16 bytes.
        path: the database's resolved path: a copy of a store starts a guard of its own.
        key: 32 bytes that authenticate the notes, so that they cannot be raised to lock an owner out.

    Attributes:
        moved_here: whether the notes were taken along from another path.
    """

    def __init__(self, folder: Path, *, store_id: bytes, path: Path, key: bytes) -> None:
        self._folder = folder
        self._store_id = store_id
        self._path = path
        self._key = key
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._broken = False
        self.moved_here = False

    @property
    def file(self) -> Path:
        """Where the notes are."""
        return self._folder / f"{self._store_id.hex()}-{_path_digest(self._path)}.guard"

    def noted(self) -> dict[int, Note]:
        """What was noted, by bucket.

        Read it before the store: what is committed between the two is then newer than its note, never older.

        Raises:
            RollbackDetectedError: the notes were altered.
        """
        try:
            self._carry_over()
            return self._read_all()
        except OSError as error:
            self._give_up(error)
            return {}

    def note(self, bucket: int, note: Note) -> None:
        """Notes that a write was committed. Never raises: memory that cannot be guarded is still memory."""
        if not self._broken:
            try:
                self._note(bucket, note)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Closes the file; the next note opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def forked(self) -> None:
        """In the child of a fork: a lock and a file handle of its own, for a lock on the parent's would be shared."""
        self._lock = threading.Lock()
        self.close()

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        log.warning("the rollback guard %s cannot be kept (%s); an older copy of the store would not be noticed",
                    self.file, error.strerror)  # fmt: skip

    def _read_all(self) -> dict[int, Note]:
        with self._locked() as file:
            file.seek(_HEADER)
            notes = file.read(_PAIRS * 2 * _SLOT).ljust(_PAIRS * 2 * _SLOT, b"\0")
        noted = {}
        for bucket in range(_PAIRS):
            pair = notes[bucket * 2 * _SLOT : (bucket + 1) * 2 * _SLOT]
            if not pair.strip(b"\0"):
                continue
            newest = max(self._read_slot(bucket, slot, pair) for slot in (0, 1))
            # An empty slot beside a bad one: the very first note, torn.
            if not newest[0] and _EMPTY not in (pair[:_SLOT], pair[_SLOT:]):
                raise RollbackDetectedError(
                    "the rollback guard of this store was altered or damaged; if that is accounted for, open with "
                    "accept_rollback=True",
                    override="accept_rollback=True",
                )
            if newest[0]:
                noted[bucket] = newest
        return noted

    def _note(self, bucket: int, note: Note) -> None:
        offset = _HEADER + bucket * 2 * _SLOT
        encoded = _NOTE.pack(note[0], note[1][-8:])
        with self._locked() as file:
            file.seek(offset)
            pair = file.read(2 * _SLOT).ljust(2 * _SLOT, b"\0")
            first, second = (self._read_slot(bucket, slot, pair) for slot in (0, 1))
            if max(first[0], second[0]) >= note[0]:
                return  # Another process has already noted a later write.
            # Over the older of the two, so that a torn write leaves the newer one.
            slot = 0 if first[0] <= second[0] else 1
            file.seek(offset + slot * _SLOT)
            file.write(encoded + self._mac(bucket, slot, encoded))

    def _read_slot(self, bucket: int, slot: int, pair: bytes) -> Note:
        """The note in one slot; generation 0 where there is no authentic one."""
        raw = pair[slot * _SLOT : (slot + 1) * _SLOT]
        encoded = raw[: _NOTE.size]
        if raw == _EMPTY or not hmac.compare_digest(raw[_NOTE.size :], self._mac(bucket, slot, encoded)):
            return 0, b""
        generation, seal = _NOTE.unpack(encoded)
        return generation, seal

    def _mac(self, bucket: int, slot: int, encoded: bytes) -> bytes:
        place = self._store_id + os.fsencode(self._path) + struct.pack(">HB", bucket, slot)
        return hmac.digest(self._key, place + encoded, "sha256")[: _SLOT - _NOTE.size]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileIO]:
        with self._lock:
            while True:
                if self._file is None:
                    self._file = self._opened()
                if fcntl is not None:
                    fcntl.flock(self._file, fcntl.LOCK_EX)
                if os.fstat(self._file.fileno()).st_nlink:
                    break
                # Another process accepted a rollback and began a new file: this one is read by nobody any more.
                self._file.close()
                self._file = None
            try:
                yield self._file
            finally:
                if fcntl is not None:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def _opened(self) -> FileIO:
        """The file, unbuffered: each note is one write of 32 bytes."""
        private_folder(self._folder)
        with contextlib.suppress(FileNotFoundError):
            return FileIO(self.file, "r+")
        path = os.fsencode(self._path)
        # FileExistsError: another process made it at the same moment.
        with contextlib.suppress(FileExistsError), new_file(self.file) as draft, open(draft, "wb") as file:
            file.write(_HEAD.pack(_MAGIC, *_identity(self._path), len(path)) + path)
            file.truncate(_HEADER + _PAIRS * 2 * _SLOT)
        return FileIO(self.file, "r+")

    def _carry_over(self) -> None:
        """Where the store was moved here, takes the notes of its old path along."""
        if self.file.exists():
            return
        for other in self._folder.glob(f"{self._store_id.hex()}-*.guard"):
            identity, old_path = _head_of(other)
            if old_path.exists() or identity != _identity(self._path):
                continue  # Not that file under another name, but a copy of it, which starts a guard of its own.
            old = FileGuard(self._folder, store_id=self._store_id, path=old_path, key=self._key)
            try:
                noted = old._read_all()
            finally:
                old.close()
            self.moved_here = True
            for bucket, note in noted.items():
                self._note(bucket, note)
            other.unlink(missing_ok=True)


def compare(noted: Mapping[int, Note], buckets: Mapping[int, Note]) -> None:
    """Raises if any bucket of the store is behind its note.

    Args:
        noted: by bucket, read before `buckets`.
        buckets: as they stand in the store.

    Raises:
        RollbackDetectedError: naming the override.
    """
    behind = 0
    for bucket, (generation, seal) in noted.items():
        present, present_seal = buckets.get(bucket, (0, b""))
        behind += present < generation or (present == generation and present_seal[-8:] != seal)
    if behind:
        raise RollbackDetectedError(
            "the store is older than what this machine last saw of it; if a backup was restored on purpose, open it "
            "with accept_rollback=True",
            override="accept_rollback=True",
            buckets=behind,
        )


def state_folder() -> Path:
    """Where this user's guards are kept."""
    from platformdirs import user_state_path

    return user_state_path("memlayer", appauthor=False) / "guard"


def refuse_missing(folder: Path, path: Path) -> None:
    """Before a store is made at `path`: raises if there was one that is gone.

    Raises:
        StoreMissingError: naming the override.
    """
    known = next(iter(_guards_of(folder, path)), None)
    # Looked at last: another process may have made both in this moment.
    if known is not None and not path.exists():
        raise StoreMissingError(
            f"there was a store at {path} and it is gone; restore it, or open with accept_rollback=True to start anew",
            override="accept_rollback=True",
        )


def forget_path(folder: Path, path: Path) -> None:
    """Drops what is known of a store at `path`, when its loss was accepted."""
    for known in _guards_of(folder, path):
        try:
            known.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, known) from None


def refuse_other(folder: Path, path: Path, *, store_id: bytes) -> None:
    """Raises if the store that was last seen at `path` was another one than stands there now.

    Raises:
        RollbackDetectedError: naming the override.
    """
    if any(not known.name.startswith(store_id.hex()) for known in _guards_of(folder, path)):
        raise RollbackDetectedError(
            f"another store than this one was at {path} when it was last opened; if it was replaced on purpose, open "
            "it with accept_rollback=True",
            override="accept_rollback=True",
        )


def _guards_of(folder: Path, path: Path) -> list[Path]:
    """The guards of all stores that were seen at a path; none where the folder cannot be read."""
    try:
        return list(folder.glob(f"*-{_path_digest(path)}.guard"))
    except OSError:
        return []


def _path_digest(path: Path) -> str:
    return sha256(os.fsencode(path)).hexdigest()[:32]


def _identity(path: Path) -> tuple[int, int]:
    """What a file keeps when it is renamed on its file system, and a copy of it has not."""
    status = path.stat()
    return status.st_dev & (2**64 - 1), status.st_ino & (2**64 - 1)


def _head_of(file: Path) -> tuple[tuple[int, int], Path]:
    head = b""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        head = opened.read(_HEADER)
    if len(head) < _HEADER or not head.startswith(_MAGIC):
        return (0, 0), file
    _, device, inode, length = _HEAD.unpack_from(head)
    return (device, inode), Path(os.fsdecode(head[_HEAD.size : _HEAD.size + length]))
