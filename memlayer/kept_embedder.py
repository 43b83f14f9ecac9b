"""An embedder that remembers what it computed: for evaluations, which ask for the same vectors again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder, EmbedderIdentity

__all__ = ["KeptEmbedder"]


class KeptEmbedder:
    """An embedder that keeps every vector it computed, and computes none twice.

    For looking at what a store was given: the vectors that `remember` seals are these, to the bit.

    Attributes:
        vectors: by text, or by part of a text where it was split.
        query_seconds: how long all queries have taken so far.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self._queries: dict[str, NDArray[np.float32]] = {}
        self.query_seconds = 0.0

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder's own."""
        return self._embedder.identity

    @property
    def languages(self) -> frozenset[str] | None:
        """The embedder's own; None where it does not say. Ranking weighs its vectors by it."""
        languages: frozenset[str] | None = getattr(self._embedder, "languages", None)
        return languages

    def split(self, text: str) -> list[str]:
        """As the embedder does; whole where it does not."""
        split = getattr(self._embedder, "split", None)
        return [text] if split is None else list(split(text))

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row a text; only those that were never embedded reach the embedder."""
        import numpy as np

        new = list(dict.fromkeys(text for text in texts if text not in self.vectors))
        if new:
            self.vectors.update(zip(new, np.asarray(self._embedder.embed_documents(new)), strict=True))
        return np.stack([self.vectors[text] for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """In the query role; its vector is never stored."""
        if text not in self._queries:
            start = time.perf_counter()
            self._queries[text] = self._embedder.embed_query(text)
            self.query_seconds += time.perf_counter() - start
        return self._queries[text]
