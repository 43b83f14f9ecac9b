"""What memlayer asks of a reranker.

An embedder measures question and text apart from each other; a reranker reads both at once, which is better and far
slower, so it only ever sees the best of the first stage. It measures and never writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Reranker"]


@runtime_checkable
class Reranker(Protocol):
    """Anything with a name that says how relevant texts are to a query.

    It keeps no time budget: whoever calls it has one, and goes on without it. It may be called by several threads.
    """

    @property
    def name(self) -> str:
        """Which model, for explanations and logs."""
        ...

    def rerank(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n,)` float32, one relevance a text from 0 to 1, in the order given; each maps the scale of its model."""
        ...
