"""What can be asked of one user's memory: everything that reads, and nothing that writes."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer.batch import find
from memlayer.calibration import calibration_of
from memlayer.embedding import given_query
from memlayer.errors import InvalidInputError, NotFoundError
from memlayer.facts import with_sources
from memlayer.filters import Condition
from memlayer.questions import read_question
from memlayer.ranking import checked_parts
from memlayer.records import History, Memory, Recall, utc, valid_name, valid_text
from memlayer.searching import Shown
from memlayer.second_stage import RERANKED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from memlayer.database import Database
    from memlayer.embedders.protocol import Embedder
    from memlayer.health import Breaker, Loading
    from memlayer.index import UserIndex
    from memlayer.ledger import Pending
    from memlayer.lineage import Lineage
    from memlayer.questions import Question
    from memlayer.ranking import Part
    from memlayer.records import Session, Source
    from memlayer.resident import Resident, Residents
    from memlayer.second_stage import SecondStage
    from memlayer.spaces import Spaces
    from memlayer.vault import UnlockedUser, Vault

__all__ = ["MAX_K", "Recalling", "counted", "not_found", "scored"]

MAX_K = 10_000
# In seconds. An embedder that takes longer than this to embed a query is the longer part of the recall anyway.
_MOMENT = 0.05
MAX_NEIGHBOURS = 10


class Recalling:
    """The reading half of `UserMemory`: bound to its user for life, shareable by threads."""

    def __init__(
        self,
        user_id: str,
        *,
        vault: Vault,
        database: Database,
        residents: Residents,
        spaces: Spaces,
        pending: Pending,
        breaker: Breaker,
        loading: Loading,
        second_stage: SecondStage | None = None,
    ) -> None:
        self._user_id = user_id
        self._vault = vault
        self._database = database
        self._residents = residents
        self._spaces = spaces
        self._pending = pending
        self._second_stage = second_stage
        self.breaker = breaker
        self.loading = loading

    def recall(
        self,
        query: str | NDArray[np.float32],
        *,
        k: int = 10,
        session: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        sources: Sequence[Source] | None = None,
        min_score: float | None = None,
        now: datetime | None = None,
        neighbours: int = 0,
        passages: bool = False,
        explain: bool = False,
        without: Collection[Part] = (),
    ) -> Recall:
        """What fits the query, best first. Sees every write that was committed before it began.

        A text is compared by its meaning and by its words, with each turn and with what stands next to it; see
        `memlayer.ranking`. A vector is compared with the turns' own vectors, and the score is the cosine.

        Args:
            query: a text, or a vector of the embedder's dimensions.
            k: at most how many, 1 to 10,000.
            session: only of this conversation.
            since, until: only what was said in `since <= at < until`.
            where: only what has this metadata; see `memlayer.filters`.
            sources: only from these sources.
            min_score: the floor, 0 to 1; 0 asks for everything, None is the embedder's own floor, below which
                nothing answers the question.
            now: what counts as now, for expiry and for "last week"; the clock by default.
            neighbours: give up to so many turns before and after each hit too, 0 to 10: once each, in the order in
                which they were said, around the hit that they belong to (see `Hit.beside`). Not with a reranker.
            passages: give each hit of a long text its best `passage`, which is then what goes into a prompt.
            explain: give each hit its `parts`.
            without: the parts of the score that are switched off, by name; see `memlayer.ranking.PARTS`.
        """
        counted(k, name="k", most=MAX_K)
        if min_score is not None:
            scored(min_score)
        if type(neighbours) is not int or not 0 <= neighbours <= MAX_NEIGHBOURS:
            raise InvalidInputError(f"neighbours must be an int from 0 to {MAX_NEIGHBOURS}", limit=MAX_NEIGHBOURS)
        now = datetime.now(UTC) if now is None else utc(now, name="now")
        condition = Condition(
            session=session,
            since=since,
            until=until,
            sources=sources,
            where=where,
            alive_at=now,
        )
        off = checked_parts(without)
        with self._searching(query, without=off) as (index, vector, question, embedder, lineage):
            if index is None:
                return Recall([])
            split = getattr(embedder, "split", None) if passages else None
            # A fact that a newer one took the place of stays stored, and is an answer no more.
            shown = Shown(parts=explain, neighbours=neighbours, split=split, hidden=lineage.superseded)
            if question is None:
                near = index.search(vector, k=k, condition=condition, floor=min_score or 0.0, shown=shown)
                return Recall(with_sources(near, lineage=lineage, index=index))
            # Beside a hit stand turns that are none: they have their order already.
            stage = None if "reranker" in off or neighbours else self._second_stage
            calibration = calibration_of(embedder.identity)
            hits = index.answer(
                question,
                vector,
                k=k if stage is None else max(k, RERANKED),
                condition=condition,
                floor=calibration.floor if min_score is None else min_score,
                now=now,
                calibration=calibration,
                without=off,
                knows_all_languages=getattr(embedder, "languages", None) is None,
                shown=shown,
            )
            hits = with_sources(hits, lineage=lineage, index=index)
        return Recall(hits if stage is None else stage.order(str(query), hits)[:k])

    def history(self, *, session: str | None = None, limit: int = 50, before: str | None = None) -> History:
        """The last `limit` turns, oldest first, of one session or of all; expired ones are left out.

        Args:
            before: the `cursor` of a history, to get the turns before it.
        """
        counted(limit, name="limit", most=MAX_K)
        if session is not None:
            valid_name(session, name="session")
        with self._resident.reading() as (_, index):
            if index is None:
                return History([], cursor=None)
            return index.history(session=session, limit=limit, before=before, alive_at=datetime.now(UTC))

    def sessions(self) -> list[Session]:
        """All conversations, the one with the latest turn first."""
        with self._resident.reading() as (_, index):
            return [] if index is None else index.sessions(datetime.now(UTC))

    def get(self, id: str) -> Memory:
        """The memory with this id.

        Raises:
            NotFoundError: this user has no such memory; nothing is told of others.
        """
        with self._resident.reading() as (user, index):
            memory_id = self._find(id, user, index)
            memory = None if memory_id is None or index is None else index.get(memory_id)
            if memory is None:
                raise not_found()
            return memory

    def count(self) -> int:
        """How many memories there are, expired ones included."""
        with self._resident.reading() as (_, index):
            return 0 if index is None else len(index)

    __len__ = count

    def __bool__(self) -> bool:
        # Otherwise `if memory:` would be false for a new user, and a chat without memory would go unnoticed.
        return True

    # ---------------------------------------------------------------- inside

    @contextmanager
    def _searching(
        self, query: str | NDArray[np.float32], *, without: Collection[str]
    ) -> Iterator[tuple[UserIndex | None, NDArray[np.float32], Question | None, Embedder, Lineage]]:
        """The index, locked; the query's vector in the space of the index's vectors; the question, where the query is a
        text; the embedder; and where facts are from. No index where there is nothing to search, and then no model was
        loaded."""
        resident, given = self._resident, not isinstance(query, str)
        question: Question | None = None
        vector = np.empty(0, np.float32)
        if isinstance(query, str):
            valid_text(query)
        else:
            vector = given_query(query, dimensions=self._spaces.own.identity.dimensions)
        embedder: Embedder | None = None
        looked = -math.inf
        while True:
            # What was seen a moment ago was committed before the recall began; another look costs as much as the rest.
            known = embedder is not None and time.monotonic() - looked < _MOMENT
            with resident.known() if known else resident.reading() as (user, index):
                if known and (user is None or index is None):
                    looked = -math.inf  # evicted, or erased
                    continue
                if user is None or index is None or not len(index):
                    yield None, vector, None, self._spaces.own, resident.lineage
                    return
                if given:
                    self._spaces.check_own(user)
                # Otherwise nothing is embedded yet, or the user was moved to another embedder in between.
                if given or (
                    embedder is not None and embedder.identity.digest() == self._vault.digest(user.embedder_no)
                ):
                    yield index, vector, question, embedder or self._spaces.own, resident.lineage
                    return
                looked = time.monotonic()
                embedder = self._spaces.of(user)
                question = read_question(str(query), speakers=() if "speaker" in without else index.speakers)
            vector = self._spaces.queries.vector(embedder, question.spoken, user_id=self._user_id)

    @property
    def _resident(self) -> Resident:
        return self._residents.get(self._user_id)

    def _find(self, id: str, user: UnlockedUser | None, index: UserIndex | None) -> bytes | None:
        """The memory that a visible id stands for: an own id by its keyed hash, else the id that memlayer chose."""
        return find(valid_name(id, name="id"), user=user, index=index)


def counted(value: int, *, name: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be an int from 1 to {most}", name=name, limit=most)
    return value


def scored(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInputError("min_score must be a number from 0 to 1")
    return float(value)


def not_found() -> NotFoundError:
    return NotFoundError("this user has no memory with this id")
