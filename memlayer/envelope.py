"""The sealed envelope: how one field of one row is encrypted, and what it is bound to.

Layout of format 1, 34 bytes longer than the plaintext:

    0x4D | format u8 = 1 | suite u8 = 1 | flags u8 = 0 | epoch u16 | nonce 12 | ciphertext | tag 16

Suite 1 is AES-256-GCM (NIST SP 800-38D). The associated data has a fixed width, so that no two places share one:

    "memlayer\\0" | format u8 | suite u8 | field u8 | store 16 | user 16 | record 16
                 | epoch u16 | version u64 | binding 32

What holds because of it:

1. An envelope opens in the one place it was sealed for: another field, store, user, record, key epoch or version of
   it fails to authenticate. Moving, swapping or replaying a row within the reach of one key is an error.
2. The reader takes the format and the suite from this file, never from the row; anything else is refused.
3. Every envelope has a nonce of its own, 96 random bits. Two of q envelopes under one key collide with probability
   q^2 / 2^97: 2^-35 at the 2^31 seals after which `memlayer.manifest` stops a key, below NIST's 2^-32. Random nonces,
   not counters, because several processes seal with one key and files are restored from snapshots.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memlayer.errors import FormatTooNewError, StoreDamagedError

__all__ = ["OVERHEAD", "Cipher", "Field", "Place", "pad", "tag", "unpad"]

MAGIC = 0x4D
FORMAT = 1
AES_256_GCM = 1

_HEADER = struct.Struct(">BBBBH")
_NONCE = 12
_TAG = 16
OVERHEAD = _HEADER.size + _NONCE + _TAG
"""How many bytes an envelope is longer than its plaintext: 34."""

_AAD = struct.Struct(">9sBBB16s16s16sHQ32s")
_DOMAIN = b"memlayer\0"
NOBODY = bytes(16)
UNBOUND = bytes(32)


class Field(IntEnum):
    """What is sealed. The numbers are part of the format: never reuse one."""

    TEXT = 1
    VECTOR = 2
    MANIFEST = 3
    PROFILE = 4
    DATA_KEY = 5
    BUCKET = 6
    INDEX_KEY = 7
    EMBEDDER = 8
    STORE_KEY = 9
    STORE = 10
    ITEM = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an envelope belongs; all of it is authenticated with the content.

    Attributes:
        field: what it is.
        store_id: 16 random bytes of the store.
        uref: 16 bytes, the HMAC of the user id; zeros for what belongs to the store.
        record: 16 bytes, the id of a memory or an item; zeros elsewhere.
        epoch: which of the owner's successive keys sealed it.
        version: the generation that wrote it, or the number of a slot, bucket or embedder.
        binding: 32 bytes of whatever else must be equal, such as the digest of the embedder's identity.
    """

    field: Field
    store_id: bytes
    uref: bytes = NOBODY
    record: bytes = NOBODY
    epoch: int = 0
    version: int = 0
    binding: bytes = UNBOUND

    def associated_data(self) -> bytes:
        """The fixed-width encoding that is authenticated with the content."""
        widths = (len(self.store_id), len(self.uref), len(self.record), len(self.binding))
        try:
            if widths == (16, 16, 16, 32):
                return _AAD.pack(
                    _DOMAIN,
                    FORMAT,
                    AES_256_GCM,
                    self.field,
                    self.store_id,
                    self.uref,
                    self.record,
                    self.epoch,
                    self.version,
                    self.binding,
                )
        except struct.error:
            pass  # A number of a row that is larger than any that was ever written.
        # `struct` would cut or fill up an identifier of another width, and two places could share one encoding.
        raise StoreDamagedError("a row names a place that cannot be", field=self.field.name)


class Cipher:
    """One key, ready to seal and open. A class so that the key itself is never an attribute, shown or pickled."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, plaintext: bytes, *, place: Place) -> bytes:
        """An envelope of `plaintext` that opens in `place` only."""
        nonce = os.urandom(_NONCE)
        header = _HEADER.pack(MAGIC, FORMAT, AES_256_GCM, 0, place.epoch)
        return header + nonce + self._aead.encrypt(nonce, plaintext, place.associated_data())

    def open(self, envelope: bytes, *, place: Place) -> bytes:
        """The plaintext, if `envelope` was sealed with this key for `place`.

        Raises:
            FormatTooNewError: written in a format or suite that this version does not know.
            StoreDamagedError: anything else that is not exactly what was sealed.
        """
        if len(envelope) < OVERHEAD:
            raise StoreDamagedError("a sealed field is cut short", field=place.field.name)
        magic, version, suite, flags, epoch = _HEADER.unpack_from(envelope)
        if magic != MAGIC:
            raise StoreDamagedError("a sealed field has a damaged header", field=place.field.name)
        if version != FORMAT or suite != AES_256_GCM:
            raise FormatTooNewError(
                "a sealed field is in a format that this memlayer does not know", format=version, suite=suite
            )
        if flags != 0 or epoch != place.epoch:
            raise StoreDamagedError("a sealed field has a damaged header", field=place.field.name)
        nonce = envelope[_HEADER.size : _HEADER.size + _NONCE]
        try:
            return self._aead.decrypt(nonce, envelope[_HEADER.size + _NONCE :], place.associated_data())
        except InvalidTag:
            # Not chained: a reporter that captures locals would walk the cause into frames that hold keys.
            raise StoreDamagedError(
                "a sealed field does not authenticate: it was changed, moved or replaced", field=place.field.name
            ) from None

    def __repr__(self) -> str:
        return "Cipher(AES-256-GCM)"

    def __reduce__(self) -> str:
        raise TypeError("a Cipher holds a key and cannot be pickled")


def tag(envelope: bytes) -> bytes:
    """The last 16 bytes: they stand for the whole envelope, because nobody without the key can make another
    content with the same tag."""
    return envelope[-_TAG:]


_LENGTH = struct.Struct(">I")
_BLOCK = 256
_PADME_ABOVE = 4096


def pad(content: bytes) -> bytes:
    """`content` with its length before it and zeros behind it, so that its size says little.

    Up to 4 KiB to a multiple of 256 bytes; above, Padmé (Nikitin et al., PETS 2019), at most 12 % longer.
    """
    size = _padded(_LENGTH.size + len(content))
    return (_LENGTH.pack(len(content)) + content).ljust(size, b"\0")


def unpad(padded: bytes) -> bytes:
    """The content of `pad`; anything that `pad` does not make is refused."""
    if len(padded) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(padded)
        content = padded[_LENGTH.size : _LENGTH.size + length]
        if pad(content) == padded:
            return content
    raise StoreDamagedError("a sealed field is not padded as it must be")


def _padded(length: int) -> int:
    if length <= _PADME_ABOVE:
        return -(-length // _BLOCK) * _BLOCK
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask
