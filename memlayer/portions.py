"""Which turns a model is asked about next, and which facts it is shown with them. Reads an index, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from memlayer.extraction import MAX_SHOWN, related
from memlayer.filters import Condition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from memlayer.index import UserIndex
    from memlayer.lineage import Lineage
    from memlayer.records import Memory, Source

__all__ = ["Portion", "due_turns", "first_of", "portion_of"]

# So many known facts are shown, those that have most to do with the turns.
_KNOWN: Final = 30
# Characters of all turns of one request: some 10,000 tokens, which every model in use reads.
_REQUEST: Final = 32_000
# Turns without a session have no index of their own; they are looked for among so many times as many.
_LOOKED_AT: Final = 50


@dataclass(frozen=True, slots=True)
class Portion:
    """What one request is about. All by id.

    Attributes:
        turns: of one conversation, oldest first.
        known: the facts that are shown with them, which none has taken the place of.
        behind: for each of those, the turns that it was written from.
        sources: all of these turns.
    """

    turns: Mapping[bytes, Memory]
    known: Mapping[bytes, Memory]
    behind: Mapping[bytes, tuple[bytes, ...]]
    sources: Mapping[bytes, Memory]


def due_turns(lineage: Lineage, index: UserIndex, *, sources: Sequence[Source]) -> list[bytes]:
    """The turns of these sources that no model has read, in the order of writing; without expired ones, and facts."""
    turns = index.matching(Condition(sources=sources, alive_at=datetime.now(UTC)))
    return [turn for turn in turns if turn not in lineage.read and turn not in lineage.links]


def first_of(due: Sequence[bytes], index: UserIndex, *, most: int) -> list[bytes]:
    """The first turns of the conversation that the first one is of."""
    first = index.get(due[0])
    if first is None or first.session is None:
        near = ((turn, index.get(turn)) for turn in due[: _LOOKED_AT * most])
        found = (turn for turn, memory in near if memory is not None and memory.session is None)
    else:
        session = set(index.matching(Condition(session=first.session)))
        found = (turn for turn in due if turn in session)
    return list(islice(found, most))


def portion_of(turns: Collection[bytes], *, lineage: Lineage, index: UserIndex) -> Portion:
    """These turns, as many as go into one request, at least one; with what is shown beside them."""
    chosen = _fitting({turn: memory for turn in turns if (memory := index.get(turn)) is not None})
    facts = {
        fact: memory
        for fact in lineage.links
        if fact not in lineage.superseded_by and (memory := index.get(fact)) is not None
    }
    in_time = sorted(facts.values(), key=lambda fact: (fact.at, fact.id))
    shown = {memory.id for memory in related(list(chosen.values()), in_time, most=_KNOWN)}
    behind = {fact: lineage.links[fact].sources for fact, memory in facts.items() if memory.id in shown}
    sources = {turn: index.get(turn) for turns_ in behind.values() for turn in turns_}
    there = {turn: memory for turn, memory in sources.items() if memory is not None}
    # A fact without one of its sources has been left over by something that does not know of links.
    behind = {fact: turns_ for fact, turns_ in behind.items() if there.keys() >= set(turns_)}
    return Portion(chosen, {fact: facts[fact] for fact in behind}, behind, there)


def _fitting(turns: Mapping[bytes, Memory]) -> dict[bytes, Memory]:
    room = _REQUEST
    chosen: dict[bytes, Memory] = {}
    for turn, memory in turns.items():
        room -= min(len(memory.text), MAX_SHOWN)
        if room < 0 and chosen:
            break
        chosen[turn] = memory
    return chosen
