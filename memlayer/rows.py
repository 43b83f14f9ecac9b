"""The rows of the tables, as they are read and written: bytes and numbers."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar, get_type_hints

__all__ = [
    "IMAGE_KIND",
    "SIZES",
    "TYPES",
    "BucketRow",
    "EmbedderRow",
    "ItemId",
    "ItemRow",
    "MetaRow",
    "RecordRow",
    "Row",
    "RowCount",
    "SlotRow",
    "UserRow",
]


IMAGE_KIND: Final = 6
"""The kind of the items that are read one by one, where they are asked for, because of their size."""


class MetaRow(NamedTuple):
    """The store itself; one row."""

    magic: bytes
    format: int
    store_id: bytes
    sk_epoch: int
    commitment: bytes
    index_key: bytes
    manifest: bytes


class SlotRow(NamedTuple):
    """One way to the store key."""

    slot_id: int
    sk_epoch: int
    kind: int
    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes
    commitment: bytes
    sealed: bytes


class EmbedderRow(NamedTuple):
    """One embedder that the store was written with."""

    embedder_no: int
    sealed: bytes


class BucketRow(NamedTuple):
    """One bucket of the directory."""

    bucket: int
    sealed: bytes


class UserRow(NamedTuple):
    """One user."""

    uref: bytes
    sk_epoch: int
    dek_epoch: int
    commitment: bytes
    generation: int
    data_key: bytes
    manifest: bytes
    profile: bytes


class RecordRow(NamedTuple):
    """One memory."""

    uref: bytes
    memory_id: bytes
    seq: int
    dek_epoch: int
    changed: int
    text_version: int
    vector_version: int
    embedder_no: int
    text: bytes
    vector: bytes


class ItemRow(NamedTuple):
    """One thing of a user's that is no memory."""

    uref: bytes
    kind: int
    item_id: bytes
    dek_epoch: int
    version: int
    sealed: bytes


class ItemId(NamedTuple):
    """Which item a row holds."""

    kind: int
    item_id: bytes


class RowCount(NamedTuple):
    """How many rows a user has in one table."""

    uref: bytes
    rows: int


Row = TypeVar("Row", MetaRow, SlotRow, EmbedderRow, BucketRow, UserRow, RecordRow, ItemRow, ItemId, RowCount)

# The columns of one size. The schema holds it too, but a damaged file need not keep to its schema.
SIZES: dict[type, dict[str, int]] = {
    MetaRow: {"magic": 8, "store_id": 16, "commitment": 32, "index_key": 66, "manifest": 586},
    SlotRow: {"salt": 16, "commitment": 32, "sealed": 66},
    EmbedderRow: {},
    BucketRow: {"sealed": 82},
    UserRow: {"uref": 16, "commitment": 16, "data_key": 66, "manifest": 106},
    RecordRow: {"uref": 16, "memory_id": 16},
    ItemRow: {"uref": 16, "item_id": 16},
    ItemId: {"item_id": 16},
    RowCount: {"uref": 16},
}

TYPES: dict[type, tuple[type, ...]] = {kind: tuple(get_type_hints(kind).values()) for kind in SIZES}
