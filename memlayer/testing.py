"""Fakes for tests and demos, of memlayer's own suite and of programs that use memlayer.

Nothing here needs weights, the network or a test framework.
"""

from __future__ import annotations

import hashlib
import re
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HashingEmbedder"]

_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """An embedder without a model: every word adds 1 or -1 to one dimension, as BLAKE2 tells (feature hashing).

    For tests and demos: it is deterministic everywhere, takes microseconds, and texts that share words are near each
    other. It knows no meaning ("car" and "automobile" are strangers), no word order and no word forms, and with few
    dimensions different words fall together. A store that people use needs a real embedder.

    Args:
        dimensions: the length of a vector. It is part of the identity.
        window: how many words `split` leaves in one part; None for no splitting. `embed_documents` reads a text whole
            in any case.

    Attributes:
        document_calls: how often `embed_documents` was called.
        query_calls: how often `embed_query` was called, which is how many queries were embedded.
        texts: how many texts were embedded, documents and queries together.
    """

    def __init__(self, dimensions: int = 64, *, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise InvalidInputError("window must be at least one word, or None")
        self._identity = EmbedderIdentity(model="memlayer.testing/hashing", dimensions=dimensions)
        self._window = window
        self._counting = threading.Lock()  # += is no atomic step, and a count that is off by one fails a test
        self.document_calls = 0
        self.query_calls = 0
        self.texts = 0

    def __repr__(self) -> str:
        return f"HashingEmbedder({self._identity.dimensions}, window={self._window})"

    @property
    def identity(self) -> EmbedderIdentity:
        """The model "memlayer.testing/hashing" with its dimensions; there are no weights to have a digest of."""
        return self._identity

    def split(self, text: str) -> list[str]:
        """The text in parts of at most `window` words; put together, they are the text."""
        if self._window is None:
            return [text]
        starts = [word.start() for word in _WORD.finditer(text)]
        cuts = [0, *starts[self._window :: self._window], len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, one row of length 1 a text, in the order given."""
        import numpy as np

        vectors = np.empty((len(texts), self._identity.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row] = self._vector(text)
        with self._counting:
            self.document_calls += 1
            self.texts += len(texts)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(dimensions,)` float32 of length 1."""
        vector = self._vector(text)
        with self._counting:
            self.query_calls += 1
            self.texts += 1
        return vector

    def _vector(self, text: str) -> NDArray[np.float32]:
        import numpy as np

        vector = np.zeros(self._identity.dimensions, dtype=np.float64)
        for word in _WORD.findall(text.casefold()):
            dimension, sign = self._hash(word)
            vector[dimension] += sign
        if not vector.any():
            # No words, or words that cancel each other out: the text as a whole is the one feature.
            vector[self._hash(text)[0]] = 1
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _hash(self, feature: str) -> tuple[int, int]:
        number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8, person=b"memlayer.testing").digest())
        return (number >> 1) % self._identity.dimensions, 1 if number & 1 else -1
