"""What it takes: bytes on the disk, bytes of RAM."""

from __future__ import annotations

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

_RESIDENT = """
import resource, sys
from pathlib import Path
from memlayer import MemoryStore, RawKey
from benchmarks.data import Known, vectors
def held():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
asked = vectors(1, seed=5)[0]
with MemoryStore.open(sys.argv[1], keys=RawKey(bytes(32)), embedder=Known()) as store:
    store.user("nobody").recall(asked)
    before = held()
    store.user("u").recall(asked, k=10)
    store.user("u").recall("Which ticket did Ana lose?", k=10)
    print(held() - before)
"""


def measure(*, sizes: Sequence[int]) -> Iterator[Figure]:
    """At each size."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.db"
            filled(path, size).close()
            yield Figure(
                section="Footprint", name=f"on the disk, a memory of {size:,}", unit="kB", size=size,
                value=path.stat().st_size / size / 1e3, limit=2.3 if size >= 1_000 else None,
                floor=384 * 4 / 1e3, floor_name="its vector in float32",
            )  # fmt: skip
            if not sys.platform.startswith("linux"):
                continue
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _RESIDENT, str(path)],
                check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
            yield Figure(
                section="Footprint", name=f"in RAM, {size:,} memories", unit="MB", size=size,
                value=int(done.stdout) / 1e6, floor=384 * 4 * size / 1e6, floor_name="their vectors in float32",
            )  # fmt: skip
