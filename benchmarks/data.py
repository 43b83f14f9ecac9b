"""Made-up turns and vectors: always the same, as many as are asked for."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np

from memlayer import EmbedderIdentity, MemoryStore, RawKey, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "Known", "filled", "questions", "turns", "vectors"]

DIMENSIONS: Final = 384
_CLUSTERS: Final = 1_000
_WORDS: Final = """
garden window morning coffee report meeting train ticket sister brother doctor recipe bicycle holiday river
mountain painting guitar concert library novel chapter teacher school lesson project deadline budget invoice
laptop keyboard battery charger phone message letter parcel market apple bread cheese pepper salad dinner
lunch breakfast kitchen table chair carpet curtain lamp candle birthday present wedding party friend neighbour
dog cat horse rabbit bird forest beach island harbour bridge station airport hotel museum theatre cinema
weather storm winter summer autumn spring jacket shoes umbrella wallet passport visa language grammar piano
violin
""".split()  # noqa: SIM905  a list of them takes four times the lines
_FRAMES: Final = (
    "I told {a} about the {b} near the {c}, and number {n} was the best of them.",
    "We went to the {a} with a {b}; it took {n} minutes.",
    "My {a} broke, so I bought a {b} for {n} euros at the {c}.",
    "Can you remind me of the {a} and the {b} on day {n}?",
    "The {a} is next to the {b}. The {c} has the number {n}, and I keep forgetting where I put the key to it.",
)
_BEGAN: Final = datetime(2024, 1, 1, tzinfo=UTC)


def turns(count: int) -> Iterator[Turn]:
    """Turns of two people in conversations of forty."""
    draw = random.Random(1)  # noqa: S311  no secret depends on it
    for number in range(count):
        a, b, c = draw.choices(_WORDS, k=3)
        yield Turn(
            text=_FRAMES[number % len(_FRAMES)].format(a=a, b=b, c=c, n=number),
            speaker=("Ana", "Ben")[number % 2],
            session=f"s{number // 40}",
            at=_BEGAN + timedelta(minutes=number),
        )


def questions(count: int) -> list[str]:
    """Questions with words that stand in some of the turns."""
    draw = random.Random(2)  # noqa: S311  no secret depends on it
    return [f"Which {draw.choice(_WORDS)} did Ana put near the {draw.choice(_WORDS)} {n}?" for n in range(count)]


def vectors(count: int, *, seed: int = 3) -> NDArray[np.float32]:
    """Of length 1, shape (count, 384), in clusters as texts' are."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((_CLUSTERS, DIMENSIONS), dtype=np.float32)
    found = centres[draw.integers(_CLUSTERS, size=count)]
    found += draw.standard_normal((count, DIMENSIONS), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


class Known:
    """An embedder that costs nothing: a question's vector is looked up."""

    identity = EmbedderIdentity(model="benchmarks/known", dimensions=DIMENSIONS)

    def __init__(self) -> None:
        self._vectors = vectors(1_000, seed=4)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors[[hash(text) % len(self._vectors) for text in texts]]

    def embed_query(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._vectors[hash(text) % len(self._vectors)]
        return vector


def filled(path: Path, count: int, *, user: str = "u") -> MemoryStore:
    """An open store in which a user has so many memories."""
    store = MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=Known())
    at_once = 10_000
    made, told = vectors(count), list(turns(count))
    for start in range(0, count, at_once):
        store.user(user).remember_many(told[start : start + at_once], embeddings=made[start : start + at_once])
    return store
