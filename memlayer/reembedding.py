"""Changing the embedder of a store: every text is embedded anew, user by user, while the store is in use.

1. A user is in the space of one embedder, the one that the sealed profile names (see `memlayer.vault`), and changes it
   in one transaction: all vectors, the profile and the manifest. The new vectors were opened as the store will open
   them, and are read back before it commits; so the old ones go when the new ones have been verified, and a user is
   never half moved.
2. Nothing is embedded while others wait to write. What was embedded is saved after some seconds as sealed items beside
   the old vectors, one a memory, so that a process that is killed loses seconds of work and not a user's.
3. What is saved counts only for the very text that it was made from; a memory that is forgotten or changed takes it
   along.
4. The embedders' rows say how far the store is. A second row begins a move to it; the lower one is deleted, and so the
   move ended, in a transaction that looked at every user. Whoever is killed in between calls again and goes on.
5. The highest number wins: whoever is moving the store to another embedder stops when a later move begins.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memlayer import tables
from memlayer.embedding import embed_texts, embed_turns, reads_images
from memlayer.errors import ConflictError, ReadOnlyStoreError
from memlayer.manifest import BUCKETS
from memlayer.moving import Moving
from memlayer.reports import ReembedReport
from memlayer.sealer import ItemKind
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from memlayer.database import Database
    from memlayer.embedders.protocol import Embedder, EmbedderIdentity
    from memlayer.embedding import TurnVectors
    from memlayer.rows import RecordRow
    from memlayer.sealer import OpenedRecord
    from memlayer.spaces import Spaces
    from memlayer.vault import UnlockedUser, Vault
    from memlayer.writes import Write

__all__ = ["Reembedding"]

log = logging.getLogger("memlayer")

# As many as `embed_texts` gives an embedder in one call; small users share one, and one transaction.
_TEXTS_AT_ONCE = 256
_IMAGE_BYTES_AT_ONCE = 32 * 1024 * 1024
_USERS_AT_ONCE = 64
_ROWS_AT_ONCE = 500

SAVE_AFTER_SECONDS = 5.0
"""How much work a killed process loses at most, beside the batch that it was at. A fast embedder never saves: writing
each vector twice would then cost more than what is lost."""

# Somebody who writes all the time would never be moved; after so many tries the few texts that are new are embedded
# while others wait.
_TRIES = 10
_TEXTS_IN_A_WRITE = 32


def embed_records(
    embedder: Embedder, records: Sequence[OpenedRecord], images: Sequence[bytes | None]
) -> list[TurnVectors]:
    """For each record all of its vectors, as its vector field takes them. What a record's vectors are made from is
    decided here alone: its own text, in parts where it is long, and its image."""
    return embed_turns(embedder, [record.memory.text for record in records], images, strict=False)


class Reembedding:
    """One call that changes a store's embedder, from wherever an earlier one left off.

    Args:
        new: the embedder that all vectors are to be of.
        progress: is told how many memories are done, and of how many.
    """

    def __init__(
        self,
        new: Embedder,
        *,
        vault: Vault,
        database: Database,
        spaces: Spaces,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._new = new
        self._vault = vault
        self._database = database
        self._spaces = spaces
        self._progress = progress
        self._number = 0
        self._done = self._total = 0
        self._users = self._memories = self._embedded = 0

    def run(self) -> ReembedReport:
        """Moves every user, verifies all of it, and takes leave of the old embedder; see `MemoryStore.reembed`."""
        if self._database.mode != "rw":
            raise ReadOnlyStoreError("the store cannot be written, so its embedder cannot be changed")
        with self._database.read() as connection:
            embedders = self._vault.read_embedders(connection)
        self._number = max(embedders)
        if len(embedders) > 1 or embedders[self._number] != self._new.identity:
            self._begin()
            self._spaces.add(self._new)
            self._count()
            self._move_all()
            while not self._finish():
                # Somebody new, or begun anew, by a process that has only the old embedder.
                self._move_all()
            self._tell(self._total)
        self._spaces.use(self._new)
        # As an erasure does, and also where nothing was left to move: a process that was killed after the last
        # transaction has not.
        clean = self._database.rebuild()
        if not clean:
            log.warning("sealed vectors of the old embedder are still in the store's files; call reembed once more")
        return ReembedReport(users=self._users, memories=self._memories, embedded=self._embedded, files_clean=clean)

    # ---------------------------------------------------------------- the store

    def _begin(self) -> None:
        """Registers the embedder, unless the newest one is it."""
        # Before anything is written: an embedder that does not work is no reason to begin.
        embed_texts(self._new, ["memlayer"])
        with self._vault.write() as write:
            embedders = self._vault.read_embedders(write.connection)
            self._number = max(embedders)
            if embedders[self._number] != self._new.identity:
                self._number += 1
                row = self._vault.seal_embedder(self._new.identity, number=self._number)
                tables.insert_embedder(write.connection, row)
                self._vault.directory.change_slots(write)
        with self._database.read() as connection:
            self._check_goal(connection)

    def _check_goal(self, connection: Connection) -> dict[int, EmbedderIdentity]:
        embedders = self._vault.read_embedders(connection)
        if max(embedders) != self._number:
            raise ConflictError(
                f"another process has begun to move this store to the embedder {embedders[max(embedders)].model!r}; "
                "this move was stopped"
            )
        return embedders

    def _buckets(self) -> list[int]:
        with self._database.read() as connection:
            buckets = sorted(self._vault.directory.check(connection).keys() - {BUCKETS})
        # Two processes that do this at once begin in different places, and share the work.
        start = random.randrange(len(buckets) or 1)  # noqa: S311  no secret depends on it
        return buckets[start:] + buckets[:start]

    def _count(self) -> None:
        if self._progress is None:
            return
        for bucket in self._buckets():
            with self._database.read() as connection:
                for _, user in self._vault.users_in(connection, bucket):
                    self._total += user.manifest.records
                    self._done += user.manifest.records if user.embedder_no == self._number else 0
        self._tell(self._done)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(min(done, self._total), self._total)

    def _move_all(self) -> None:
        group: list[Moving] = []
        memories = 0
        for bucket in self._buckets():
            with self._database.read() as connection:
                users = self._vault.users_in(connection, bucket)
            for user_id, user in users:
                if user.embedder_no == self._number:
                    continue
                group.append(Moving(user_id, vault=self._vault, number=self._number))
                memories += user.manifest.records
                if memories >= _TEXTS_AT_ONCE or len(group) == _USERS_AT_ONCE:
                    self._move(group, memories)
                    group, memories = [], 0
        self._move(group, memories)

    def _finish(self) -> bool:
        """Verifies every user, and ends the move; false if somebody is left who must be moved."""
        seen: dict[int, bytes] = {}
        for bucket in self._buckets():
            left = []
            with self._database.read() as connection:
                row = tables.read_bucket(connection, bucket)
                for user_id, user in self._vault.users_in(connection, bucket):
                    if user.embedder_no != self._number:
                        return False
                    for _ in self._vault.stream(connection, user):
                        pass
                    if _saved_items(self._vault, connection, user):
                        left.append(user_id)  # Of a process that was killed before it dropped them.
            if row is not None:
                seen[bucket] = row.sealed[-16:]
            for user_id in left:
                self._drop_saved(user_id)
        with self._vault.write() as write:
            embedders = self._check_goal(write.connection)
            if len(embedders) == 1:
                return True  # Another process was quicker.
            for bucket, (_, seal) in self._vault.directory.check(write.connection).items():
                if bucket != BUCKETS and seen.get(bucket) != seal:
                    users = self._vault.users_in(write.connection, bucket)
                    if any(user.embedder_no != self._number for _, user in users):
                        return False
            for number in embedders.keys() - {self._number}:
                tables.delete_embedder(write.connection, number)
            self._vault.directory.change_slots(write)
        return True

    # ---------------------------------------------------------------- some users

    def _move(self, group: list[Moving], memories: int) -> None:
        """Moves some users; several small ones, or a large one alone."""
        tries = embedded = 0
        saved_at = time.monotonic()
        dropping: list[str] = []
        while group:
            with self._database.read() as connection:
                for moving in group:
                    moving.look(connection)
                group = [moving for moving in group if moving.is_due]
                texts = self._texts(connection, group, most=_TEXTS_AT_ONCE)
            if texts:
                self._embed(texts)
                embedded += len(texts)
                self._tell(self._done + min(embedded, memories))
                if time.monotonic() - saved_at >= SAVE_AFTER_SECONDS:
                    for moving in group:
                        self._save(moving)
                    saved_at = time.monotonic()
                continue
            for moving in group:
                moving.prepare()
            rest = []
            with self._vault.write() as write:
                self._check_goal(write.connection)
                for moving in group:
                    moving.look(write.connection)
                    if not moving.is_due:
                        continue
                    if not self._swap(write, moving, patient=tries < _TRIES):
                        rest.append(moving)
                    elif moving.has_saved:
                        dropping.append(moving.user_id)
            group, tries = rest, tries + 1
        for user_id in dropping:
            self._drop_saved(user_id)
        self._done += memories

    def _texts(self, connection: Connection, group: list[Moving], *, most: int) -> list[_Text]:
        """What is to be embedded next, of the users as they were just looked at; what needs no embedding is taken."""
        found: list[_Text] = []
        image_bytes = 0
        for moving in group:
            due = moving.due()
            while due and len(found) < most and image_bytes < _IMAGE_BYTES_AT_ONCE:
                some, due = due[: most - len(found)], due[most - len(found) :]
                for row, record in moving.open(connection, some):
                    if self._vault.digest(moving.unlocked.embedder_no) == self._vault.digest(self._number):
                        # Back to an embedder before the move had come here.
                        moving.take(row, record.vectors, pictures=record.pictures)
                    elif image_bytes < _IMAGE_BYTES_AT_ONCE:
                        image = None
                        if reads_images(self._new):
                            image = self._vault.image(connection, moving.unlocked, record)
                        image_bytes += len(image or b"")
                        found.append((moving, row, record, image))
        return found

    def _embed(self, texts: list[_Text]) -> None:
        embedded = embed_records(self._new, [record for _, _, record, _ in texts], [image for *_, image in texts])
        for (moving, row, _, _), (vectors, pictures) in zip(texts, embedded, strict=True):
            moving.take(row, vectors, pictures=pictures)
        self._embedded += len(texts)

    def _swap(self, write: Write, moving: Moving, *, patient: bool) -> bool:
        """Moves a user, if all vectors are there; false if somebody has written in between."""
        while due := moving.due():
            if patient or len(due) > _TEXTS_IN_A_WRITE:
                return False
            self._embed(self._texts(write.connection, [moving], most=len(due)))
        user, prepared = moving.unlocked, moving.prepare()
        self._vault.move(
            write,
            user,
            rows=prepared.rows,
            were=prepared.were,
            added=prepared.added,
            removed=prepared.removed,
            embedder_no=self._number,
        )
        # What is on its way to the disk is read back before the old vectors are given up. What was sealed has been
        # opened before, so that others wait no longer than they must.
        for start in range(0, len(prepared.rows), _ROWS_AT_ONCE):
            some = {row.memory_id: row for row in prepared.rows[start : start + _ROWS_AT_ONCE]}
            found = tables.read_records_by_id(write.connection, user.uref, list(some))
            if {row.memory_id: row._replace(text=row.text[-16:]) for row in found} != some:
                self._vault.refuse_rows()
        self._users += 1
        self._memories += len(prepared.rows)
        return True

    def _save(self, moving: Moving) -> None:
        """Puts vectors beside the old ones, each if its memory still has the text that it was made from."""
        while moving.unsaved:
            some = [moving.unsaved.pop() for _ in range(min(_TEXTS_AT_ONCE, len(moving.unsaved)))]
            with self._vault.write() as write:
                self._check_goal(write.connection)
                user = self._vault.unlock(write.connection, moving.user_id)
                if user is None or not moving.is_same(user):
                    return
                there = {item.item_id: item for item in self._vault.saved_vectors(write.connection, user, some)}
                items = moving.saved(user, tables.read_records_by_id(write.connection, user.uref, some))
                if items:
                    replaced = [there[item.item_id] for item in items if item.item_id in there]
                    self._vault.change(write, user, items=ItemChanges(put=items, replaced=replaced))

    def _drop_saved(self, user_id: str) -> None:
        """Drops what was saved of a user who has been moved, some at a time."""
        while True:
            with self._vault.write() as write:
                user = self._vault.unlock(write.connection, user_id)
                if user is None or user.embedder_no != self._number:
                    return
                item_ids = _saved_items(self._vault, write.connection, user)[:_ROWS_AT_ONCE]
                if not item_ids:
                    return
                rows = tables.read_items_by_id(write.connection, user.uref, kind=ItemKind.VECTORS, item_ids=item_ids)
                drop = [self._vault.sealer.open_item(row, user=user) for row in rows]
                self._vault.change(write, user, items=ItemChanges(drop=drop))


if TYPE_CHECKING:
    _Text = tuple[Moving, RecordRow, OpenedRecord, bytes | None]


def _saved_items(vault: Vault, connection: Connection, user: UnlockedUser) -> list[bytes]:
    return [item_id for kind, item_id in vault.item_ids(connection, user) if kind == ItemKind.VECTORS]


@contextmanager
def shown(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None] | None]:
    """What is told of the progress: the caller's function, or a bar where `rich` is installed, else log lines."""
    if callable(progress) or not progress:
        yield progress if callable(progress) else None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done, total: log.info("embedding anew: %d of %d", done, total)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding anew", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
