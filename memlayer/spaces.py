"""The embedders that this process has, and which of them is a user's.

Vectors of two embedders cannot be compared, even where they are of one length. While a store is being moved from one
embedder to another, some users are in the space of the one and some in that of the other; a process may have either, or
both. Whoever embeds for a user asks here, and looks again in the transaction whether it still holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlayer.errors import EmbedderMismatchError
from memlayer.query_cache import QueryCache

if TYPE_CHECKING:
    from memlayer.embedders.protocol import Embedder
    from memlayer.vault import UnlockedUser, Vault

__all__ = ["Spaces"]


class Spaces:
    """The embedders of one open store in this process; shared by threads.

    Args:
        embedder: the one that the store was opened with.
        vault: knows which embedder a user's vectors are of.

    Attributes:
        own: the embedder that the store is used with: vectors that a caller brings are of its space.
        queries: the vectors of the last questions.
    """

    def __init__(self, embedder: Embedder, *, vault: Vault) -> None:
        self._vault = vault
        self._embedders: dict[bytes, Embedder] = {}
        self.queries = QueryCache()
        self.own = embedder
        self.use(embedder)

    def add(self, embedder: Embedder) -> None:
        """One more, for the users who are in its space."""
        self._embedders[embedder.identity.digest()] = embedder

    def use(self, embedder: Embedder) -> None:
        """This one from now on."""
        self.add(embedder)
        self.own = embedder
        self._vault.own = embedder.identity.digest()

    def of(self, user: UnlockedUser | None) -> Embedder:
        """The embedder of a user's vectors; None is a user who has nothing yet.

        Raises:
            EmbedderMismatchError: this process does not have it.
        """
        number = self._vault.number_for_new if user is None else user.embedder_no
        embedder = self._embedders.get(self._vault.digest(number))
        if embedder is None:
            raise self.mismatch(number)
        return embedder

    def check_own(self, user: UnlockedUser | None) -> None:
        """Raises `EmbedderMismatchError` unless vectors of the caller's are in the user's space."""
        number = self._vault.number_for_new if user is None else user.embedder_no
        if self._vault.digest(number) != self.own.identity.digest():
            raise self.mismatch(number)

    def mismatch(self, number: int) -> EmbedderMismatchError:
        """What to say where the vectors in question are of the embedder with this number."""
        theirs, own = self._vault.identity(number), self.own.identity
        return EmbedderMismatchError(
            f"this user's memories are embedded by {theirs.model!r} ({theirs.dimensions} dimensions), and the store is "
            f"open here with {own.model!r} ({own.dimensions} dimensions). Open it with that embedder, or finish the "
            "change of embedder with `memlayer reembed`; until then get, history, forget and export work",
            written=theirs.model,
            given=own.model,
        )
