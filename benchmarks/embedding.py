"""Embedding: the default and int8, beside sentence-transformers on torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.figures import Figure, interleaved, timed
from memlayer.embedders import MiniLM, OnnxMiniLM, StaticEmbedder
from memlayer.embedders.weights import find
from memlayer.trials import chats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memlayer.embedders import Embedder

__all__ = ["measure"]

_TORCH = "sentence-transformers on torch"
_BATCHES = (16, 32, 64)


def measure(*, texts: int, rounds: int) -> Iterator[Figure]:
    """One query, and so many texts in bulk."""
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(find()), device="cpu")
    embedders: dict[str, Embedder] = {
        "fp32": OnnxMiniLM(), "int8": OnnxMiniLM(int8=True), "static": StaticEmbedder(), "ours on torch": MiniLM()
    }  # fmt: skip
    said = [turn.text for chat in chats() for turn in chat.turns]
    asked = [question.text for chat in chats() for question in chat.questions]

    def query(embedder: Embedder) -> Callable[[int], object]:
        return lambda n: embedder.embed_query(asked[n % len(asked)])

    calls = {name: query(embedder) for name, embedder in embedders.items()}
    calls["torch"] = lambda n: reference.encode(asked[n % len(asked)])
    times = interleaved(calls, rounds=rounds)
    section = "Embedding"
    for name, limit in (("fp32", 1 / 2), ("int8", 1 / 3.5), ("static", None), ("ours on torch", None)):
        yield Figure(
            section=section, name=f"one query, {name}", value=times[name], unit="ms", floor=times["torch"],
            floor_name=_TORCH, limit=limit, of_floor=True,
        )  # fmt: skip
    bulk = (said * (texts // len(said) + 1))[:texts]
    best = max(_a_second(partial(reference.encode, bulk, batch_size=size), texts) for size in _BATCHES)
    for name, limit in (("fp32", 1.0), ("int8", 2.0)):
        yield Figure(
            section=section, name=f"{texts:,} texts in bulk, {name}", unit="texts/s",
            value=_a_second(partial(embedders[name].embed_documents, bulk), texts),
            floor=best, floor_name=f"{_TORCH}, the best of batches of {', '.join(map(str, _BATCHES))}",
            limit=limit, of_floor=True, more=True,
        )  # fmt: skip
    yield Figure(
        section=section, name=f"{texts:,} texts in bulk, static", unit="texts/s", more=True, limit=10_000,
        value=_a_second(partial(embedders["static"].embed_documents, bulk), texts),
    )  # fmt: skip


def _a_second(call: Callable[[], object], count: int) -> float:
    return max(count / timed(call) * 1e3 for _ in range(2))
