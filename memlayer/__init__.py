"""memlayer: a memory layer for any LLM, isolated per user and encrypted at rest, in one SQLite file.

    from memlayer import MemoryStore

    with MemoryStore.open("memories.db") as store:
        alice = store.user("alice")
        alice.remember("I'm allergic to peanuts")
        print(alice.recall("what can't I eat?").as_prompt())

Encryption at rest and isolation per user; not end-to-end, not zero-knowledge: the running process sees plaintext, and
what is recalled goes to the model that the caller chose.
"""

from typing import TYPE_CHECKING

from memlayer.embedders.protocol import Embedder, EmbedderIdentity, SplittingEmbedder
from memlayer.errors import (
    ConflictError,
    DistilError,
    EmbedderError,
    EmbedderMismatchError,
    ExportDamagedError,
    FormatTooNewError,
    InvalidFilterError,
    InvalidInputError,
    KeyUnavailableError,
    LimitExceededError,
    MemlayerError,
    MissingExtraError,
    NotAStoreError,
    NotFoundError,
    ReadOnlyStoreError,
    RecallTimeoutError,
    RollbackDetectedError,
    StorageError,
    StorageFullError,
    StoreBusyError,
    StoreClosedError,
    StoreDamagedError,
    StoreMissingError,
    WeightsUnavailableError,
    WrongKeyError,
)
from memlayer.records import History, Hit, Memory, Recall, Session, Turn
from memlayer.reports import DistilReport, ErasureReceipt, ImportReport, KeySlotInfo, ReembedReport, VerifyReport
from memlayer.sources import KeyFile, KeySource, Passphrase, RawKey, RecoveryKey
from memlayer.store import MemoryStore
from memlayer.wrapping import wrap

if TYPE_CHECKING:
    from memlayer.aio import AsyncMemoryStore, AsyncUserMemory
    from memlayer.distiller import Distiller
    from memlayer.facts import Fact

__all__ = [
    "AsyncMemoryStore",
    "AsyncUserMemory",
    "ConflictError",
    "DistilError",
    "DistilReport",
    "Distiller",
    "Embedder",
    "EmbedderError",
    "EmbedderIdentity",
    "EmbedderMismatchError",
    "ErasureReceipt",
    "ExportDamagedError",
    "Fact",
    "FormatTooNewError",
    "History",
    "Hit",
    "ImportReport",
    "InvalidFilterError",
    "InvalidInputError",
    "KeyFile",
    "KeySlotInfo",
    "KeySource",
    "KeyUnavailableError",
    "LimitExceededError",
    "MemlayerError",
    "Memory",
    "MemoryStore",
    "MissingExtraError",
    "NotAStoreError",
    "NotFoundError",
    "Passphrase",
    "RawKey",
    "ReadOnlyStoreError",
    "Recall",
    "RecallTimeoutError",
    "RecoveryKey",
    "ReembedReport",
    "RollbackDetectedError",
    "Session",
    "SplittingEmbedder",
    "StorageError",
    "StorageFullError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreDamagedError",
    "StoreMissingError",
    "Turn",
    "VerifyReport",
    "WeightsUnavailableError",
    "WrongKeyError",
    "wrap",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this gives

    def __getattr__(name: str) -> object:
        # Imported when they are asked for: their methods are made from those of UserMemory, and that brings numpy.
        if name in ("AsyncMemoryStore", "AsyncUserMemory"):
            from memlayer import aio

            return getattr(aio, name)
        if name == "Distiller":
            from memlayer.distiller import Distiller

            return Distiller
        if name == "Fact":
            from memlayer.facts import Fact

            return Fact
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
