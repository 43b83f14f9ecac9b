"""The schema, as numbered migrations: append-only, each run once and in one transaction.

`{blob}` stands for the database's type of bytes (BLOB, or BYTEA on PostgreSQL); everything else is the SQL that both
take. There is no default, trigger, view or virtual table: a store whose schema holds anything that is not written here
is refused when it is opened, which closes the class of attacks in which a database file brings its own code.

Every table but the store's own few is keyed by the user reference first, and no key comes from a sequence.
"""

from __future__ import annotations

__all__ = ["APPLICATION_ID", "FORMAT", "MAGIC", "MIGRATIONS", "statements"]

FORMAT = 1
"""The format version of everything in the store."""

MAGIC = b"memlayer"

APPLICATION_ID = 0x4D4C5931
""""MLY1" in the header of the SQLite file, so that file(1) and we can tell it from other databases."""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE meta (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    magic {blob} NOT NULL CHECK (length(magic) = 8),
    format BIGINT NOT NULL,
    store_id {blob} NOT NULL CHECK (length(store_id) = 16),
    sk_epoch BIGINT NOT NULL,
    commitment {blob} NOT NULL CHECK (length(commitment) = 32),
    index_key {blob} NOT NULL CHECK (length(index_key) = 66),
    manifest {blob} NOT NULL CHECK (length(manifest) = 586)
)""",
        """CREATE TABLE key_slots (
    slot_id BIGINT NOT NULL PRIMARY KEY,
    sk_epoch BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    memory_kib BIGINT NOT NULL,
    iterations BIGINT NOT NULL,
    lanes BIGINT NOT NULL,
    salt {blob} NOT NULL CHECK (length(salt) = 16),
    commitment {blob} NOT NULL CHECK (length(commitment) = 32),
    sealed {blob} NOT NULL CHECK (length(sealed) = 66)
)""",
        """CREATE TABLE embedders (
    embedder_no BIGINT NOT NULL PRIMARY KEY,
    sealed {blob} NOT NULL
)""",
        """CREATE TABLE directory (
    bucket BIGINT NOT NULL PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
    sealed {blob} NOT NULL CHECK (length(sealed) = 82)
)""",
        """CREATE TABLE users (
    uref {blob} NOT NULL PRIMARY KEY CHECK (length(uref) = 16),
    sk_epoch BIGINT NOT NULL,
    dek_epoch BIGINT NOT NULL,
    commitment {blob} NOT NULL CHECK (length(commitment) = 16),
    generation BIGINT NOT NULL,
    data_key {blob} NOT NULL CHECK (length(data_key) = 66),
    manifest {blob} NOT NULL CHECK (length(manifest) = 106),
    profile {blob} NOT NULL
)""",
        """CREATE TABLE records (
    uref {blob} NOT NULL CHECK (length(uref) = 16) REFERENCES users (uref),
    memory_id {blob} NOT NULL CHECK (length(memory_id) = 16),
    seq BIGINT NOT NULL,
    dek_epoch BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    text_version BIGINT NOT NULL,
    vector_version BIGINT NOT NULL,
    embedder_no BIGINT NOT NULL,
    text {blob} NOT NULL,
    vector {blob} NOT NULL,
    PRIMARY KEY (uref, memory_id)
)""",
        """CREATE INDEX records_changed ON records (uref, changed)""",
        """CREATE TABLE items (
    uref {blob} NOT NULL CHECK (length(uref) = 16) REFERENCES users (uref),
    kind BIGINT NOT NULL,
    item_id {blob} NOT NULL CHECK (length(item_id) = 16),
    dek_epoch BIGINT NOT NULL,
    version BIGINT NOT NULL,
    sealed {blob} NOT NULL,
    PRIMARY KEY (uref, kind, item_id)
)""",
    ),
}


def statements(*, blob: str = "BLOB") -> list[str]:
    """All migrations in order, for a new store."""
    return [statement.replace("{blob}", blob) for number in sorted(MIGRATIONS) for statement in MIGRATIONS[number]]
