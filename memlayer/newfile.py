"""A new file that appears whole or not at all.

It is made under a temporary name in the same folder, synced, and linked to its name: a link fails where a file is, so
nothing is ever overwritten, and of two processes that make the same file one wins. A crash at any moment leaves either
no file of that name or the whole one.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memlayer.errors import InvalidInputError, ReadOnlyStoreError, StorageError, StorageFullError, StoreMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["named", "new_file", "private_folder", "storage_error"]


def named(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that a caller names.

    Raises:
        InvalidInputError: the path is empty, or holds a NUL.
    """
    text = os.fsdecode(os.fspath(path))
    if not text or "\0" in text:
        raise InvalidInputError("this path cannot name a file: it is empty, or holds a NUL")
    return Path(os.path.abspath(text))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, mode 0600; it becomes `path` when the block ends without an error.

    Whatever opens the file in the block must have closed it at the end: SQLite finds its log by the name, and its locks
    do not survive that somebody else opens and closes the file.

    Raises:
        FileExistsError: there is a file at `path`; it is as it was.
        OSError: the folder cannot be written.
    """
    draft = path.with_name(f".memlayer-{secrets.token_hex(8)}.new")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield draft
        _sync(draft)
        _link(draft, path)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{draft}{suffix}")
    _sync(path.parent)


def private_folder(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for the owner alone (mode 0700)."""
    for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder))


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links, such as FAT. The name is taken first, so that two makers still do not meet.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(draft, path)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    if folder and os.name != "posix":
        return  # A folder cannot be opened on Windows, and need not be synced.
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(error: OSError, path: Path) -> StorageError | InvalidInputError:
    """What a failure to make a file at `path` is called."""
    if isinstance(error, FileExistsError):
        return InvalidInputError(f"there is a file at {path} already; choose another name", path=str(path))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreMissingError(f"there is no folder {path.parent}; make it first", path=str(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(f"no room on the disk for {path}", path=str(path))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ReadOnlyStoreError(f"the folder {path.parent} cannot be written", path=str(path))
    return StorageError(f"{path} cannot be written: {error.strerror}", path=str(path))
