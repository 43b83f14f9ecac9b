"""Which turns a fact was written from, and which facts it takes the place of. Pure: no store, no clock.

1. The turns that a model has read at one time, and the facts that it wrote from them, are one sealed item, a round. A
   turn is due until it is in a round.
2. A fact stands only as long as all of its sources do, as they were when it was written: nobody can tell which of its
   words came from which. When one is forgotten or says something else, the fact is forgotten in the same transaction,
   and its other sources are due again.
3. That a fact takes the place of another one is a link of the newer one and changes nothing in the older. When the
   newer one goes, the older one stands again, unless something else has taken its place.
4. Sources are turns, never facts: what a fact took from another fact has that one's sources (see
   `memlayer.extraction`).

Sealed content of a round, behind its name of 32 hex digits:

    {"f": [{"i": fact, "s": [turns], "x": [facts that it takes the place of]}, ...], "t": [turns]}     ids in hex
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from memlayer.errors import FormatTooNewError, StoreDamagedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from memlayer.records import Memory

__all__ = ["Lineage", "Link", "Round", "said", "without"]

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Link:
    """Where one fact comes from.

    Attributes:
        fact: its id, 16 bytes, as all of these.
        sources: the turns that it was written from; at least one.
        supersedes: the facts that it takes the place of.
    """

    fact: bytes
    sources: tuple[bytes, ...]
    supersedes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one answer of a model.

    Attributes:
        turns: those that it has read.
        links: of the facts that it wrote.
    """

    turns: tuple[bytes, ...]
    links: tuple[Link, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to keep of it."""
        return bool(self.turns or self.links)

    def to_json(self) -> bytes:
        """The content of its item."""
        links = [{"i": link.fact.hex(), "s": _hex(link.sources), "x": _hex(link.supersedes)} for link in self.links]
        return json.dumps({"f": links, "t": _hex(self.turns)}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Round:
        """The round of an authentic item.

        Raises:
            FormatTooNewError: it has fields that this version does not know.
            StoreDamagedError: it is not what `to_json` makes.
        """
        try:
            values = json.loads(content)
            links = values["f"]
            if type(links) is not list:
                raise TypeError
            if values.keys() != {"f", "t"} or any(link.keys() != {"i", "s", "x"} for link in links):
                raise FormatTooNewError("a round of distillation has fields that this memlayer does not know")
            return cls(_ids(values["t"]), tuple(_link(link) for link in links))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise StoreDamagedError("a round of distillation is not written as it must be") from None


def _link(values: Any) -> Link:
    sources = _ids(values["s"])
    if not sources:
        raise ValueError
    return Link(_ids([values["i"]])[0], sources, _ids(values["x"]))


def _hex(ids: Iterable[bytes]) -> list[str]:
    return [each.hex() for each in ids]


def _ids(values: Any) -> tuple[bytes, ...]:
    ids = tuple(bytes.fromhex(value) for value in values)
    if type(values) is not list or any(len(each) != 16 for each in ids):
        raise ValueError
    return ids


class Lineage:
    """All rounds of one user, read together. Immutable; what is never asked is never worked out."""

    def __init__(self, rounds: Iterable[Round] = ()) -> None:
        self._rounds = tuple(rounds)

    @cached_property
    def links(self) -> Mapping[bytes, Link]:
        """The facts, each with where it comes from."""
        return {link.fact: link for round_ in self._rounds for link in round_.links}

    @cached_property
    def read(self) -> frozenset[bytes]:
        """The turns that a model has read."""
        return frozenset(turn for round_ in self._rounds for turn in round_.turns)

    @cached_property
    def superseded_by(self) -> Mapping[bytes, tuple[bytes, ...]]:
        """The facts that others took the place of, each with those."""
        found: dict[bytes, tuple[bytes, ...]] = {}
        for link in self.links.values():
            for older in link.supersedes:
                found[older] = (*found.get(older, ()), link.fact)
        return found

    @property
    def superseded(self) -> Collection[bytes]:
        """The facts that others took the place of: what a recall leaves out."""
        return self.superseded_by.keys()


def without(
    rounds: Mapping[K, Round], *, gone: Collection[bytes], changed: Collection[bytes]
) -> tuple[dict[K, Round], set[bytes]]:
    """What becomes of the rounds when memories go or change.

    Args:
        rounds: all of the user's, by any key.
        gone: memories that are forgotten, facts among them.
        changed: turns that say something else now.

    Returns:
        The rounds that are others now, an empty one where nothing is left of it; and the facts, beside those in `gone`,
        that must be forgotten.
    """
    lost = {*gone, *changed}
    links = [link for round_ in rounds.values() for link in round_.links]
    falling = [link for link in links if not lost.isdisjoint(link.sources)]
    dropped = {link.fact for link in falling} - set(gone)
    unread = lost.union(*(link.sources for link in falling if link.fact in dropped))
    ended = {link.fact: link for link in links if link.fact in dropped or link.fact in gone}
    after = {}
    for key, round_ in rounds.items():
        turns = tuple(turn for turn in round_.turns if turn not in unread)
        kept = (link for link in round_.links if link.fact not in ended)
        now = Round(turns, tuple(Link(link.fact, link.sources, _standing(link, ended)) for link in kept))
        if now != round_:
            after[key] = now
    return after, dropped


def _standing(link: Link, ended: Mapping[bytes, Link]) -> tuple[bytes, ...]:
    """What a fact takes the place of: in place of a fact that is gone, what that one had taken the place of."""
    found: dict[bytes, None] = {}
    waiting, seen = list(reversed(link.supersedes)), {link.fact}
    while waiting:
        older = waiting.pop()
        if older in seen:
            continue
        seen.add(older)
        if older in ended:
            waiting += reversed(ended[older].supersedes)
        else:
            found[older] = None
    return tuple(found)


def said(memory: Memory) -> tuple[object, ...]:
    """What a model was shown of a turn, and what its facts have from it: where that changes, it is another turn."""
    return (memory.text, memory.role, memory.speaker, memory.session, memory.source, memory.at, memory.expires)
