"""Taking in an export: which of its memories are new, their vectors in the store's own space, their sealed rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlayer.batch import same_content
from memlayer.embedding import TurnVectors, embed_turns
from memlayer.errors import ConflictError
from memlayer.images import seal_image
from memlayer.reports import ImportReport
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memlayer.embedders.protocol import Embedder
    from memlayer.export import ExportedRecord, SealedExport
    from memlayer.index import UserIndex
    from memlayer.resident import Resident
    from memlayer.rows import ItemRow, RecordRow
    from memlayer.spaces import Spaces
    from memlayer.vault import UnlockedUser, Vault
    from memlayer.writes import Write

__all__ = ["Import"]


class Import:
    """One import into one user. A class because the vectors outlive a second try.

    Args:
        export: open, and checked to its end.
        vault: seals the rows.
        resident: the user, and what is there already.
        spaces: has the user's embedder.
    """

    def __init__(self, export: SealedExport, *, vault: Vault, resident: Resident, spaces: Spaces) -> None:
        self._export = export
        self._vault = vault
        self._resident = resident
        self._spaces = spaces
        self._space: bytes | None = None
        self._vectors: dict[bytes, TurnVectors] = {}

    def run(self) -> ImportReport:
        """Imports all or nothing, in one transaction; the embedding is done before it, not to keep others waiting."""
        while True:
            with self._resident.reading() as (known, present):
                due = self._due(known, present)
            if due:
                self._embed(due, self._spaces.of(known))
            with self._vault.write() as write, self._resident.writing(write) as (user, index):
                due = self._due(user, index)
                here = self._space == self._vault.digest(user.embedder_no)
                if not due or (here and self._vectors.keys() >= due):
                    return self._write(write, user, index)
            # Another process forgot one of them in between, or moved the user to another embedder.

    def _embed(self, due: set[bytes], embedder: Embedder) -> None:
        space = embedder.identity.digest()
        if space != self._space:
            self._vectors, self._space = {}, space
        for portion in self._export.portions():
            missing = [
                record for record in portion if record.memory_id in due and record.memory_id not in self._vectors
            ]
            texts, images = [record.memory.text for record in missing], [record.image for record in missing]
            vectors = embed_turns(embedder, texts, images, strict=False)
            self._vectors.update(zip([record.memory_id for record in missing], vectors, strict=True))

    def _same_space(self, user: UnlockedUser | None) -> bool:
        """Whether the vectors in the export can be compared with the user's; otherwise the texts are embedded anew."""
        number = self._vault.number_for_new if user is None else user.embedder_no
        return self._export.identity == self._vault.identity(number)

    def _write(self, write: Write, user: UnlockedUser, index: UserIndex | None) -> ImportReport:
        added = kept = 0
        same_space = self._same_space(user)
        for portion in self._export.portions():
            rows: list[RecordRow] = []
            images: list[ItemRow] = []
            for memory_id, record in self._new(portion, user, index):
                own = TurnVectors(record.vectors, record.pictures)
                vectors, pictures = own if same_space else self._vectors[record.memory_id]
                row = self._vault.sealer.seal_record(
                    user,
                    memory_id=memory_id,
                    seq=user.manifest.next_seq + len(rows),
                    memory=record.memory,
                    own_id=record.own_id,
                    vectors=vectors,
                    pictures=pictures,
                )
                rows.append(row)
                if record.image is not None:
                    images.append(seal_image(self._vault.sealer, user, memory_id=memory_id, image=record.image))
            if rows:
                user = self._vault.change(write, user, insert=rows, items=ItemChanges(put=images))
            added += len(rows)
            kept += len(portion) - len(rows)
        return ImportReport(added=added, kept=kept)

    def _due(self, user: UnlockedUser | None, index: UserIndex | None) -> set[bytes]:
        """The memories that must be embedded anew, by the ids that they have in the export."""
        if self._same_space(user):
            return set()
        return {
            record.memory_id for portion in self._export.portions() for _, record in self._new(portion, user, index)
        }

    def _new(
        self, portion: list[ExportedRecord], user: UnlockedUser | None, index: UserIndex | None
    ) -> Iterator[tuple[bytes, ExportedRecord]]:
        """The memories that are not there yet, with the ids that they get here."""
        for record in portion:
            own = None if record.own_id is None or user is None else user.keys.memory_id(record.own_id)
            memory_id = own or record.memory_id
            there = None if index is None else index.get(memory_id)
            if there is None:
                yield memory_id, record
            elif not same_content(there, record.memory):
                raise ConflictError(
                    "a memory of this export is there already, with other content; nothing was imported"
                )
