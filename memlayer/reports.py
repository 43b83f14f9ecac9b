"""What the larger operations give back: receipts and counts, without content."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

__all__ = ["DistilReport", "ErasureReceipt", "ImportReport", "KeySlotInfo", "ReembedReport", "VerifyReport"]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DistilReport(_Report):
    """What one call of `Distiller.run()` did.

    Attributes:
        turns: how many turns the model has read.
        facts: how many facts were added.
        superseded: how many facts were superseded by them.
        calls: how many times the model was asked.
        unusable: how many turns it read without giving an answer that could be used; they stay due, and this distiller
            leaves them alone.
        due: how many turns are left that it has not read, those among them.
    """

    turns: int
    facts: int
    superseded: int
    calls: int
    unusable: int
    due: int


class ErasureReceipt(_Report):
    """What `erase()` destroyed.

    Attributes:
        at: when, UTC.
        store: the store's id, 32 hex digits.
        user: the user's reference in the store, 32 hex digits; it says nothing about the user id without the key.
        memories: how many there were.
        files_clean: whether the file was written anew and the write-ahead log emptied, so that no file of the store
            holds a byte of them; False when another process was in the way, or the disk full: then erase again.
    """

    at: datetime
    store: str
    user: str
    memories: int
    files_clean: bool


class ImportReport(_Report):
    """What `import_()` did.

    Attributes:
        added: memories that were not there.
        kept: memories that were there already, with the same content.
    """

    added: int
    kept: int


class ReembedReport(_Report):
    """What one call of `reembed()` did; what an earlier one had done before it was interrupted does not count.

    Attributes:
        users: how many users were moved to the new embedder.
        memories: how many memories these have.
        embedded: how many texts were embedded for it.
        files_clean: whether the file was written anew and the write-ahead log emptied, so that no file of the store
            holds a byte of the old vectors; False when another process was in the way, or disk or memory too small:
            then call it again.
    """

    users: int
    memories: int
    embedded: int
    files_clean: bool


class VerifyReport(_Report):
    """What `verify()` checked and found intact.

    Attributes:
        users: how many users, each with manifest and profile.
        memories: how many memories were opened, text and vectors.
        buckets: how many buckets of the directory.
        pages: how many pages the database file has.
    """

    users: int
    memories: int
    buckets: int
    pages: int


class KeySlotInfo(_Report):
    """One way into the store.

    Attributes:
        slot: its number, for `remove_key`.
        kind: "passphrase", "key" or "recovery".
        used: whether it is the one that this store was opened with.
    """

    slot: int
    kind: str
    used: bool
