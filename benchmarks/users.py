"""Many users in one store, a random one each time, none of them in RAM."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.data import Known, turns, vectors
from benchmarks.figures import Figure, interleaved
from memlayer import MemoryStore, RawKey

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]


def measure(*, users: int, each: int, rounds: int) -> Iterator[Figure]:
    """`users` with `each` memories."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        made, told = vectors(each), list(turns(each))
        with MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=Known()) as store:
            for number in range(users):
                store.user(f"u{number}").remember_many(told, embeddings=made)
        order = list(range(users))
        random.Random(7).shuffle(order)  # noqa: S311  no secret depends on it
        # A budget of nothing: whoever is asked pushes the one before out.
        with MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=Known(), cache_bytes=1) as store:
            times = interleaved(
                {"cold": lambda n: store.user(f"u{order[n % users]}").recall(made[0], k=10)}, rounds=rounds
            )
        yield Figure(
            section="Many users", name=f"{users:,} users of {each} memories, a random one each time, all cold",
            value=times["cold"], unit="ms", limit=3.0,
        )  # fmt: skip
