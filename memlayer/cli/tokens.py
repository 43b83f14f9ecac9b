"""The file of `memlayer mcp --tokens`: who may use the server over HTTP, and as which user.

One JSON object, from token to user. A token stands there as it is, or as the SHA-256 of it, so that the file does not
open anything by itself:

    {"sha256:2bb80d53...": "alice", "a token of 16 characters or more": "bob"}

SHA-256 without salt or stretching is enough only because a token is random and long, as `openssl rand -hex 32` makes
them: there is nothing to guess from its digest.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import stat
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.records import valid_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Tokens"]

LEAST_CHARACTERS = 16  # 64 bits in hex. A floor against passwords and placeholders; make them longer.
MAX_FILE_BYTES = 4 * 2**20
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


class Tokens:
    """Which user a token stands for. Holds digests alone.

    Args:
        users: from token, or "sha256:" and its digest in hex, to user.

    Raises:
        InvalidInputError: a token is too short, a user is none, or there is nobody.
    """

    def __init__(self, users: dict[str, str]) -> None:
        if not users:
            raise InvalidInputError("there is no token in it, so nobody could use the server")
        self._users = {_digest(token): valid_name(user, name="a token's user") for token, user in users.items()}
        if len(self._users) < len(users):
            raise InvalidInputError("the same token is in it twice, in clear and as its digest")

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Those in a file, which nobody but its owner may read.

        Raises:
            InvalidInputError: it cannot be read, others can read it, or it is not as described above.
        """
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                text = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or "this is no path"
            raise InvalidInputError(f"the token file {path} cannot be read ({reason})", path=str(path)) from None
        if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
            raise InvalidInputError(f"the token file {path} can be read by others; run: chmod 600 {path}")
        if len(text) > MAX_FILE_BYTES:
            raise LimitExceededError(f"the token file {path} is over {MAX_FILE_BYTES} bytes", limit=MAX_FILE_BYTES)
        try:
            users = json.loads(text.decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raise InvalidInputError(f"the token file {path} is not JSON, or says something twice") from None
        if not isinstance(users, dict) or not all(isinstance(user, str) for user in users.values()):
            raise InvalidInputError(f"the token file {path} is no JSON object from token to user")
        try:
            return cls(users)
        except InvalidInputError as error:
            raise InvalidInputError(f"the token file {path}: {error}") from None

    @property
    def users(self) -> list[str]:
        """Every user who has a token."""
        return sorted(set(self._users.values()))

    def user(self, token: str) -> str | None:
        """The user whom a token stands for, or None. Takes the same time whichever token it is, or is like."""
        given = sha256(token.encode(errors="surrogatepass")).digest()
        found = None
        for digest, user in self._users.items():
            if hmac.compare_digest(digest, given):
                found = user
        return found

    def __repr__(self) -> str:
        return f"Tokens({len(self._users)})"


def _digest(token: str) -> bytes:
    if hashed := _HASHED.fullmatch(token):
        return bytes.fromhex(hashed[1])
    if len(token) < LEAST_CHARACTERS:
        raise InvalidInputError(f"a token has less than {LEAST_CHARACTERS} characters, and could be guessed")
    # What is in no header as it is cannot come in one; "sha256:" in capitals is a digest mistyped.
    if not re.fullmatch(r"[!-~]+", token) or token.lower().startswith("sha256:"):
        raise InvalidInputError("a token must be printable ASCII without spaces, or sha256: and 64 hex digits")
    return sha256(token.encode()).digest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found
