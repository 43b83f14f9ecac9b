"""The optional second stage of a recall: a reranker reads the question with each of the first hits, within a time
limit.

What it says in time decides their order; when it is late, fails or is still busy with another question, the order of
the first stage stands.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from memlayer.errors import EmbedderError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlayer.records import Hit
    from memlayer.rerankers.protocol import Reranker

__all__ = ["RERANKED", "SecondStage"]

log = logging.getLogger("memlayer")

RERANKED = 50
"""How many of the first hits are read: what fits best is among them nine times in ten, and each costs time."""


class SecondStage:
    """A reranker with a time limit; shared by the threads of a process.

    Args:
        reranker: reads question and text together.
        seconds: how long a recall waits for it.
    """

    def __init__(self, reranker: Reranker, *, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise InvalidInputError("rerank_timeout must be a number of seconds above 0")
        self._reranker = reranker
        self._seconds = seconds
        # One question at a time: what came too late cannot be stopped, and a second one beside it would be later still.
        self._busy = threading.Lock()

    def order(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits in the reranker's order, each with its relevance as score; or as they came."""
        first, rest = list(hits[:RERANKED]), hits[RERANKED:]
        if len(first) < 2 or not self._busy.acquire(blocking=False):
            return list(hits)
        said: Future[object] = Future()
        threading.Thread(
            target=self._read, args=(said, question, [hit.passage or hit.text for hit in first]),
            name="memlayer-reranking", daemon=True,
        ).start()  # fmt: skip
        try:
            relevance = self._checked(said.result(self._seconds), count=len(first))
        except Exception as error:  # noqa: BLE001  whatever a reranker raises: the first stage is an answer too
            log.warning("the reranker was left out (%s)", type(error).__name__)
            return list(hits)
        ordered = sorted(zip(first, relevance, strict=True), key=lambda pair: -pair[1])  # stable
        reranked = [
            hit.model_copy(update={
                "score": fit, "parts": None if hit.parts is None else {**hit.parts, "reranker": fit}
            })
            for hit, fit in ordered
        ]  # fmt: skip
        return [*reranked, *rest]

    def _read(self, said: Future[object], question: str, texts: list[str]) -> None:
        try:
            said.set_result(self._reranker.rerank(question, texts))
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            said.set_exception(error)
        finally:
            self._busy.release()

    @staticmethod
    def _checked(relevance: object, *, count: int) -> list[float]:
        values = np.asarray(relevance, dtype=np.float64)
        if values.shape != (count,) or not np.isfinite(values).all():
            raise EmbedderError("the reranker gave something else than one number a text")
        return [float(value) for value in np.clip(values, 0, 1)]
