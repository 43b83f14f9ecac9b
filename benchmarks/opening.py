"""What the first answer waits for: import, open, the first recall; in new processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.data import filled
from benchmarks.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["measure"]

_FIRST_RECALL = """
import time, sys
from memlayer import MemoryStore, RawKey
from benchmarks.data import Known, vectors
asked = vectors(1, seed=5)[0]
with MemoryStore.open(sys.argv[1], keys=RawKey(bytes(32)), embedder=Known()) as store:
    start = time.perf_counter()
    store.user("u").recall(asked, k=10)
    print(time.perf_counter() - start)
"""
_WHOLE = """
import time; start = time.perf_counter()
import sys
from memlayer import MemoryStore, RawKey
with MemoryStore.open(sys.argv[1], keys=RawKey(bytes(32)), embedder=sys.argv[2]) as store:
    store.user("u").recall("Which ticket did Ana lose?", k=10)
print(time.perf_counter() - start)
assert ("torch" in sys.modules) == (sys.argv[2] == "torch")
"""
_IMPORT = "import time; start = time.perf_counter(); import memlayer; print(time.perf_counter() - start)"
_FIRST_LIMITS = {10_000: 40.0, 100_000: 300.0}


def measure(*, sizes: Sequence[int], rounds: int) -> Iterator[Figure]:
    """First recalls at these sizes, and the whole of a new process at 10,000 memories."""
    section = "Cold start"
    yield Figure(section=section, name="import memlayer", value=_milliseconds(_IMPORT, rounds=rounds), unit="ms")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "store.db")
            filled(Path(path), size).close()
            yield Figure(
                section=section, name=f"first recall after opening, {size:,} memories", size=size, unit="ms",
                value=_milliseconds(_FIRST_RECALL, path, rounds=rounds), limit=_FIRST_LIMITS.get(size),
            )  # fmt: skip
    yield from _whole(rounds=rounds)


def _whole(*, rounds: int) -> Iterator[Figure]:
    """A new process: import, open, the first recall of a user by a text; with the default embedder and with torch."""
    from benchmarks.data import turns, vectors
    from memlayer import MemoryStore, RawKey

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        with MemoryStore.open(path, keys=RawKey(bytes(32))) as store:
            store.user("u").remember_many(turns(10_000), embeddings=vectors(10_000))
        times: dict[str, list[float]] = {"onnx": [], "torch": []}
        for _ in range(rounds):
            for runtime, took in times.items():
                took.append(_milliseconds(_WHOLE, str(path), runtime, rounds=1))
        yield Figure(
            section="Cold start", name="a new process to its first recall by a text, 10,000 memories", unit="ms",
            value=statistics.median(times["onnx"]), limit=1_000.0,
        )  # fmt: skip
        yield Figure(
            section="Cold start", name="the same, and torch beside it", unit="ms",
            value=statistics.median(times["onnx"]), floor=statistics.median(times["torch"]), floor_name="with torch",
            limit=0.2, of_floor=True,
        )  # fmt: skip


def _milliseconds(program: str, *arguments: str, rounds: int) -> float:
    """The median of what a program says that it took."""
    took = []
    for _ in range(rounds):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program, *arguments],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        took.append(float(done.stdout) * 1e3)
    return statistics.median(took)
