"""Manifests: what makes a missing, added, moved or replayed row an error instead of a silent loss.

A sealed field authenticates itself; it cannot say that another field is missing. So each user's row carries a sealed
manifest (how many records there are, and a keyed hash over the set of them), and each of the 4,096 buckets of the
store's directory carries a sealed manifest of the users in it. Both are rewritten in the transaction of the write. One
more stands over the store: which buckets there are, and which key slots.

The set is hashed by MSet-Add-Hash (Clarke et al., ASIACRYPT 2003): the sum, modulo 2^256, of an HMAC-SHA256 of each
element. Adding and removing one element costs one HMAC, whatever the size of the set; without the key nobody can find
two sets with one sum.

Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, replace

from memlayer.errors import LimitExceededError, StoreDamagedError

__all__ = [
    "BUCKETS",
    "BucketManifest",
    "StoreManifest",
    "UserManifest",
    "bucket_of",
    "item_element",
    "record_element",
    "user_element",
]

BUCKETS = 4096
"""How many parts the directory has: enough that on a server no row of it is hot, few enough to check all at open."""

_MODULUS = 2**256

# AES-GCM with random nonces: 2^31 seals under one key keep the chance of a repeated nonce at 2^-35, and a user's
# texts, vectors and manifests have a subkey each, so this one count for all of them is on the safe side.
MAX_SEALS = 2**31

_RECORD = struct.Struct(">c16sQHQQI16s16s")
_ITEM = struct.Struct(">cQ16sHQ16s")
_USER = struct.Struct(">c16s16s16s16s")
_MANIFEST = struct.Struct(">QQQQQ32s")
_BUCKET = struct.Struct(">QQ32s")
_STORE = struct.Struct(">Q512s32s")


def bucket_of(uref: bytes) -> int:
    """The directory bucket of a user: the first 12 bits of the user reference, which are uniform."""
    return int.from_bytes(uref[:2]) >> 4


def record_element(
    key: bytes,
    *,
    memory_id: bytes,
    seq: int,
    epoch: int,
    text_version: int,
    vector_version: int,
    embedder_no: int,
    text_tag: bytes,
    vector_tag: bytes,
) -> int:
    """One record in its user's set: every clear column of the row, and both seals by their tags.

    Raises:
        StoreDamagedError: a number or an identifier that no record can have.
    """
    numbers = (seq, epoch, text_version, vector_version, embedder_no)
    try:
        encoded = _RECORD.pack(b"r", memory_id, *numbers, text_tag, vector_tag)
    except struct.error:
        raise StoreDamagedError("a record has a number that is larger than any can be") from None
    return _element(key, memory_id, encoded)


def item_element(key: bytes, *, kind: int, item_id: bytes, epoch: int, version: int, item_tag: bytes) -> int:
    """One item in its user's set: every clear column of the row, and its seal by the tag.

    Raises:
        StoreDamagedError: a number or an identifier that no item can have.
    """
    try:
        encoded = _ITEM.pack(b"i", kind, item_id, epoch, version, item_tag)
    except struct.error:
        raise StoreDamagedError("an item has a number that is larger than any can be") from None
    return _element(key, item_id, encoded)


def user_element(key: bytes, *, uref: bytes, data_key_tag: bytes, manifest_tag: bytes, profile_tag: bytes) -> int:
    """One user in the set of a bucket: the data key, the manifest and the profile by their tags.

    The manifest's tag pins the very seal, not only its generation: of two manifests that were ever sealed for one
    generation (one of them in a transaction that was rolled back) only the committed one is in the set.
    """
    return _element(key, uref, _USER.pack(b"u", uref, data_key_tag, manifest_tag, profile_tag))


def _element(key: bytes, identifier: bytes, encoded: bytes) -> int:
    if len(identifier) != 16:
        raise StoreDamagedError("an identifier has the wrong width")  # `struct` would cut it to another one.
    return int.from_bytes(hmac.digest(key, encoded, "sha256"))


@dataclass(frozen=True, slots=True)
class UserManifest:
    """What one user's rows must add up to.

    Attributes:
        generation: counts the user's writes.
        records: how many memories there are.
        items: how many rows of the `items` table there are.
        next_seq: the insertion number of the next memory.
        seals: how many envelopes were sealed with the user's present data key.
        total: the multiset hash of all records and items, 0 <= total < 2^256.
    """

    generation: int = 0
    records: int = 0
    items: int = 0
    next_seq: int = 0
    seals: int = 0
    total: int = 0

    def changed(
        self, *, added: list[int], removed: list[int], seals: int, appended: int = 0,
        items_added: list[int] | None = None, items_removed: list[int] | None = None,
    ) -> UserManifest:  # fmt: skip
        """The manifest after one write.

        Args:
            added: the elements of new records, and of updated ones as they are now.
            removed: the elements of forgotten records, and of updated ones as they were.
            seals: how many envelopes the write sealed, the new manifest's own included.
            appended: how many insertion numbers it took.
            items_added, items_removed: likewise the elements of items.

        Raises:
            LimitExceededError: the user's data key has sealed as much as is safe.
        """
        if self.seals + seals > MAX_SEALS:
            raise LimitExceededError(
                "this user's data key has sealed as much as is safe; export the user and import it anew",
                limit=MAX_SEALS,
            )
        items_added, items_removed = items_added or [], items_removed or []
        total = self.total + sum(added) - sum(removed) + sum(items_added) - sum(items_removed)
        return replace(
            self,
            generation=self.generation + 1,
            records=self.records + len(added) - len(removed),
            items=self.items + len(items_added) - len(items_removed),
            next_seq=self.next_seq + appended,
            seals=self.seals + seals,
            total=total % _MODULUS,
        )

    def holds(self, *, records: int, total: int, items: int = 0) -> bool:
        """Whether rows that were read are exactly the ones that were written."""
        return records == self.records and items == self.items and total % _MODULUS == self.total

    def encode(self) -> bytes:
        return _MANIFEST.pack(
            self.generation, self.records, self.items, self.next_seq, self.seals, self.total.to_bytes(32)
        )

    @classmethod
    def decode(cls, encoded: bytes) -> UserManifest:
        if len(encoded) != _MANIFEST.size:
            raise StoreDamagedError("a user's manifest has the wrong size")
        generation, records, items, next_seq, seals, total = _MANIFEST.unpack(encoded)
        return cls(generation, records, items, next_seq, seals, int.from_bytes(total))


@dataclass(frozen=True, slots=True)
class BucketManifest:
    """What one bucket of the directory must add up to.

    Attributes:
        generation: counts the writes of all the users in the bucket; what the rollback guard remembers.
        users: how many users there are.
        total: the multiset hash of them, 0 <= total < 2^256.
    """

    generation: int = 0
    users: int = 0
    total: int = 0

    def changed(self, *, added: int | None, removed: int | None) -> BucketManifest:
        """The bucket after one user was written: `added` is the user as it is now, `removed` as it was; None for
        a user that is not there."""
        return BucketManifest(
            self.generation + 1,
            self.users + (added is not None) - (removed is not None),
            (self.total + (added or 0) - (removed or 0)) % _MODULUS,
        )

    def holds(self, elements: list[int]) -> bool:
        """Whether the users that were read are exactly the ones that were written."""
        return len(elements) == self.users and sum(elements) % _MODULUS == self.total

    def encode(self) -> bytes:
        return _BUCKET.pack(self.generation, self.users, self.total.to_bytes(32))

    @classmethod
    def decode(cls, encoded: bytes) -> BucketManifest:
        if len(encoded) != _BUCKET.size:
            raise StoreDamagedError("a bucket of the directory has the wrong size")
        generation, users, total = _BUCKET.unpack(encoded)
        return cls(generation, users, int.from_bytes(total))


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """What the store as a whole must hold; it changes only when a bucket is used for the first time, or a key slot or
    an embedder comes or goes.

    Attributes:
        generation: counts its changes; what the rollback guard remembers.
        buckets: the numbers of all buckets that were ever written.
        slots: 32 bytes, a digest of all key slots and embedders: a removed slot that is put back does not open the
            store.
    """

    generation: int
    buckets: frozenset[int]
    slots: bytes

    def with_bucket(self, bucket: int) -> StoreManifest:
        """The manifest once `bucket` was written for the first time."""
        if bucket in self.buckets:
            raise StoreDamagedError("the directory has lost a bucket")
        return replace(self, generation=self.generation + 1, buckets=self.buckets | {bucket})

    def with_slots(self, slots: bytes) -> StoreManifest:
        """The manifest with other key slots."""
        return replace(self, generation=self.generation + 1, slots=slots)

    def encode(self) -> bytes:
        bits = bytearray(BUCKETS // 8)
        for bucket in self.buckets:
            bits[bucket >> 3] |= 1 << (bucket & 7)
        return _STORE.pack(self.generation, bits, self.slots)

    @classmethod
    def decode(cls, encoded: bytes) -> StoreManifest:
        if len(encoded) != _STORE.size:
            raise StoreDamagedError("the store's manifest has the wrong size")
        generation, bits, slots = _STORE.unpack(encoded)
        used = [(at, byte) for at, byte in enumerate(bits) if byte]
        buckets = frozenset(at << 3 | bit for at, byte in used for bit in range(8) if byte >> bit & 1)
        return cls(generation, buckets, slots)
