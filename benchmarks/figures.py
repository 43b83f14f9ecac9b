"""One measured number beside its floor, and how numbers are measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Figure", "interleaved", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number, and what it is held against.

    Attributes:
        section: where it stands in the report.
        name: what was measured.
        value: the median.
        unit: of `value` and `floor`.
        size: of how many memories, for the plots; None where that means nothing.
        floor: what the same work costs at the least, or without memlayer.
        floor_name: what that is.
        limit: what must be reached: of `value`, or of its ratio to `floor` where `of_floor`.
        more: whether more is better.
    """

    section: str
    name: str
    value: float
    unit: str
    size: int | None = None
    floor: float | None = None
    floor_name: str = ""
    limit: float | None = None
    of_floor: bool = False
    more: bool = False

    @property
    def ratio(self) -> float | None:
        """How often the floor goes into it."""
        return self.value / self.floor if self.floor else None

    @property
    def reached(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        measured = self.ratio if self.of_floor else self.value
        if self.limit is None or measured is None:
            return None
        return measured >= self.limit if self.more else measured <= self.limit

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self) | {"ratio": self.ratio, "reached": self.reached}


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def interleaved(calls: Mapping[str, Callable[[int], object]], *, rounds: int, warm: int = 3) -> dict[str, float]:
    """Medians in milliseconds. All calls take turns, so that each sees the same machine; each is given the round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm, rounds):
        for name, call in calls.items():
            took = timed(partial(call, number))
            if number >= 0:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}
