"""The key hierarchy: from a secret to the key of one field of one user.

    a source's secret ── Argon2id or HKDF ── slot key
        slot key opens the store key                              one slot for each way in
            store key ── HKDF ── wrap key, directory keys, meta key
                meta key opens the index key                      user references; does not change on rotation
                wrap key opens each user's data key               32 random bytes a user
                    data key ── HKDF ── text, vector, manifest, profile, set and id keys

Commitment: AES-GCM does not commit to its key (one ciphertext may open under two), so every layer where a key is
chosen keeps a commitment beside it, an HKDF output of the key, that is compared in constant time before anything is
opened. That is also what tells a wrong key from a damaged file.

HKDF is RFC 5869 with SHA-256; Argon2id is RFC 9106.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from memlayer.envelope import Cipher, Field, Place
from memlayer.errors import StoreDamagedError, WrongKeyError
from memlayer.sources import RFC_9106_LOW_MEMORY, Argon2Cost, SlotKind

if TYPE_CHECKING:
    from memlayer.sources import KeySource

__all__ = ["KeySlot", "StoreKeys", "UserKeys", "derive", "make_slot", "open_slot", "passphrase_key"]

# The cost of a slot is read from the file, so before the key is known anybody may have written it: within these
# bounds it can neither be made worthless nor made to take the machine down.
_MIN_MEMORY_KIB, _MAX_MEMORY_KIB = 19_456, 1_048_576
_MAX_ITERATIONS = 10
_MAX_LANES = 8
_NO_COST = Argon2Cost(memory_kib=0, iterations=0, lanes=0)

MAX_SLOTS = 16
"""How many ways into one store there may be."""

_SLOT_COST = struct.Struct(">BIII16s")


def derive(key: bytes, label: bytes, *, length: int = 32) -> bytes:
    """A subkey: HKDF-Expand of a uniformly random key. Each label is used for one purpose only."""
    return HKDFExpand(SHA256(), length, b"memlayer v1 " + label).derive(key)


def passphrase_key(passphrase: bytes, *, salt: bytes, cost: Argon2Cost) -> bytes:
    """32 bytes from a passphrase.

    Raises:
        StoreDamagedError: a cost outside of what this version accepts; nothing was computed.
    """
    if len(salt) != 16 or not (
        _MIN_MEMORY_KIB <= cost.memory_kib <= _MAX_MEMORY_KIB
        and 1 <= cost.iterations <= _MAX_ITERATIONS
        and 1 <= cost.lanes <= _MAX_LANES
    ):
        raise StoreDamagedError("the salt or the cost of a passphrase is outside of what is accepted")
    return Argon2id(
        salt=salt, length=32, iterations=cost.iterations, lanes=cost.lanes, memory_cost=cost.memory_kib
    ).derive(passphrase)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """One way into the store: the store key, sealed by what one source gives. All of it stands in clear.

    Attributes:
        slot_id: its number in the store.
        epoch: which of the store's successive store keys it holds.
        kind: which sources may open it.
        cost: of the passphrase; zeros for a slot that is opened by 32 random bytes.
        salt: 16 random bytes.
        commitment: 32 bytes that tell whether a secret is this slot's.
        sealed: the store key in an envelope that is bound to all of the above.
    """

    slot_id: int
    epoch: int
    kind: SlotKind
    cost: Argon2Cost
    salt: bytes
    commitment: bytes
    sealed: bytes

    def _place(self, *, store_id: bytes) -> Place:
        described = _SLOT_COST.pack(self.kind, self.cost.memory_kib, self.cost.iterations, self.cost.lanes, self.salt)
        return Place(
            field=Field.STORE_KEY,
            store_id=store_id,
            epoch=self.epoch,
            version=self.slot_id,
            binding=sha256(described).digest(),
        )


def make_slot(
    source: KeySource, *, secret: bytes, store_key: bytes, store_id: bytes, slot_id: int, epoch: int = 1
) -> KeySlot:
    """A slot that `source` opens; `secret` is what the source gave."""
    cost = _NO_COST
    if source.kind is SlotKind.PASSPHRASE:
        cost = getattr(source, "cost", RFC_9106_LOW_MEMORY)
    salt = os.urandom(16)
    slot_key = _slot_key(secret, salt=salt, cost=cost, kind=source.kind)
    slot = KeySlot(
        slot_id=slot_id,
        epoch=epoch,
        kind=source.kind,
        cost=cost,
        salt=salt,
        commitment=derive(slot_key, b"slot commitment"),
        sealed=b"",
    )
    wrap = Cipher(derive(slot_key, b"slot wrap"))
    return replace(slot, sealed=wrap.seal(store_key, place=slot._place(store_id=store_id)))


def open_slot(slots: list[KeySlot], *, kind: SlotKind, secret: bytes, store_id: bytes) -> tuple[KeySlot, bytes]:
    """The slot that the secret opens, and the store key in it.

    Raises:
        WrongKeyError: it opens none of them. How near it came is not told.
        StoreDamagedError: the slot is the right one and was changed.
    """
    if len(slots) > MAX_SLOTS:
        # Each passphrase slot costs seconds, and nothing about them is authentic yet.
        raise StoreDamagedError(f"the store has more than {MAX_SLOTS} key slots")
    for slot in slots:
        if slot.kind is not kind:
            continue
        slot_key = _slot_key(secret, salt=slot.salt, cost=slot.cost, kind=kind)
        if hmac.compare_digest(derive(slot_key, b"slot commitment"), slot.commitment):
            place = slot._place(store_id=store_id)
            return slot, Cipher(derive(slot_key, b"slot wrap")).open(slot.sealed, place=place)
    raise WrongKeyError(
        f"this key does not open the store (it has slots for: {_kinds(slots)}); nothing was changed. "
        "Pass the right keys=, or the recovery key"
    )


def _kinds(slots: list[KeySlot]) -> str:
    return ", ".join(sorted({slot.kind.name.lower() for slot in slots})) or "no key at all"


def _slot_key(secret: bytes, *, salt: bytes, cost: Argon2Cost, kind: SlotKind) -> bytes:
    if kind is SlotKind.PASSPHRASE:
        return passphrase_key(secret, salt=salt, cost=cost)
    if cost != _NO_COST:
        raise StoreDamagedError("a key slot has a cost that its kind does not have")
    return HKDF(SHA256(), 32, salt, b"memlayer v1 slot").derive(secret)


class StoreKeys:
    """What the store key gives. A class so that no key is an attribute that a `repr` or a pickle would show.

    Attributes:
        store_id: 16 bytes.
        epoch: which of the store's successive store keys this is.
        commitment: 32 bytes, kept in clear in the store.
        sealed_index_key: the index key as it stands in the store.
        directory: seals the buckets.
        meta: seals what belongs to the store as a whole.
    """

    __slots__ = (
        "_index_key",
        "_set_key",
        "_store_key",
        "_wrap",
        "commitment",
        "directory",
        "epoch",
        "meta",
        "sealed_index_key",
        "store_id",
    )

    def __init__(self, store_key: bytes, *, store_id: bytes, epoch: int, sealed_index_key: bytes | None) -> None:
        """Args: `sealed_index_key`: as it stands in the store, or None for a new store, which gets a new one."""
        self.store_id = store_id
        self.epoch = epoch
        self._store_key = store_key
        self.commitment = derive(store_key, b"store commitment")
        self._wrap = Cipher(derive(store_key, b"wrap"))
        self.directory = Cipher(derive(store_key, b"directory"))
        self._set_key = derive(store_key, b"directory set")
        self.meta = Cipher(derive(store_key, b"meta"))
        place = Place(field=Field.INDEX_KEY, store_id=store_id, epoch=epoch)
        if sealed_index_key is None:
            self._index_key = os.urandom(32)
            self.sealed_index_key = self.meta.seal(self._index_key, place=place)
        else:
            self._index_key = self.meta.open(sealed_index_key, place=place)
            self.sealed_index_key = sealed_index_key

    @classmethod
    def unlock(
        cls, store_key: bytes, *, store_id: bytes, epoch: int, commitment: bytes, sealed_index_key: bytes
    ) -> StoreKeys:
        """The keys of an existing store.

        Raises:
            StoreDamagedError: the slot gave a store key that is not the one this store is committed to.
        """
        if not hmac.compare_digest(derive(store_key, b"store commitment"), commitment):
            raise StoreDamagedError("the store is committed to another key than its slot holds")
        return cls(store_key, store_id=store_id, epoch=epoch, sealed_index_key=sealed_index_key)

    @property
    def set_key(self) -> bytes:
        """Keys the multiset hash of the directory's buckets."""
        return self._set_key

    def new_slot(self, source: KeySource, *, secret: bytes, slot_id: int) -> KeySlot:
        """Another way to these keys; `secret` is what the source gave."""
        return make_slot(
            source,
            secret=secret,
            store_key=self._store_key,
            store_id=self.store_id,
            slot_id=slot_id,
            epoch=self.epoch,
        )

    def guard_key(self) -> bytes:
        """Authenticates the rollback guard's entries; from the index key, so that it outlives a rotation."""
        return derive(self._index_key, b"guard")

    def uref(self, user_id: str) -> bytes:
        """The 16 bytes that stand for a user in clear columns: a keyed hash of the exact UTF-8 of the id."""
        return hmac.digest(self._index_key, b"memlayer v1 user\0" + user_id.encode(), "sha256")[:16]

    def new_user(self, *, uref: bytes, epoch: int = 1) -> tuple[UserKeys, bytes]:
        """A new random data key, ready to use, and sealed."""
        data_key = os.urandom(32)
        return UserKeys(data_key, epoch=epoch), self._wrap.seal(data_key, place=self._user_place(uref, epoch))

    def open_user(self, sealed: bytes, *, uref: bytes, epoch: int, commitment: bytes) -> UserKeys:
        """The keys of a user whose row says `epoch` and `commitment`.

        Raises:
            StoreDamagedError: another user's row, or a changed one.
        """
        data_key = self._wrap.open(sealed, place=self._user_place(uref, epoch))
        keys = UserKeys(data_key, epoch=epoch)
        if not hmac.compare_digest(keys.commitment, commitment):
            raise StoreDamagedError("a user's row is committed to another data key than it holds")
        return keys

    def _user_place(self, uref: bytes, epoch: int) -> Place:
        return Place(field=Field.DATA_KEY, store_id=self.store_id, uref=uref, epoch=self.epoch, version=epoch)

    def __repr__(self) -> str:
        return f"StoreKeys(epoch={self.epoch})"

    def __reduce__(self) -> str:
        raise TypeError("StoreKeys holds keys and cannot be pickled")


class UserKeys:
    """What one user's data key gives, a subkey a purpose.

    Attributes:
        epoch: which of the user's successive data keys this is.
        commitment: 16 bytes, kept in clear in the user's row.
        text, vector, manifest, profile, item: seal those fields.
    """

    __slots__ = (
        "_id_key", "_item_id_key", "_set_key", "commitment", "epoch", "item", "manifest", "profile", "text", "vector"
    )  # fmt: skip

    def __init__(self, data_key: bytes, *, epoch: int) -> None:
        self.epoch = epoch
        self.commitment = derive(data_key, b"user commitment", length=16)
        self.text = Cipher(derive(data_key, b"text"))
        self.vector = Cipher(derive(data_key, b"vector"))
        self.manifest = Cipher(derive(data_key, b"manifest"))
        self.profile = Cipher(derive(data_key, b"profile"))
        self.item = Cipher(derive(data_key, b"item"))
        self._item_id_key = derive(data_key, b"item id")
        self._set_key = derive(data_key, b"set")
        self._id_key = derive(data_key, b"id")

    @property
    def set_key(self) -> bytes:
        """Keys the multiset hash of the user's records and items."""
        return self._set_key

    def memory_id(self, own_id: str) -> bytes:
        """The 16 bytes that a caller's own id is stored under: equal ids of two users have nothing in common."""
        return hmac.digest(self._id_key, own_id.encode(), "sha256")[:16]

    def item_id(self, kind: int, name: bytes) -> bytes:
        """The 16 bytes that a named item is stored under."""
        return hmac.digest(self._item_id_key, kind.to_bytes(8) + name, "sha256")[:16]

    def __repr__(self) -> str:
        return f"UserKeys(epoch={self.epoch})"

    def __reduce__(self) -> str:
        raise TypeError("UserKeys holds keys and cannot be pickled")
