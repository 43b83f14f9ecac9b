"""Where a key comes from: a passphrase, 32 bytes, a file, a recovery key, the environment.

A source gives a secret, and nothing else: what the secret opens is decided in `memlayer.keys`. No source has a default
secret, none falls back to another, and none shows its secret in a `repr`, a pickle or an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

from memlayer.errors import InvalidInputError, KeyUnavailableError
from memlayer.newfile import new_file, private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Argon2Cost",
    "KeyFile",
    "KeySource",
    "Passphrase",
    "RawKey",
    "RecoveryKey",
    "SlotKind",
    "from_environment",
]

log = logging.getLogger("memlayer")

KEY_BYTES = 32
_SHORT_PASSPHRASE = 12


class SlotKind(IntEnum):
    """What opens a key slot. The numbers are part of the format: never reuse one."""

    PASSPHRASE = 1
    KEY = 2
    RECOVERY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """The cost of turning a passphrase into a key (RFC 9106).

    Attributes:
        memory_kib: memory in KiB.
        iterations: passes over that memory.
        lanes: degree of parallelism; it is part of the result.
    """

    memory_kib: int
    iterations: int
    lanes: int


RFC_9106_LOW_MEMORY = Argon2Cost(memory_kib=65_536, iterations=3, lanes=4)
"""RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, 4 lanes. The default."""

FAST_FOR_TESTS = Argon2Cost(memory_kib=19_456, iterations=1, lanes=1)
"""The least that a store is opened with. For tests only: a guess costs a few hundredths of a second."""


class KeySource(Protocol):
    """Gives the secret that opens a store.

    Attributes:
        kind: which slots the secret may open.
    """

    kind: ClassVar[SlotKind]

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        """The secret.

        Args:
            store_id: 16 bytes; a source that keeps one secret for each store finds it by this.
            create: whether the store is being made, so that a secret that is not there yet may be made too.

        Raises:
            KeyUnavailableError: there is none, or it cannot be read.
        """
        ...


class _Secret:
    """What all sources share: a secret that is not shown and not pickled."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds a secret and cannot be pickled")


class Passphrase(_Secret):
    """A passphrase, taken exactly as it is written (no trimming, no Unicode normalisation).

    Args:
        text: the passphrase.
        cost: what a guess costs; used when a slot is made with it, an existing slot knows its own.
    """

    kind: ClassVar[SlotKind] = SlotKind.PASSPHRASE

    def __init__(self, text: str, *, cost: Argon2Cost = RFC_9106_LOW_MEMORY) -> None:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError("a passphrase must be a str that is not empty")
        try:
            self._secret = text.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("a passphrase holds a lone surrogate, which is no Unicode character") from None
        self.cost = cost

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        if create and len(self._secret) < _SHORT_PASSPHRASE:
            log.warning(
                "this passphrase is shorter than %d bytes: whoever gets the file can guess it", _SHORT_PASSPHRASE
            )
        return self._secret


class RawKey(_Secret):
    """32 random bytes that the caller keeps."""

    kind: ClassVar[SlotKind] = SlotKind.KEY

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes | bytearray) or len(key) != KEY_BYTES:
            raise InvalidInputError(f"a raw key must be exactly {KEY_BYTES} bytes", limit=KEY_BYTES)
        self._secret = bytes(key)

    @classmethod
    def generate(cls) -> RawKey:
        """A new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_base64(cls, text: str, *, name: str) -> RawKey:
        """The key that `text` encodes; `name` says where it came from, for the message."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyUnavailableError(f"{name} must be the base64 of {KEY_BYTES} bytes", name=name)
        return cls(key)

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        return self._secret


class RecoveryKey(_Secret):
    """The key that is written on paper: 56 letters and digits in groups of four, the last few a checksum."""

    kind: ClassVar[SlotKind] = SlotKind.RECOVERY
    _CHECKSUM = 3  # With 32 bytes of key it fills base32 without padding, and misses one typo in 16 million.

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InvalidInputError("a recovery key must be a str")
        letters = "".join(text.split()).replace("-", "").upper()
        try:
            decoded = base64.b32decode(letters)
        except (binascii.Error, ValueError):
            decoded = b""
        key, checksum = decoded[:KEY_BYTES], decoded[KEY_BYTES:]
        if len(decoded) != KEY_BYTES + self._CHECKSUM or checksum != self._checksum(key):
            raise InvalidInputError("this is no recovery key: a letter is missing, too many or mistyped")
        self._secret = key

    @classmethod
    def generate(cls) -> str:
        """The text of a new recovery key; show it once, memlayer keeps no copy."""
        key = secrets.token_bytes(KEY_BYTES)
        letters = base64.b32encode(key + cls._checksum(key)).decode()
        return "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))

    @classmethod
    def _checksum(cls, key: bytes) -> bytes:
        return hashlib.sha256(b"memlayer recovery key\0" + key).digest()[: cls._CHECKSUM]

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        return self._secret


class KeyFile(_Secret):
    """A file with the base64 of 32 random bytes, readable by its owner only.

    It is made, mode 0600, when the store is made and the file is not there; never for a store that exists.

    Args:
        path: the file; None means `keys/<store id>.key` in the user's config folder, never beside the database.
    """

    kind: ClassVar[SlotKind] = SlotKind.KEY

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)

    def path(self, *, store_id: bytes) -> Path:
        """The file for this store."""
        return self._path or config_folder() / "keys" / f"{store_id.hex()}.key"

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        path = self.path(store_id=store_id)
        if create:
            _create_key_file(path)
        return _read_key_file(path)

    def discard(self, *, store_id: bytes) -> None:
        """Removes the key file of a store that was not made after all; never one that the caller named."""
        if self._path is None:
            self.path(store_id=store_id).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"KeyFile({str(self._path)!r})" if self._path else "KeyFile()"


def config_folder() -> Path:
    """The user's folder for memlayer's settings and key files."""
    from platformdirs import user_config_path

    return user_config_path("memlayer", appauthor=False)


def _create_key_file(path: Path) -> None:
    """Makes the file, unless it is there."""
    try:
        private_folder(path.parent)
        with new_file(path) as draft:
            draft.write_bytes(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
    except FileExistsError:
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", "this is no path")
        raise KeyUnavailableError(
            f"the key file {path} cannot be made ({reason}); pass keys= or set MEMLAYER_KEY", path=str(path)
        ) from None
    log.info("made the key file %s: keep a copy, without it the memories cannot be read", path)
    if _looks_temporary(path):
        log.warning(
            "the key file %s is in a container or a temporary folder; if that goes, the memories go with it: keep a "
            "copy, or set MEMLAYER_KEY",
            path,
        )


def _read_key_file(path: Path) -> bytes:
    try:
        # No link is followed: whoever may write the folder could point it at a key that they know.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", "this is no path")
        raise KeyUnavailableError(
            f"the key file {path} cannot be read ({reason}); pass keys= or set MEMLAYER_KEY, or use the recovery key",
            path=str(path),
        ) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise KeyUnavailableError(f"the key file {path} is no plain file", path=str(path))
        if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyUnavailableError(
                f"the key file {path} can be read by others; run: chmod 600 {path}", path=str(path)
            )
        text = os.read(handle, 1024)
    finally:
        os.close(handle)
    return RawKey.from_base64(text.decode("ascii", "replace"), name=f"the key file {path}")._secret


def _looks_temporary(path: Path) -> bool:
    in_temp = path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
    return in_temp or Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def from_environment(environment: Mapping[str, str] | None = None) -> KeySource:
    """What `keys=None` means: MEMLAYER_KEY or MEMLAYER_PASSPHRASE where one is set, else the store's key file.

    A key named in the environment is the only one tried.

    Raises:
        KeyUnavailableError: both are set, or the one that is set is not usable.
    """
    environment = os.environ if environment is None else environment
    key, passphrase = environment.get("MEMLAYER_KEY"), environment.get("MEMLAYER_PASSPHRASE")
    if key is not None and passphrase is not None:
        raise KeyUnavailableError("both MEMLAYER_KEY and MEMLAYER_PASSPHRASE are set; unset one")
    if key is not None:
        return RawKey.from_base64(key, name="MEMLAYER_KEY")
    if passphrase is not None:
        try:
            return Passphrase(passphrase)
        except InvalidInputError:
            raise KeyUnavailableError("MEMLAYER_PASSPHRASE is set, but empty or not UTF-8") from None
    return KeyFile()
