"""Users whose memories are in RAM: each with its index, kept as fresh as the store, evicted by bytes.

An index is a cache of rows that were authenticated. Before it answers, SQLite is asked whether anything was committed
to the file since (a number, a look at its shared memory); if so, the index is compared with the store by one short
query (the sealed manifests of the user and of the user's bucket). When something of this user's was written, by any
thread or process, the changed rows are read, or taken as this process wrote them, and the index answers only if it then
adds up to the new manifest.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from memlayer.background import Background
from memlayer.errors import MemlayerError, RollbackDetectedError
from memlayer.index import Entry, UserIndex
from memlayer.lineage import Lineage
from memlayer.manifest import bucket_of
from memlayer.sealer import ItemKind
from memlayer.unlinking import round_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from memlayer.database import Database
    from memlayer.lineage import Round
    from memlayer.vault import OpenedItem, OpenedRecord, UnlockedUser, Vault
    from memlayer.writes import Change, Write

__all__ = ["Resident", "Residents"]

# So much of what was committed is kept until the next call: some sixty turns, and no picture.
_TAKEN_BYTES = 200_000
_QUIET_SECONDS = 0.01
_settling = Background(threads=1)
# What an item takes in RAM beyond its content, measured on CPython 3.11.
_ITEM_BYTES = 400


class Resident:
    """One user in RAM. Its lock is held while its index is read: the database behind it serves one thread at a time.

    Where a write needs both, it takes the store's write lock first and this one second; a recall takes this one only.
    """

    def __init__(self, user_id: str, *, vault: Vault, database: Database, account: Callable[[int], None]) -> None:
        self._user_id = user_id
        self._vault = vault
        self._database = database
        self._lock = threading.RLock()
        self._user: UnlockedUser | None = None
        self._index: UserIndex | None = None
        self._items: dict[tuple[int, bytes], OpenedItem] = {}
        self._items_nbytes = 0
        self._rounds: dict[bytes, Round] = {}
        self._lineage: Lineage | None = None
        self._seals: tuple[object, object] | None = None
        # What this process has committed since, with the seals that each left behind.
        self._taken: list[tuple[Change, tuple[object, object]]] = []
        self._taken_at = 0.0
        self._account = account
        self._nbytes = 0
        self._ready = False
        # Of the whole database, when the user was last compared with it.
        self._version: object = None

    @contextmanager
    def reading(self) -> Iterator[tuple[UnlockedUser | None, UserIndex | None]]:
        """The user and the index as of now; None and None for a user who has nothing."""
        # The gate first: a call that held the lock and waited at the gate for a fork would block a writer inside of it.
        with self._database.entered(), self._lock:
            # Read first: what is committed from here on is seen by the next call.
            version = self._database.version()
            if self._user is None or version != self._version:
                with self._database.read() as connection:
                    self._refresh(connection)
                self._version = version
            try:
                yield self._user, self._index
            finally:
                self._weigh_what_was_made()

    @contextmanager
    def looking(self) -> Iterator[tuple[Connection, UnlockedUser | None, UserIndex | None]]:
        """As `reading`, and the snapshot that it was read in, for what is not held in RAM."""
        with self._database.entered(), self._lock, self._database.read() as connection:
            user = self._refresh(connection)
            yield connection, user, self._index

    @contextmanager
    def known(self) -> Iterator[tuple[UnlockedUser | None, UserIndex | None]]:
        """As `reading`, as of the last time that somebody looked: for what was read a moment ago."""
        with self._database.entered(), self._lock:
            try:
                yield self._user, self._index
            finally:
                self._weigh_what_was_made()

    @contextmanager
    def writing(self, write: Write) -> Iterator[tuple[UnlockedUser, UserIndex | None]]:
        """The user and the index as of the transaction; a user who has nothing is a new one, with an index of None."""
        with self._lock:
            user = self._refresh(write.connection)
            yield user or self._vault.new_user(write.connection, self._user_id), self._index

    @property
    def items(self) -> Mapping[tuple[int, bytes], OpenedItem]:
        """The user's items by kind and id; inside of `reading` or `writing` only."""
        return self._items

    @property
    def lineage(self) -> Lineage:
        """Where the user's facts come from; inside of `reading` or `writing` only."""
        if self._lineage is None:
            self._lineage = Lineage(self._rounds.values())
        return self._lineage

    def drop(self) -> None:
        """Frees the index; the next call builds it anew."""
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._index = self._user = self._seals = None
            self._taken = []
            self._items = {}
            self._items_nbytes = 0
            self._rounds = {}
            self._lineage = None
            self._weigh()

    def retire(self, *, wait: bool) -> bool:
        """Frees the index for good, unless `wait` is false and somebody is using it; whether it was freed.

        Whoever got hold of this object just before may still use it; it then counts for nothing in the budget, and goes
        when they let go of it.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self.drop()
            self._account = _nothing
        finally:
            self._lock.release()
        return True

    def _weigh_what_was_made(self) -> None:
        """A first question makes what questions need, which may be as much again."""
        if self._index is not None and self._index.is_ready and not self._ready:
            self._weigh()

    def _weigh(self) -> None:
        self._ready = self._index is not None and self._index.is_ready
        nbytes = 0 if self._index is None else self._index.nbytes
        nbytes += self._items_nbytes
        self._account(nbytes - self._nbytes)
        self._nbytes = nbytes

    def _refresh(self, connection: Connection) -> UnlockedUser | None:
        try:
            return self._refreshed(connection)
        except BaseException:
            # Whatever went wrong, the next call starts from the rows.
            self.drop()
            raise

    def _refreshed(self, connection: Connection) -> UnlockedUser | None:
        seals = self._vault.seals(connection, self._user_id)
        if self._user is not None and (seals == self._seals or self._apply_taken(seals)):
            return self._user
        user = self._vault.unlock(connection, self._user_id)
        if user is None or (self._user is not None and user.row.data_key != self._user.row.data_key):
            self.drop()  # Erased, and perhaps begun anew: nothing of what is in RAM is theirs any more.
        if user is None:
            return None
        known = self._user.manifest.generation if self._user is not None else 0
        if user.manifest.generation < known:
            raise RollbackDetectedError("a user's memories are older than what this process last saw of them")
        if self._user is not None and user.embedder_no != self._user.embedder_no:
            self.drop()  # Moved to another embedder: every vector is another one, perhaps of another length.
            known = 0
        if self._index is None:
            self._index = UserIndex(dimensions=self._vault.identity(user.embedder_no).dimensions)
        self._bring_up(connection, user, index=self._index, after=known)
        self._user, self._seals = user, seals
        return user

    def take(self, change: Change, *, bucket: bytes) -> bool:
        """Keeps what this process has just committed, so that the next call need not read it back; whether it did. Of
        much nothing is kept: the rows say it again.

        Args:
            bucket: the sealed bucket as it stands.
        """
        with self._lock:
            self._taken_at = time.monotonic()
            if self._index is None:
                return False
            self._taken.append((change, (change.after.row.manifest, bucket)))
            if sum(_bytes_of(taken) for taken, _ in self._taken) > _TAKEN_BYTES:
                self._taken = []
            return bool(self._taken)

    def settle(self) -> None:
        """Applies what was kept, once nobody has written for a moment: between two turns of a chat there is time for
        it, and none in the next one. While somebody writes on and on it would only take the processor from them."""
        while (left := self._taken_at + _QUIET_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        # What is wrong, the next call says to somebody; a store that was closed meanwhile needs nothing.
        with contextlib.suppress(MemlayerError), self._database.entered(), self._lock:
            if self._taken:  # and the user was not evicted since
                with self.reading():
                    pass

    def _apply_taken(self, seals: tuple[object, object]) -> bool:
        """Applies what was kept, if from here it leads to these seals; whether it did."""
        taken, self._taken = self._taken, []
        if self._index is None or not taken or taken[-1][1] != seals:
            return False
        for change, seen in taken:
            if self._user is None or self._user.row != change.before.row:
                return False  # Another process wrote in between. What was applied until here is true.
            opened = [self._vault.sealer.open_record(row, user=change.after) for row in change.rows]
            items = [_light(self._vault.open_item(row, user=change.after)) for row in change.items.put]
            removed, dropped = set(change.deleted), {(item.kind, item.item_id) for item in change.items.drop}
            if not self._apply(change.after, self._index, opened, items, removed=removed, dropped=dropped):
                self.drop()
                return False
            self._user, self._seals = change.after, seen
        return True

    def _bring_up(self, connection: Connection, user: UnlockedUser, *, index: UserIndex, after: int) -> None:
        """Applies what changed after a generation, if the result adds up to the manifest."""
        opened = self._vault.read(connection, user, after=after)
        items = [_light(item) for item in self._vault.read_items(connection, user, after=after)]
        if self._apply(user, index, opened, items, removed=set(), dropped=set()):
            return
        # Nothing says which rows were deleted; those that are here and not in the store can be the answer.
        removed = index.keys() - set(self._vault.ids(connection, user))
        dropped = self._items.keys() - set(self._vault.item_ids(connection, user))
        if not self._apply(user, index, opened, items, removed=removed, dropped=dropped):
            self._vault.refuse_rows()

    def _apply(
        self,
        user: UnlockedUser,
        index: UserIndex,
        opened: Sequence[OpenedRecord],
        items: Sequence[OpenedItem],
        *,
        removed: Collection[bytes],
        dropped: Collection[tuple[int, bytes]],
    ) -> bool:
        """Applies these, if the result adds up to the user's manifest; whether it does."""
        stale, gone = index.stamps([record.memory_id for record in opened]), index.stamps(removed)
        total = self._user.manifest.total if self._user is not None else 0
        total += sum(record.element for record in opened)
        total -= sum(map(int.from_bytes, [*stale.values(), *gone.values()]))
        changed = {(item.kind, item.item_id): item for item in items}
        present = {name: item for name, item in {**self._items, **changed}.items() if name not in dropped}
        left = [item for name, item in self._items.items() if name in changed or name in dropped]
        came = [item for name, item in changed.items() if name not in dropped]
        total += sum(item.element for item in came) - sum(item.element for item in left)
        records = len(index) + len(opened) - len(stale) - len(gone)
        if not user.manifest.holds(records=records, items=len(present), total=total):
            return False
        index.apply([_entry(record) for record in opened], removed=removed)
        self._know_rounds(items, present)
        self._items = present
        self._items_nbytes += _nbytes(came) - _nbytes(left)
        self._weigh()
        return True

    def _know_rounds(self, changed: Iterable[OpenedItem], present: Collection[tuple[int, bytes]]) -> None:
        """Reads the rounds of distillation that changed, and no other: reading one costs more than all else of it."""
        rounds = {item.item_id: round_of(item) for item in changed if item.kind == ItemKind.FACTS}
        ended = [item_id for item_id in self._rounds if (ItemKind.FACTS, item_id) not in present]
        if rounds or ended:
            self._lineage = None
            self._rounds |= rounds
            for item_id in ended:
                del self._rounds[item_id]


def _light(item: OpenedItem) -> OpenedItem:
    """Vectors that a move has saved are for the move alone: here they count, by their name."""
    if item.kind != ItemKind.VECTORS:
        return item
    return replace(item, content=item.content[: 4 + int.from_bytes(item.content[:4])])


def _bytes_of(change: Change) -> int:
    records = sum(len(row.text) + len(row.vector) for row in change.rows)
    return records + sum(len(item.sealed) for item in change.items.put)


def _nbytes(items: Iterable[OpenedItem]) -> int:
    return sum(_ITEM_BYTES + len(item.content) for item in items)


def _entry(record: OpenedRecord) -> Entry:
    return Entry(
        key=record.memory_id,
        seq=record.seq,
        stamp=record.element.to_bytes(32),
        memory=record.memory,
        vectors=record.vectors,
        pictures=record.pictures,
    )


def _nothing(_: int) -> None:
    """Counts nothing."""


class Residents:
    """The users in RAM, least recently used first, within a budget of bytes.

    Args:
        budget: how many bytes of indexes to keep; the user at work stays, however large.
    """

    def __init__(self, *, vault: Vault, database: Database, budget: int) -> None:
        self._vault = vault
        self._database = database
        self._budget = budget
        self._users: OrderedDict[bytes, Resident] = OrderedDict()
        self._lock = threading.Lock()
        self._held = 0
        # A lock of its own, and the last one that is taken: users grow while they hold theirs.
        self._counting = threading.Lock()
        vault.taken_by(self._take)

    def get(self, user_id: str) -> Resident:
        """The user's place in RAM; others make room where the budget is spent."""
        with self._lock:
            uref = self._vault.uref(user_id)
            resident = self._users.get(uref)
            if resident is None:
                resident = Resident(user_id, vault=self._vault, database=self._database, account=self._account)
                self._users[uref] = resident
            self._users.move_to_end(uref)
            self._make_room()
            return resident

    @property
    def nbytes(self) -> int:
        """How much RAM all of them take."""
        return self._held

    def clear(self) -> None:
        """Frees everything."""
        with self._lock:
            for resident in self._users.values():
                resident.retire(wait=True)
            self._users.clear()

    def forked(self) -> None:
        """In the child of a fork: starts empty. What the parent holds is not closed, it is the parent's, and its locks
        may have been held by a thread that the child does not have."""
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._users = OrderedDict()
        self._held = 0

    def _take(self, write: Write) -> None:
        for change in write.changes:
            with self._lock:
                resident = self._users.get(change.after.uref)
            if resident is not None and resident.take(change, bucket=write.buckets[bucket_of(change.after.uref)]):
                _settling.put(resident, resident.settle)

    def _make_room(self) -> None:
        if self._held <= self._budget:
            return
        for uref in list(self._users)[:-1]:
            if self._users[uref].retire(wait=False):
                del self._users[uref]
            if self._held <= self._budget:
                return

    def _account(self, nbytes: int) -> None:
        with self._counting:
            self._held += nbytes
