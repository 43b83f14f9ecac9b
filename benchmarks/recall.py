"""A recall with everything but its embedding, at each size, beside numpy's product and a plain read of memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data import filled, questions, vectors
from benchmarks.figures import Figure, interleaved
from memlayer.ranking import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["measure"]

_OTHER_PARTS = tuple(part for part in PARTS if part != "vector")
# Of a vector alone at 1k and 10k in milliseconds, beyond that as a multiple of numpy's product; with everything on.
_VECTOR_LIMITS = {1_000: 0.3, 10_000: 0.9}
_VECTOR_RATIO = {100_000: 1.3, 1_000_000: 1.3}
_EVERYTHING_LIMITS = {1_000: 2.0, 10_000: 5.0, 100_000: 25.0}


_FLOOR = "numpy's float32 product and argpartition"


def measure(*, sizes: Sequence[int], rounds: int) -> Iterator[Figure]:
    """All sizes."""
    for size in sizes:
        yield from _at(size, rounds=max(10, rounds if size < 100_000 else rounds // 4))


def _at(size: int, *, rounds: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, filled(Path(folder) / "store.db", size) as store:
        memory, matrix = store.user("u"), vectors(size)
        asked, said = vectors(64, seed=5), questions(64)

        def product(number: int) -> object:
            fits = matrix @ asked[number % 64]
            return np.argpartition(-fits, min(10, len(fits) - 1))[:10]

        calls: dict[str, Callable[[int], object]] = {
            "vector": lambda n: memory.recall(asked[n % 64], k=10),
            "everything": lambda n: memory.recall(said[n % 64], k=10),
            "vector leg": lambda n: memory.recall(said[n % 64], without=_OTHER_PARTS),
            "product": product,
            "read": lambda _: matrix.view(np.int64).max(),
        }
        times = interleaved(calls, rounds=rounds)
    by_vector, by_question = "Recall, the query's vector given", "Recall by a question, its embedding not counted"
    yield Figure(
        section=by_vector, name=f"by a vector, {size:,} memories", value=times["vector"], unit="ms", size=size,
        limit=_VECTOR_LIMITS.get(size, _VECTOR_RATIO.get(size)), of_floor=size in _VECTOR_RATIO,
        floor=times["product"], floor_name=_FLOOR,
    )  # fmt: skip
    yield Figure(section=by_vector, name=f"a plain read of the vectors, {size:,}", value=times["read"], unit="ms")
    yield Figure(
        section=by_question, name=f"everything on, {size:,} memories", value=times["everything"], unit="ms", size=size,
        limit=_EVERYTHING_LIMITS.get(size), floor=times["product"], floor_name=_FLOOR,
    )  # fmt: skip
    yield Figure(
        section=by_question, name=f"the vector leg alone, {size:,}", value=times["vector leg"], unit="ms",
        floor=times["product"], floor_name=_FLOOR,
    )  # fmt: skip
