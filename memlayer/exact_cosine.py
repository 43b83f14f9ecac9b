"""The baseline that recall is measured against: what any memory without a ranking of its own would find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ExactCosine"]


class ExactCosine:
    """All turns by the cosine of their best part, of equal ones the earlier first.

    Args:
        ids: of the turns.
        vectors: of each turn `(parts, dimensions)`, unit length.
    """

    def __init__(self, ids: Sequence[str], vectors: Sequence[NDArray[np.float32]]) -> None:
        self._ids = ids
        self._matrix = np.concatenate(vectors).astype(np.float64)
        parts = np.array([len(own) for own in vectors])
        self._firsts = np.cumsum(parts) - parts

    def nearest(self, query: NDArray[np.float32], *, k: int) -> list[tuple[str, float]]:
        """The ids and cosines of the `k` best, best first."""
        # Not a matrix product: a sum along the row depends on the row alone, so equal vectors tie exactly.
        cosines = (self._matrix * query).sum(axis=1)
        best = np.maximum.reduceat(cosines, self._firsts)
        return [(self._ids[turn], float(best[turn])) for turn in np.argsort(-best, kind="stable")[:k]]
