"""An exchange on its way into the store: what the user said and what was answered, once each and in one commit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from memlayer.batch import Batch
from memlayer.injection import exchanged

if TYPE_CHECKING:
    from memlayer.injection import Prepared
    from memlayer.ledger import Entry, Ledger
    from memlayer.records import Memory, Turn
    from memlayer.resident import Resident
    from memlayer.spaces import Spaces
    from memlayer.vault import UnlockedUser, Vault
    from memlayer.writes import ItemChanges

__all__ = ["Capture"]


class Capture:
    """One capture.

    What is to be written is asked twice: before any lock is held, so that it can be embedded, and in the transaction,
    where it stands still. In between another process may have written a side of it, or erased the user.

    Args:
        prepared: the request.
        reply: what the assistant said, or None.
        complete: whether the reply is whole.
        ledger: of the same user, over the same `resident`.
        spaces: has the user's embedder.
    """

    def __init__(
        self,
        prepared: Prepared,
        reply: str | None,
        *,
        complete: bool,
        ledger: Ledger,
        vault: Vault,
        resident: Resident,
        spaces: Spaces,
    ) -> None:
        self._prepared = prepared
        self._reply = reply
        self._complete = complete
        # When it was said, and not when it was embedded and written: the next question may come in between.
        self._at = datetime.now(UTC)
        self._ledger = ledger
        self._vault = vault
        self._resident = resident
        self._spaces = spaces

    def run(self) -> list[Memory]:
        """What was remembered."""
        written = None
        while written is None:
            with self._resident.reading() as (known, index):
                batch = Batch(self._exchanged(known)[0], vault=self._vault, replace=False)
                due = batch.due(known, index)
            if not batch.turns:
                return []
            if due:
                batch.embed(self._spaces.of(known), due, progress=False)
            with self._vault.write() as write, self._resident.writing(write) as (user, index):
                turns, entry = self._exchanged(user)
                if turns == batch.turns and batch.is_embedded(batch.due(user, index), user=user):
                    written = batch.write(write, user, index, items=self._noted(user, entry))
        if self._prepared.key is not None:
            self._ledger.written(self._prepared.key)
        return written

    def _noted(self, user: UnlockedUser, entry: Entry | None) -> ItemChanges | None:
        key = self._prepared.key
        return None if key is None or entry is None else self._ledger.changes(user, key, entry)

    def _exchanged(self, user: UnlockedUser | None) -> tuple[list[Turn], Entry | None]:
        prepared = self._prepared
        if (0 if user is None else user.manifest.generation) < prepared.generation:
            # The user was erased while the answer was under way: it must not begin a new one with what went.
            return [], None
        entry = prepared.entry
        if entry is not None and prepared.key is not None:
            entry = self._ledger.current(user, prepared.key, entry)
        return exchanged(prepared, entry, self._reply, complete=self._complete, at=self._at)
