"""One user's memory: the only way to data.

A `UserMemory` is bound to its user for life. No method takes another user, a list of users, a pattern or None, and
nothing that can be changed decides whose data is meant.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer.batch import Batch, elements
from memlayer.capturing import Capture
from memlayer.codec import MESSAGES
from memlayer.embedding import embed_texts
from memlayer.errors import InvalidInputError
from memlayer.export import open_export, write_export
from memlayer.facts import facts_in
from memlayer.filters import Condition
from memlayer.images import open_image
from memlayer.importing import Import
from memlayer.injection import Preparation
from memlayer.items import Items
from memlayer.ledger import Ledger
from memlayer.recalling import MAX_K, Recalling, counted, not_found, scored
from memlayer.records import Memory, Recall, Turn, valid_metadata, valid_name, valid_text
from memlayer.reports import ErasureReceipt

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from memlayer.codec import Codec
    from memlayer.facts import Fact
    from memlayer.health import Health
    from memlayer.injection import Placement, Prepared
    from memlayer.items import ItemKind
    from memlayer.records import JsonObject, Role, Source
    from memlayer.reports import ImportReport
    from memlayer.vault import UnlockedUser

__all__ = ["UserMemory"]

log = logging.getLogger("memlayer")

_STILL_THERE = (
    "sealed bytes of what was deleted are still in the store's files, because another process is reading them; "
    "they go with the next erase"
)


class UserMemory(Recalling):
    """What one user's conversations left behind. Get it from `MemoryStore.user`; it may be shared by threads."""

    # ---------------------------------------------------------------- write

    def remember(
        self,
        text: str,
        *,
        role: Role = "user",
        speaker: str | None = None,
        session: str | None = None,
        at: datetime | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
        source: Source | None = None,
        expires: datetime | None = None,
        image: bytes | None = None,
        replace: bool = False,
    ) -> Memory:
        """Remembers one turn; it is on the disk when this returns. The arguments are those of `Turn`.

        Args:
            replace: overwrite the memory that has this `id`, if its content differs.

        Raises:
            InvalidInputError: something cannot be stored; nothing was written.
            ConflictError: the id is taken by other content, and `replace` is false.
            EmbedderError: the text could not be embedded; nothing was written.
            StorageError: the database failed; nothing was written.
        """
        turn = Turn(
            text=text,
            role=role,
            speaker=speaker,
            session=session,
            at=at,
            metadata=metadata,
            id=id,
            source=source,
            expires=expires,
            image=image,
        )
        return self.remember_many([turn], replace=replace)[0]

    def remember_many(
        self,
        turns: Iterable[Turn],
        *,
        embeddings: NDArray[np.float32] | None = None,
        progress: bool = False,
        replace: bool = False,
    ) -> list[Memory]:
        """Remembers turns in their order, all of them or none, in one transaction.

        Args:
            turns: what was said.
            embeddings: their vectors, `(n, dimensions)` float32, if they were computed before with the store's
                embedder; then no embedder is loaded, and an image has no vector beside the one given.
            progress: show how far the embedding is.
            replace: as for `remember`.

        Returns:
            The memories, one a turn; for an id that was there with the same content, the first one.
        """
        batch = Batch(turns, vault=self._vault, replace=replace)
        if embeddings is not None:
            batch.take(embeddings, identity=self._spaces.own.identity)
        if not batch.turns:
            return []
        if not batch.has_own_ids:
            # Nothing of it can be there already, so the user's memories need not be in RAM.
            return self._append(batch, progress=progress)
        return self._write(batch, progress=progress)

    def update(self, id: str, *, text: str | None = None, metadata: JsonObject | None = None) -> Memory:
        """Changes a memory in place; what is None stays, and its image always. Only a new text is embedded.

        Raises:
            NotFoundError: this user has no such memory.
        """
        text = None if text is None else valid_text(text)
        metadata = None if metadata is None else valid_metadata(metadata)
        if text is None and metadata is None:
            raise InvalidInputError("update needs a text or a metadata to change to")
        if text == self.get(id).text:
            text = None  # Nothing to embed.
        embedder = vectors = None
        resident = self._resident
        while True:
            if text is not None:
                with resident.reading() as (user, _):
                    embedder = self._spaces.of(user)
                vectors = embed_texts(embedder, [text])[0]
            with self._vault.write() as write, resident.writing(write) as (user, index):
                memory_id = self._find(id, user, index)
                if memory_id is None:
                    raise not_found()
                if embedder is not None and embedder.identity.digest() != self._vault.digest(user.embedder_no):
                    continue  # The user was moved to another embedder in between.
                were = elements(index, [memory_id])
                row = self._vault.row(write.connection, user, memory_id, element=were[0])
                opened = self._vault.sealer.open_record(row, user=user)
                changes: dict[str, Any] = {"written": datetime.now(UTC)}
                changes |= {} if text is None else {"text": text}
                changes |= {} if metadata is None else {"metadata": metadata}
                memory = opened.memory.model_copy(update=changes)
                pictures = opened.pictures
                if vectors is not None and pictures:
                    vectors = np.concatenate([vectors, opened.vectors[-pictures:]])
                sealed = self._vault.sealer.reseal(
                    user, row, memory=memory, own_id=opened.own_id, vectors=vectors, pictures=pictures
                )
                self._vault.change(write, user, update=[sealed], were=were)
                return memory

    def image(self, id: str) -> bytes | None:
        """The image of a memory, as it was remembered; None for one without.

        Raises:
            NotFoundError: this user has no such memory.
            StoreDamagedError: the image is not the one that was remembered.
        """
        with self._resident.looking() as (connection, user, index):
            memory_id = self._find(id, user, index)
            memory = None if memory_id is None or index is None else index.get(memory_id)
            if user is None or memory_id is None or memory is None:
                raise not_found()
            return open_image(self._vault.sealer, connection, user, memory_id=memory_id, memory=memory)

    def forget(
        self,
        id: str | None = None,
        *,
        session: str | None = None,
        source: Source | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Forgets one memory, or all that meet every condition given; their sealed bytes are overwritten. Facts that a
        model wrote from them are forgotten with them.

        Returns:
            How many were forgotten, those facts not counted; 0 for an id that this user does not have.

        Raises:
            InvalidInputError: no condition, or both an id and conditions; only `erase` removes everything.
        """
        conditions = [session, source, since, until, where or None]
        if id is not None and any(condition is not None for condition in conditions):
            raise InvalidInputError("forget takes an id or conditions, not both")
        if id is None and all(condition is None for condition in conditions):
            raise InvalidInputError("forget needs an id or a condition; to remove everything, use erase()")
        condition = Condition(
            session=session, since=since, until=until, sources=None if source is None else [source], where=where
        )
        if id is not None:
            valid_name(id, name="id")
        with self._vault.write() as write, self._resident.writing(write) as (user, index):
            if id is not None:
                found = self._find(id, user, index)
                memory_ids = [] if found is None else [found]
            else:
                memory_ids = [] if index is None else index.matching(condition)
            if memory_ids:
                self._vault.change(write, user, delete=memory_ids, were=elements(index, memory_ids))
        if memory_ids:
            self._scrub()
        return len(memory_ids)

    def erase(self) -> ErasureReceipt:
        """Destroys all that this user has, with the key that it was sealed under; afterwards the user is an empty one.

        The file is written anew, so that no byte of it is left there; that takes as long as copying the file.

        A copy of the file that was made before still holds both: see SECURITY.md on backups.
        """
        with self._vault.write() as write, self._resident.writing(write) as (user, _):
            memories = user.manifest.records
            if user.row.manifest:
                self._vault.erase(write, user)
        self._pending.clear(self._user_id)
        self._spaces.queries.clear()
        cleaned = self._database.rebuild()
        if not cleaned:
            log.warning(_STILL_THERE)
        self._resident.drop()
        return ErasureReceipt(
            at=datetime.now(UTC),
            store=self._vault.store_id.hex(),
            user=user.uref.hex(),
            memories=memories,
            files_clean=cleaned,
        )

    # ---------------------------------------------------------------- converse

    def prepare(
        self,
        messages: Any,
        *,
        session: str | None = None,
        placement: Placement = "sticky",
        k: int = 10,
        max_tokens: int = 800,
        count_tokens: Callable[[str], int] | None = None,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
        sources: Sequence[Source] | None = None,
        codec: Codec = MESSAGES,
    ) -> Prepared:
        """A copy of a request with what memory has for the user's latest words; see `memlayer.injection`.

        What every adapter calls; for a client that nobody has wrapped, call it and send `.messages`:

            prepared = alice.prepare(messages, session="s1")
            reply = ask_my_model(prepared.messages)
            alice.capture(prepared, reply)

        Args:
            messages: `{"role": ..., "content": ...}`, oldest first; or what `codec` reads. Never changed.
            session: the conversation that the turns belong to.
            placement: where the block goes: "sticky", "ephemeral" or "system".
            k: how many memories there are in a block at most.
            max_tokens: how long a block may be.
            count_tokens: how many tokens a text has; by default one for three bytes.
            min_score, where, sources: as `recall` takes them.
            codec: reads and writes the request.
        """
        Condition(sources=sources, where=where)
        floor = None if min_score is None else scored(min_score)

        def recall(query: str, count: int) -> Recall:
            return self.recall(query, k=min(count, MAX_K), min_score=floor, where=where, sources=sources)

        return Preparation(
            owner=self._user_id,
            codec=codec,
            ledger=self._ledger,
            recall=recall,
            session=session,
            placement=placement,
            k=counted(k, name="k", most=MAX_K),
            max_tokens=max_tokens,
            count_tokens=count_tokens,
        ).prepare(messages)

    def capture(self, prepared: Prepared, reply: str | None, *, complete: bool = True) -> list[Memory]:
        """Remembers both sides of a turn, in one commit: what the user said, unless it has been, and the reply.

        Args:
            prepared: from `prepare` of this same user.
            reply: what the assistant said; None where it said nothing yet (it calls a tool) or nothing to keep.
            complete: false for a reply that broke off, which is then marked `{"incomplete": true}`.

        Returns:
            What was remembered.
        """
        if prepared.owner != self._user_id:
            raise InvalidInputError("this was prepared for another user; nothing was remembered")
        resident = self._resident
        ledger = Ledger(self._user_id, vault=self._vault, resident=resident, pending=self._pending)
        return Capture(
            prepared,
            reply,
            complete=complete,
            ledger=ledger,
            vault=self._vault,
            resident=resident,
            spaces=self._spaces,
        ).run()

    def items(self, kind: ItemKind) -> Items:
        """This user's named things of one kind, which are no memories; for adapters that keep some."""
        return Items(kind, vault=self._vault, resident=lambda: self._resident, scrub=self._scrub)

    @property
    def health(self) -> Health:
        """How memory has been doing in the adapters of this process, for the whole store."""
        return self.breaker.health

    def facts(self) -> list[Fact]:
        """What a model wrote down from the turns, with the turns that each fact is from; those too that others took the
        place of. Empty where nobody has distilled: see `memlayer.distiller`.
        """
        resident = self._resident
        with resident.reading() as (_, index):
            return [] if index is None else facts_in(resident.lineage, index)

    # ---------------------------------------------------------------- move

    def export(self, path: str | os.PathLike[str], *, passphrase: str) -> int:
        """Writes all of this user's memories to one sealed file, which must not exist; how many they are.

        The file has its own key, from the passphrase, and holds the images and the vectors too: it opens in another
        store. Facts stay behind: without their links they would outlive the turns that they are from; they can be
        written anew.
        """
        with self._database.read() as connection:
            user = self._vault.unlock(connection, self._user_id)
            if user is None:
                return write_export(path, (), identity=self._spaces.own.identity, passphrase=passphrase)
            facts = self._vault.links(connection, user).links
            return write_export(
                path,
                (record for record in self._vault.stream(connection, user) if record.memory_id not in facts),
                identity=self._vault.identity(user.embedder_no),
                passphrase=passphrase,
                image=lambda record: self._vault.image(connection, user, record),
            )

    def import_(self, path: str | os.PathLike[str], *, passphrase: str) -> ImportReport:
        """Adds what an export holds, all or nothing; provenance and times stay, and what is there already is kept.

        The whole file is checked before the first write. Vectors of another embedder than the store's are not taken:
        those texts are embedded anew.

        Raises:
            ExportDamagedError: it was altered or cut short; nothing was written.
            WrongKeyError: not its passphrase.
            ConflictError: a memory is there with other content; nothing was written.
        """
        with open_export(path, passphrase=passphrase) as exported:
            return Import(exported, vault=self._vault, resident=self._resident, spaces=self._spaces).run()

    # ---------------------------------------------------------------- inside

    def _scrub(self) -> None:
        """After a deletion: has it reach the file, and empties the log, which holds what was there before."""
        self._spaces.queries.clear()
        if not self._database.checkpoint():
            log.warning(_STILL_THERE)

    def _write(self, batch: Batch, *, progress: bool) -> list[Memory]:
        # One place in RAM for all of it: asked for again, it could be another, of a user who was evicted in between.
        resident = self._resident
        while True:
            with resident.reading() as (known, index):
                due = batch.due(known, index)
            if due:
                batch.embed(self._spaces.of(known), due, progress=progress)
            with self._vault.write() as write, resident.writing(write) as (user, index):
                if batch.is_embedded(batch.due(user, index), user=user):
                    return batch.write(write, user, index)
            # Another process forgot one of them in between: that one is to be embedded after all. Or it moved the user
            # to another embedder.

    def _append(self, batch: Batch, *, progress: bool) -> list[Memory]:
        due = batch.due(None, None)
        known: UnlockedUser | None = None
        while True:
            batch.embed(self._spaces.of(known), due, progress=progress)
            with self._vault.write() as write:
                known = self._vault.unlock(write.connection, self._user_id)
                known = known or self._vault.new_user(write.connection, self._user_id)
                if batch.is_embedded(due, user=known):
                    return batch.write(write, known, None)
            # Another process moved the user to another embedder.

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self._user_id, vault=self._vault, resident=self._resident, pending=self._pending)
