"""A batch of turns on its way into the store: which of them are new, their vectors, their sealed rows."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memlayer.embedding import TurnVectors, embed_turns, given_vectors
from memlayer.errors import ConflictError, EmbedderMismatchError, InvalidInputError
from memlayer.images import noted_images, seal_image
from memlayer.records import Memory, Turn, image_digest
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from memlayer.embedders.protocol import Embedder, EmbedderIdentity
    from memlayer.index import UserIndex
    from memlayer.records import Source
    from memlayer.rows import ItemRow, RecordRow
    from memlayer.vault import UnlockedUser, Vault
    from memlayer.writes import Write

__all__ = ["Batch", "elements", "find", "found_ids", "same_content"]


class Batch:
    """Turns that are remembered together, all or none. A class because the vectors outlive a second try.

    Args:
        turns: what was said.
        vault: seals them.
        replace: overwrite a memory that has the id of a turn and other content.
    """

    def __init__(self, turns: Iterable[Turn], *, vault: Vault, replace: bool) -> None:
        self.turns = list(turns)
        for turn in self.turns:
            if not isinstance(turn, Turn):
                raise InvalidInputError(f"turns must be memlayer.Turn objects, not {type(turn).__name__}")
        self._vault = vault
        self._replace = replace
        self._vectors: dict[int, TurnVectors] = {}
        # The digest of the embedder that they are of; and whether they are the caller's, who alone can make others.
        self._space: bytes | None = None
        self._given = False

    @property
    def has_own_ids(self) -> bool:
        """Whether any turn may be there already."""
        return any(turn.id is not None for turn in self.turns)

    def take(self, embeddings: object, *, identity: EmbedderIdentity) -> None:
        """Takes the caller's vectors, one a turn: of what the caller made them is not known here, so a turn's image has
        none of its own beside it."""
        given = given_vectors(embeddings, rows=len(self.turns), dimensions=identity.dimensions)
        self._space, self._given = identity.digest(), True
        self._vectors = {number: TurnVectors(given[number : number + 1]) for number in range(len(self.turns))}

    def embed(self, embedder: Embedder, numbers: Iterable[int], *, progress: bool) -> None:
        """Embeds the turns with these numbers, but for those that have their vectors: nothing is embedded twice, unless
        the user has been moved to another embedder in between."""
        space = embedder.identity.digest()
        if self._space != space:
            if self._given:
                raise EmbedderMismatchError(
                    f"these embeddings are not of {embedder.identity.model!r}, of which this user's memories are"
                )
            self._vectors, self._space = {}, space
        due = [number for number in numbers if number not in self._vectors]
        texts = [self.turns[number].text for number in due]
        images = [self.turns[number].image for number in due]
        vectors = embed_turns(embedder, texts, images, strict=True, progress=progress)
        self._vectors.update(zip(due, vectors, strict=True))

    def is_embedded(self, numbers: Iterable[int], *, user: UnlockedUser) -> bool:
        """Whether the turns with these numbers have their vectors, in the user's space."""
        due = list(numbers)
        return not due or (self._space == self._vault.digest(user.embedder_no) and self._vectors.keys() >= set(due))

    def due(self, user: UnlockedUser | None, index: UserIndex | None) -> list[int]:
        """The numbers of the turns that must be written: not those whose id is there with the same content.

        Raises:
            ConflictError: an id is taken by other content and is not to be replaced, or stands twice in the batch.
        """
        due = []
        seen: dict[str, Turn] = {}
        for number, turn in enumerate(self.turns):
            if turn.id is not None:
                if seen.setdefault(turn.id, turn) != turn:
                    raise ConflictError("two turns of one batch have the same id and other content")
                if seen[turn.id] is not turn:
                    continue
                there = _there(turn.id, user, index)
                if there is not None and _says(turn, there):
                    continue
                if there is not None and not self._replace:
                    raise ConflictError(
                        "the id is taken by a memory with other content; pass replace=True to overwrite it"
                    )
            due.append(number)
        return due

    def write(
        self, write: Write, user: UnlockedUser, index: UserIndex | None, *, items: ItemChanges | None = None
    ) -> list[Memory]:
        """Writes what is due, and `items` with it; the memories, one a turn."""
        now = datetime.now(UTC)
        due = set(self.due(user, index))
        insert: list[RecordRow] = []
        update: list[RecordRow] = []
        were: list[int] = []
        images: list[ItemRow] = []
        memories: list[Memory] = []
        by_own_id: dict[str, Memory] = {}
        for number, turn in enumerate(self.turns):
            there = by_own_id.get(turn.id or "") or _there(turn.id, user, index)
            if number not in due and there is not None:
                memories.append(there)
                continue
            found = None if turn.id is None else find(turn.id, user=user, index=index)
            memory_id = found or _new_id(turn, user)
            memory = _memory(turn, memory_id, now=now)
            vectors, pictures = self._vectors[number]
            if found is None:
                row = self._vault.sealer.seal_record(
                    user,
                    memory_id=memory_id,
                    seq=user.manifest.next_seq + len(insert),
                    memory=memory,
                    own_id=turn.id,
                    vectors=vectors,
                    pictures=pictures,
                )
                insert.append(row)
            else:
                were += elements(index, [found])
                row = self._vault.row(write.connection, user, found, element=were[-1])
                own_id = self._vault.sealer.open_record(row, user=user).own_id
                update.append(
                    self._vault.sealer.reseal(
                        user, row, memory=memory, own_id=own_id, vectors=vectors, pictures=pictures
                    )
                )
            if turn.image is not None:
                images.append(seal_image(self._vault.sealer, user, memory_id=memory_id, image=turn.image))
            memories.append(memory)
            if turn.id is not None:
                by_own_id[turn.id] = memory
        if due or items is not None:
            items = self._with_images(write, user, items or ItemChanges(), images=images, update=update)
            self._vault.change(write, user, insert=insert, update=update, were=were, items=items)
        return memories

    def _with_images(
        self, write: Write, user: UnlockedUser, items: ItemChanges, *, images: list[ItemRow], update: list[RecordRow]
    ) -> ItemChanges:
        """What changes of the items, and the images too: those that updated records had, and those that there are."""
        memory_ids = [row.memory_id for row in update]
        there = noted_images(self._vault.sealer, write.connection, user, memory_ids)
        put = {(row.kind, row.item_id) for row in images}
        return ItemChanges(
            put=[*items.put, *images],
            replaced=[*items.replaced, *(item for item in there if (item.kind, item.item_id) in put)],
            drop=[*items.drop, *(item for item in there if (item.kind, item.item_id) not in put)],
        )


def find(id: str, *, user: UnlockedUser | None, index: UserIndex | None) -> bytes | None:
    """The 16 bytes under which a memory stands whose visible id this is: the ones that memlayer chose and shows as 32
    hex digits, else the keyed hash of the caller's own id; None if there is no such memory."""
    return next(iter(found_ids([id], user=user, index=index)), None)


def found_ids(ids: Sequence[str], *, user: UnlockedUser | None, index: UserIndex | None) -> tuple[bytes, ...]:
    """As `find`, for several at once; without those that are not there."""
    if user is None or index is None:
        return ()
    candidates = [[*_chosen_id(id), user.keys.memory_id(id)] for id in ids]  # noqa: A001  the public name
    there = index.stamps([candidate for some in candidates for candidate in some])
    found = (next((candidate for candidate in some if candidate in there), None) for some in candidates)
    return tuple(memory_id for memory_id in found if memory_id is not None)


def _chosen_id(id: str) -> list[bytes]:
    """What a visible id would stand for, if memlayer had chosen it."""
    return [bytes.fromhex(id)] if len(id) == 32 and set(id) <= set("0123456789abcdef") else []


def elements(index: UserIndex | None, memory_ids: Sequence[bytes]) -> list[int]:
    """The verified elements of records in the user's multiset hash."""
    stamps = {} if index is None else index.stamps(memory_ids)
    return [int.from_bytes(stamps[memory_id]) for memory_id in memory_ids]


def same_content(one: Memory, other: Memory) -> bool:
    """Whether two memories say the same, whenever they were written."""
    return _content(one) == _content(other) and one.at == other.at


def _says(turn: Turn, memory: Memory) -> bool:
    asked = _memory(turn, b"", now=memory.at)
    return same_content(asked, memory)


def _content(memory: Memory) -> tuple[Any, ...]:
    # As JSON text, where True is not 1.
    metadata = json.dumps(memory.metadata, sort_keys=True)
    image = memory.image_sha256
    return (memory.text, memory.role, memory.speaker, memory.session, metadata, memory.source, memory.expires, image)


def _there(own_id: str | None, user: UnlockedUser | None, index: UserIndex | None) -> Memory | None:
    memory_id = None if own_id is None else find(own_id, user=user, index=index)
    return None if memory_id is None or index is None else index.get(memory_id)


def _new_id(turn: Turn, user: UnlockedUser) -> bytes:
    # Random, without a time in it: the id stands in clear in the file.
    return os.urandom(16) if turn.id is None else user.keys.memory_id(turn.id)


def _memory(turn: Turn, memory_id: bytes, *, now: datetime) -> Memory:
    own: dict[str, Source] = {"assistant": "assistant", "tool": "tool"}
    return Memory.model_construct(
        id=turn.id if turn.id is not None else memory_id.hex(),
        text=turn.text,
        role=turn.role,
        speaker=turn.speaker,
        session=turn.session,
        at=turn.at if turn.at is not None else now,
        metadata=turn.metadata or {},
        source=turn.source or own.get(turn.role, "user"),
        expires=turn.expires,
        written=now,
        image_sha256=None if turn.image is None else image_digest(turn.image),
    )
