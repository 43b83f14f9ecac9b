"""The vectors of the last questions: a chatbot that tries again, or calls a tool and goes on, asks the same again.

No question is held, only what is left of it in a keyed hash whose key ends with the process; and no user's question
answers another's, for how long it takes would tell that it was asked.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from memlayer.embedding import embed_query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder

__all__ = ["QueryCache"]

# 384 dimensions: 0.4 MB.
_QUESTIONS: Final = 256


class QueryCache:
    """The vectors of one open store's last questions; shared by threads."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._vectors: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def vector(self, embedder: Embedder, text: str, *, user_id: str) -> NDArray[np.float32]:
        """`(dimensions,)`, not to be written to; raises as `embed_query` does."""
        name = self._name(embedder, text, user_id)
        with self._lock:
            if (vector := self._vectors.get(name)) is not None:
                self._vectors.move_to_end(name)
                return vector
        vector = embed_query(embedder, text).copy()  # an embedder may give the same array again, with other numbers
        vector.setflags(write=False)
        with self._lock:
            self._vectors[name] = vector
            if len(self._vectors) > _QUESTIONS:
                self._vectors.popitem(last=False)
        return vector

    def clear(self) -> None:
        """Drops all: one may be of a text that was forgotten."""
        with self._lock:
            self._vectors.clear()

    def forked(self) -> None:
        """In the child of a fork: another thread may have held the lock."""
        self._lock = threading.Lock()

    def _name(self, embedder: Embedder, text: str, user_id: str) -> bytes:
        # The lengths make the parts tell apart; surrogates were refused where text and user came in.
        user = user_id.encode()
        parts = embedder.identity.digest(), len(user).to_bytes(4), user, text.encode()
        return hashlib.blake2b(b"".join(parts), key=self._key, digest_size=32).digest()
