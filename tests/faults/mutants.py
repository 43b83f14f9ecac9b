"""Statements of the SQL layer without one of their WHEREs, or without one condition of it."""

from __future__ import annotations

import functools
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mutant(NamedTuple):
    """What is missing from a statement.

    Attributes:
        statement: its text, with lists of any length made alike.
        where: the number of the WHERE in it.
        condition: the number of the condition that is missing; None is all of the WHERE.
    """

    statement: str
    where: int
    condition: int | None

    def __str__(self) -> str:
        verb = self.statement.split(maxsplit=1)[0]
        tables = ", ".join(re.findall(r"(?:FROM|UPDATE) (\w+)", self.statement))
        start, end = _wheres(self.statement)[self.where]
        if self.condition is None:
            lost = self.statement[start:end]
        else:
            lost = _conditions(self.statement, start, end)[self.condition].text.strip()
        return f"{verb} {tables}: {lost}"


class _Part(NamedTuple):
    start: int
    end: int
    text: str


@functools.cache
def _alike(statement: str) -> str:
    return re.sub(r"IN \(\?(?:, \?)*\)", "IN (?)", statement)


@functools.cache
def _wheres(statement: str) -> list[tuple[int, int]]:
    """Where each WHERE of a statement begins and ends."""
    found = []
    for match in re.finditer(r"\bWHERE\b", statement):
        depth, at = 0, match.start()
        while at < len(statement) and depth >= 0 and not statement.startswith((" ORDER BY", " GROUP BY"), at):
            depth += {"(": 1, ")": -1}.get(statement[at], 0)
            at += depth >= 0
        found.append((match.start(), at))
    return found


def _conditions(statement: str, start: int, end: int) -> list[_Part]:
    """The conditions between the ANDs of a WHERE; the AND of a BETWEEN is none of them."""
    begins = [start + len("WHERE ")]
    ends = []
    for match in re.finditer(r"(?<!BETWEEN \?) AND ", statement[:end]):
        if match.start() > start:
            ends.append(match.start())
            begins.append(match.end())
    return [_Part(begin, stop, statement[begin:stop]) for begin, stop in zip(begins, [*ends, end], strict=True)]


def _without(statement: str, parameters: tuple[Any, ...], mutant: Mutant) -> tuple[str, tuple[Any, ...]]:
    """The statement and its parameters without what is missing."""
    start, end = _wheres(statement)[mutant.where]
    if mutant.condition is None:
        cut, put = slice(start, end), ""
    else:
        part = _conditions(statement, start, end)[mutant.condition]
        cut, put = slice(part.start, part.end), "1 = 1"
    first = statement[: cut.start].count("?")
    last = first + statement[cut].count("?")
    return statement[: cut.start] + put + statement[cut.stop :], parameters[:first] + parameters[last:]


def mutants_of(statement: str) -> list[Mutant]:
    found = []
    for number, (start, end) in enumerate(_wheres(statement)):
        conditions = _conditions(statement, start, end)
        found.append(Mutant(statement, number, None))
        found += [Mutant(statement, number, part) for part in range(len(conditions)) if len(conditions) > 1]
    return found


@dataclass
class Meddler:
    """Sits between SQLAlchemy and the driver.

    Attributes:
        mutant: what to take away, while `active`.
        step: of the workflow, the one that is running.
        seen: all statements with a WHERE so far, and in which steps.
        applied: how often something was taken away.
    """

    mutant: Mutant | None = None
    active: bool = False
    seen: dict[str, set[str]] = field(default_factory=dict)
    step: str = ""
    applied: int = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Statements in this block are meddled with."""
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def before(
        self, connection: object, cursor: object, statement: str, parameters: Any, context: object, many: bool
    ) -> tuple[str, Any]:
        alike = _alike(statement)
        if _wheres(alike):
            self.seen.setdefault(alike, set()).add(self.step)
        if not self.active or self.mutant is None or alike != self.mutant.statement:
            return statement, parameters
        self.applied += 1
        if many:
            changed = [_without(statement, tuple(one), self.mutant) for one in parameters]
            return changed[0][0], [one for _, one in changed]
        return _without(statement, tuple(parameters), self.mutant)
