"""Facts: what a model wrote down from turns, each with the turns that it was written from.

A fact is a memory like any other: sealed, embedded, recalled, forgotten. Its role is `system`, because nobody said it,
and its source is at best `assistant`, because a model wrote it: a user's own words are only ever the turn itself. Where
a turn among its sources is of worse provenance, a tool's or a document's, the fact has that one: what a stranger wrote
does not get better by being told by a model. It belongs to no session, because it was not said in one; its time is that
of the latest turn that the model named, and it expires with the first of its sources.

Links are in sealed items of their own: see `memlayer.lineage`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from memlayer.embedding import embed_texts
from memlayer.items import ItemKind, put
from memlayer.lineage import Link, Round, said
from memlayer.records import Memory
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.index import UserIndex
    from memlayer.lineage import Lineage
    from memlayer.portions import Portion
    from memlayer.records import Hit, Source
    from memlayer.resident import Resident
    from memlayer.rows import RecordRow
    from memlayer.spaces import Spaces
    from memlayer.vault import UnlockedUser, Vault
    from memlayer.writes import Write

__all__ = ["Draft", "Fact", "Reading", "facts_in", "sources_of", "with_sources"]

# From the best provenance that a fact can have to the worst; a user's own words cannot be a model's.
_PROVENANCE: Final[tuple[Source, ...]] = ("assistant", "import", "document", "tool")


class Fact(Memory):
    """A memory that a model wrote from others.

    Attributes:
        sources: the ids of the turns that it was written from, in the order of their times.
        superseded_by: the id of the fact that took its place, or None; then a recall leaves it out.
    """

    sources: tuple[str, ...]
    superseded_by: str | None = None


def facts_in(lineage: Lineage, index: UserIndex) -> list[Fact]:
    """All facts that have not expired, in the order of their times."""
    now = datetime.now(UTC)
    found = []
    for fact in lineage.links:
        memory = index.get(fact)
        if memory is None or (memory.expires is not None and memory.expires <= now):
            continue
        heirs = [heir for heir in map(index.get, lineage.superseded_by.get(fact, ())) if heir is not None]
        newest = max(heirs, key=lambda heir: (heir.at, heir.written), default=None)
        found.append(
            Fact.model_construct(
                **dict(memory),
                sources=sources_of(fact, lineage=lineage, index=index),
                superseded_by=None if newest is None else newest.id,
            )
        )
    return sorted(found, key=lambda fact: (fact.at, fact.written, fact.id))


def sources_of(memory_id: bytes, *, lineage: Lineage, index: UserIndex) -> tuple[str, ...]:
    """The ids of the turns that a fact was written from, in the order of their times; none for what is no fact."""
    link = lineage.links.get(memory_id)
    turns = [] if link is None else [turn for turn in map(index.get, link.sources) if turn is not None]
    return tuple(turn.id for turn in sorted(turns, key=lambda turn: turn.at))


def with_sources(hits: Sequence[Hit], *, lineage: Lineage, index: UserIndex) -> list[Hit]:
    """The hits of a recall; those that are facts say which turns they are from."""
    if not lineage.links:
        return list(hits)
    return [
        hit.model_copy(update={"sources": sources_of(fact, lineage=lineage, index=index)})
        if (fact := _key(hit.id)) in lineage.links
        else hit
        for hit in hits
    ]


def _key(memory_id: str) -> bytes:
    """What a fact with this id is stored under: no caller gives a fact its id."""
    is_chosen = len(memory_id) == 32 and set(memory_id) <= set("0123456789abcdef")
    return bytes.fromhex(memory_id) if is_chosen else b""


@dataclass(frozen=True, slots=True)
class Draft:
    """A fact on its way into the store.

    Attributes:
        text: it.
        named: the ids of the turns that the model says it is from, 16 bytes each.
        sources: the ids of all turns that it comes from, those among them.
        supersedes: the ids of the facts that it is meant to take the place of.
    """

    text: str
    named: frozenset[bytes]
    sources: frozenset[bytes]
    supersedes: tuple[bytes, ...] = ()


class Reading:
    """What a model read, and what it wrote, on their way into the store together. A class because the vectors outlive a
    second try.

    Between the question and the answer minutes may pass. In the transaction each turn must still be there, due, and say
    what the model was shown; a fact for which that does not hold is dropped, and what it was written from stays due.

    Args:
        portion: what the model was asked about, as it was shown.
        drafts: what it wrote.
    """

    def __init__(
        self,
        portion: Portion,
        drafts: Sequence[Draft],
        *,
        vault: Vault,
        resident: Resident,
        spaces: Spaces,
    ) -> None:
        self._turns = portion.turns
        self._shown = {**portion.sources, **portion.turns}
        self._drafts = drafts
        self._vault = vault
        self._resident = resident
        self._spaces = spaces
        self._space: bytes | None = None
        self._vectors: list[NDArray[np.float32]] = []

    def write(self) -> tuple[int, int, int]:
        """Writes it in one transaction; how many turns have been read by it, how many facts it added, and how many of
        the known ones were superseded."""
        while True:
            with self._resident.reading() as (known, _):
                embedder = None if known is None or not self._drafts else self._spaces.of(known)
            if embedder is not None and self._space != embedder.identity.digest():
                self._vectors = embed_texts(embedder, [draft.text for draft in self._drafts])
                self._space = embedder.identity.digest()
            with self._vault.write() as write, self._resident.writing(write) as (user, index):
                if index is None:
                    return 0, 0, 0  # Erased in between.
                if not self._drafts or self._space == self._vault.digest(user.embedder_no):
                    return self._write(write, user, index)
            # Another process moved the user to another embedder.

    def _write(self, write: Write, user: UnlockedUser, index: UserIndex) -> tuple[int, int, int]:
        lineage = self._resident.lineage
        same = {turn for turn, shown in self._shown.items() if _same(shown, index.get(turn))}
        read = [turn for turn in self._turns if turn in same and turn not in lineage.read]
        rows: list[RecordRow] = []
        links: list[Link] = []
        superseded: set[bytes] = set()
        for draft, vectors in zip(self._drafts, self._vectors, strict=True):
            if not draft.sources <= same or draft.sources.isdisjoint(read):
                continue
            memory_id = _fact_id(user, draft)
            if index.get(memory_id) is not None or memory_id in {link.fact for link in links}:
                continue
            memory = _memory(draft, memory_id, self._shown)
            older = self._older(memory, draft, lineage=lineage, index=index)
            superseded.update(older)
            links.append(Link(memory_id, tuple(sorted(draft.sources)), older))
            rows.append(
                self._vault.sealer.seal_record(
                    user,
                    memory_id=memory_id,
                    seq=user.manifest.next_seq + len(rows),
                    memory=memory,
                    own_id=None,
                    vectors=vectors,
                )
            )
        lost = {turn for draft in self._drafts if not draft.sources <= same for turn in draft.sources}
        round_ = Round(tuple(turn for turn in read if turn not in lost), tuple(links))
        if not round_:
            return 0, 0, 0
        row, _ = put(self._vault, user, kind=ItemKind.FACTS, name=os.urandom(16).hex(), content=round_.to_json())
        self._vault.change(write, user, insert=rows, items=ItemChanges(put=[row]))
        return len(round_.turns), len(rows), len(superseded - set(lineage.superseded))

    def _older(self, memory: Memory, draft: Draft, *, lineage: Lineage, index: UserIndex) -> tuple[bytes, ...]:
        """Which facts it takes the place of: only of what is not newer, and of what is not of better provenance, so
        that no tool can talk a user's own facts away."""
        found = []
        for fact in draft.supersedes:
            older = index.get(fact) if fact in lineage.links else None
            if older is not None and older.at <= memory.at and _rank(older.source) >= _rank(memory.source):
                found.append(fact)
        return tuple(found)


def _same(shown: Memory, now: Memory | None) -> bool:
    return now is not None and said(shown) == said(now)


def _fact_id(user: UnlockedUser, draft: Draft) -> bytes:
    # From what it says and where it is from: asked again, it is the same fact. Keyed, because it stands in clear.
    named = json.dumps([draft.text, sorted(source.hex() for source in draft.sources)])
    return user.keys.item_id(ItemKind.FACTS, b"fact " + named.encode())


def _memory(draft: Draft, memory_id: bytes, shown: Mapping[bytes, Memory]) -> Memory:
    sources = [shown[turn] for turn in draft.sources]
    expiries = [source.expires for source in sources if source.expires is not None]
    return Memory.model_construct(
        id=memory_id.hex(),
        text=draft.text,
        role="system",
        speaker=None,
        session=None,
        # What it has a word from was said before.
        at=max(shown[turn].at for turn in draft.named),
        metadata={},
        source=_PROVENANCE[max(_rank(source.source) for source in sources)],
        expires=min(expiries, default=None),
        written=datetime.now(UTC),
    )


def _rank(source: Source) -> int:
    return 0 if source == "user" else _PROVENANCE.index(source)
