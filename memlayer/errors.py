"""Every error that leaves memlayer.

    MemlayerError
    ├── InvalidInputError            (also ValueError)   a text, vector, time, id or metadata that cannot be stored
    │   ├── InvalidFilterError                           a `where` that is not in the filter language
    │   └── LimitExceededError                           larger or more than a stated limit
    ├── NotFoundError                (also LookupError)  this user has no such memory
    ├── ConflictError                                    an id that is already taken by other content
    ├── KeyUnavailableError                              no key was given, or its source does not give it
    ├── WrongKeyError                                    a key or passphrase that does not open this store or export
    ├── StorageError                                     the database failed in a way that has no better name
    │   ├── NotAStoreError                               the file is something else
    │   ├── StoreMissingError                            a store that was here is gone, or its folder is
    │   ├── StoreDamagedError                            bytes that do not authenticate
    │   │   └── RollbackDetectedError                    authentic bytes, but older than what was already seen
    │   ├── FormatTooNewError                            written by a later memlayer
    │   ├── StoreBusyError                               another process held the store for too long
    │   ├── StorageFullError                             no room on the disk
    │   ├── ReadOnlyStoreError                           the file or its folder cannot be written
    │   └── StoreClosedError                             used after close()
    ├── ExportDamagedError                               an export file that is cut short, altered or no export
    ├── EmbedderError                                    the embedder failed, or gave vectors of the wrong shape
    │   ├── EmbedderMismatchError                        not the embedder that this store was written with
    │   └── WeightsUnavailableError                      model weights that are not there, or not the expected ones
    ├── DistilError                                      the model that writes facts failed, or did not write any
    ├── RecallTimeoutError           (also TimeoutError) an adapter's recall took longer than its budget
    └── MissingExtraError            (also ImportError)  an optional dependency; the message has the install line

Each class has a stable `code` for scripts, and carries what is known as `evidence`: names, counts and limits.
Neither the message nor the evidence ever holds a memory's text, a vector, a key or a user id, so that an error may
be logged. The root is never raised itself.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ConflictError",
    "DistilError",
    "EmbedderError",
    "EmbedderMismatchError",
    "ExportDamagedError",
    "FormatTooNewError",
    "InvalidFilterError",
    "InvalidInputError",
    "KeyUnavailableError",
    "LimitExceededError",
    "MemlayerError",
    "MissingExtraError",
    "NotAStoreError",
    "NotFoundError",
    "ReadOnlyStoreError",
    "RecallTimeoutError",
    "RollbackDetectedError",
    "StorageError",
    "StorageFullError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreDamagedError",
    "StoreMissingError",
    "WeightsUnavailableError",
    "WrongKeyError",
]


class MemlayerError(Exception):
    """The root: catches everything that memlayer raises.

    Attributes:
        code: a stable name of the kind of failure, for scripts and logs.
        evidence: what is known of this failure; names, counts and limits, never content.
    """

    code: ClassVar[str] = "memlayer"

    def __init__(self, message: str, **evidence: str | int | float | bool | None) -> None:
        super().__init__(message)
        self.evidence: Mapping[str, str | int | float | bool | None] = MappingProxyType(evidence)

    def __reduce__(self) -> tuple[object, ...]:
        # An error must be able to cross into another process, and a mapping proxy cannot.
        return _again, (type(self), str(self), dict(self.evidence))


def _again(
    kind: type[MemlayerError], message: str, evidence: dict[str, str | int | float | bool | None]
) -> MemlayerError:
    return kind(message, **evidence)


class InvalidInputError(MemlayerError, ValueError):
    """A value that cannot be stored or asked for; nothing was written."""

    code = "invalid_input"


class InvalidFilterError(InvalidInputError):
    """A `where` that is not in the filter language."""

    code = "invalid_filter"


class LimitExceededError(InvalidInputError):
    """Larger, longer or more than a stated limit; `evidence["limit"]` is the limit."""

    code = "limit_exceeded"


class NotFoundError(MemlayerError, LookupError):
    """This user has no such memory. Whether anybody else has one is not told."""

    code = "not_found"


class ConflictError(MemlayerError):
    """The id is taken by a memory with other content; pass `replace=True` to overwrite it."""

    code = "conflict"


class KeyUnavailableError(MemlayerError):
    """No key was given, or its source does not give it. Nothing falls back to another key."""

    code = "key_unavailable"


class WrongKeyError(MemlayerError):
    """The key or passphrase does not open this store or export; its bytes were left as they were."""

    code = "wrong_key"


class StorageError(MemlayerError):
    """The database failed in a way that has no better name; the driver's own words are not repeated."""

    code = "storage"


class NotAStoreError(StorageError):
    """What stands at this path is no memlayer store; it was left byte for byte as it was."""

    code = "not_a_store"


class StoreMissingError(StorageError):
    """A store that was here is gone, or the folder that should hold it is not there."""

    code = "store_missing"


class StoreDamagedError(StorageError):
    """Bytes that do not authenticate: changed, moved, removed or added by somebody without the key."""

    code = "store_damaged"


class RollbackDetectedError(StoreDamagedError):
    """The store is authentic but older than what was already seen of it.

    After a backup was restored on purpose, open with `accept_rollback=True`.
    """

    code = "rollback_detected"


class FormatTooNewError(StorageError):
    """Written by a later memlayer; install that version to open it."""

    code = "format_too_new"


class StoreBusyError(StorageError):
    """Another process held the store for longer than the busy timeout; the call may be tried again."""

    code = "store_busy"


class StorageFullError(StorageError):
    """No room on the disk; the write was undone, everything earlier is intact."""

    code = "storage_full"


class ReadOnlyStoreError(StorageError):
    """The file or its folder cannot be written; reading works."""

    code = "read_only"


class StoreClosedError(StorageError):
    """The store was closed."""

    code = "closed"


class ExportDamagedError(MemlayerError):
    """An export file that is cut short, altered, or no export; nothing was imported."""

    code = "export_damaged"


class EmbedderError(MemlayerError):
    """The embedder failed, or gave vectors of the wrong shape."""

    code = "embedder"


class EmbedderMismatchError(EmbedderError):
    """Vectors of two embedders cannot be compared: this store was written with another one."""

    code = "embedder_mismatch"


class WeightsUnavailableError(EmbedderError):
    """Model weights that are not there, or whose digest is not the expected one."""

    code = "weights_unavailable"


class DistilError(MemlayerError):
    """The model that is asked for facts failed, or gives no list of facts; see `memlayer.distiller`."""

    code = "distil"


class RecallTimeoutError(MemlayerError, TimeoutError):
    """An adapter's recall took longer than its `recall_timeout`; the request went out without memory."""

    code = "recall_timeout"


class MissingExtraError(MemlayerError, ImportError):
    """An optional dependency is not installed; the message has the exact install line."""

    code = "missing_extra"
