"""Remembering: one turn and many, beside the bare commit that makes a row durable."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlcipher3 import dbapi2 as driver

from benchmarks.data import Known, turns, vectors
from benchmarks.figures import Figure, interleaved
from memlayer import MemoryStore, RawKey

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]

_ROW = os.urandom(2_000)


def measure(*, many: int, rounds: int) -> Iterator[Figure]:
    """One turn at a time, and `many` at once."""
    section = "Remember, vectors given"
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryStore.open(Path(folder) / "store.db", keys=RawKey(bytes(32)), embedder=Known()) as store,
    ):
        bare = driver.connect(str(Path(folder) / "bare.db"), isolation_level=None)
        bare.execute("PRAGMA journal_mode=WAL")
        bare.execute("PRAGMA synchronous=FULL")
        bare.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, sealed BLOB)")

        def commit(_: int) -> None:
            bare.execute("BEGIN IMMEDIATE")
            bare.execute("INSERT INTO rows (sealed) VALUES (?)", (_ROW,))
            bare.execute("COMMIT")

        one, made = store.user("one"), vectors(1)
        said = list(turns(rounds + 3))
        times = interleaved(
            {"one": lambda n: one.remember_many([said[n]], embeddings=made), "commit": commit}, rounds=rounds
        )
        bare.close()
        yield Figure(
            section=section, name="one turn", value=times["one"], unit="ms",
            floor=times["commit"], floor_name="a bare commit of a row of 2 kB",
        )  # fmt: skip
        yield Figure(
            section=section, name="one turn, beyond the bare commit", value=times["one"] - times["commit"], unit="ms",
            limit=0.6,
        )  # fmt: skip
        told, made = list(turns(many)), vectors(many)
        start = time.perf_counter()
        store.user("many").remember_many(told, embeddings=made)
        took = time.perf_counter() - start
        yield Figure(
            section=section,
            name=f"{many:,} turns in one call",
            value=many / took,
            unit="turns/s",
            limit=25_000,
            more=True,
        )
