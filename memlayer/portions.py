"""Which turns a model is asked about next, and which facts it is shown with them. Reads an index, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from memlayer.extraction import MAX_SHOWN, related
from memlayer.filters import Condition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from memlayer.index import UserIndex
    from memlayer.lineage import Lineage
    from memlayer.records import Memory, Source
    from memlayer.resident import Resident

__all__ = ["Portion", "due_turns", "first_of", "portion_of"]

# So many known facts are shown, those that have most to do with the turns.
_KNOWN: Final = 30
# Characters of all turns of one request: some 10,000 tokens, which every model in use reads.
_REQUEST: Final = 32_000
# Turns without a session have no index of their own; they are looked for among so many times as many.
_LOOKED_AT: Final = 50
# Facts that are read while the user is locked: some milliseconds.
_AT_ONCE: Final = 200


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


def portion_of(turns: Collection[bytes], *, resident: Resident) -> Portion | None:
    """These turns, as many as go into one request, at least one; with what is shown beside them. None where all of
    them are gone.

    The user is never locked for long: with thousands of facts, looking through them takes longer than a recall may.
    """
    with resident.reading() as (_, index):
        chosen = {} if index is None else _fitting(_found(turns, index))
    facts = _standing(resident)
    shown = related(list(chosen.values()), sorted(facts.values(), key=lambda fact: (fact.at, fact.id)), most=_KNOWN)
    ids = {memory.id for memory in shown}
    with resident.reading() as (_, index):
        links = resident.lineage.links
        behind = {fact: links[fact].sources for fact, memory in facts.items() if memory.id in ids and fact in links}
        sources = {} if index is None else _found({turn for some in behind.values() for turn in some}, index)
    # A fact without one of its sources has been left over by something that does not know of links.
    behind = {fact: some for fact, some in behind.items() if sources.keys() >= set(some)}
    return Portion(chosen, {fact: facts[fact] for fact in behind}, behind, sources) if chosen else None


def _standing(resident: Resident) -> dict[bytes, Memory]:
    """The facts whose place none has taken."""
    with resident.reading():
        lineage = resident.lineage
    waiting = iter([fact for fact in lineage.links if fact not in lineage.superseded])
    facts: dict[bytes, Memory] = {}
    while some := list(islice(waiting, _AT_ONCE)):
        with resident.reading() as (_, index):
            facts |= {} if index is None else _found(some, index)
    return facts


def _found(memory_ids: Iterable[bytes], index: UserIndex) -> dict[bytes, Memory]:
    return {found: memory for found in memory_ids if (memory := index.get(found)) is not None}


def _fitting(turns: Mapping[bytes, Memory]) -> dict[bytes, Memory]:
    room = _REQUEST
    chosen: dict[bytes, Memory] = {}
    for turn, memory in turns.items():
        room -= min(len(memory.text), MAX_SHOWN)
        if room < 0 and chosen:
            break
        chosen[turn] = memory
    return chosen
