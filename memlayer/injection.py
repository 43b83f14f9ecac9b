"""What is put into a request, and where: the logic of `UserMemory.prepare`, without a database and without a provider.

The latest thing that the user said is what memory is asked for; the answer goes behind it, as a text part of its own in
the same message. Behind the user's own words, because a provider's prompt cache keeps the beginning of a request; and
again on every later turn of the conversation, byte for byte ("sticky"), because otherwise the next request would differ
from this one in the middle. A ledger keeps which memories were put behind which message. It is keyed by a digest of the
conversation up to that message, so that a retry, a tool loop or a fallback to another provider finds its entry, asks
recall nothing, and remembers the user's turn once.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from memlayer.errors import InvalidInputError
from memlayer.ledger import Entry
from memlayer.prompt import estimate_tokens, fitting, without_blocks
from memlayer.records import Recall, Turn, valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memlayer.codec import Codec, Message
    from memlayer.ledger import Ledger
    from memlayer.records import Hit, Memory

M = TypeVar("M", bound="Memory")

__all__ = ["Placement", "Preparation", "Prepared", "ledger_keys"]

Placement: TypeAlias = Literal["sticky", "ephemeral", "system"]
"""Where a block goes: behind the user's words and again on later turns; there, and on this turn only; or at the end of
the system prompt, on this turn only."""

MAX_STICKY_TOKENS = 4_000
"""How much of a conversation may be memory. When it is reached, what stands there stays, for taking something out would
cost the provider's cache from there on; and nothing more is added."""

# A question of fewer words than this is about what was said before it ("yes, do it").
_SHORT_WORDS = 4
_SHORT_BYTES = 24
_PREVIOUS_CHARACTERS = 300
# An embedder reads some 250 pieces; of a long paste the question is at the beginning or the end.
_QUERY_CHARACTERS = 2_000
# How many of the messages that the prompt already shows may stand in the way of other memories.
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request with memory in it. Pass it to `UserMemory.capture` together with the reply.

    Attributes:
        request: what to send: a copy of what was passed in, with the blocks in it, or the very same object where
            nothing was to be added.
        block: the block of this turn; "" where nothing fits.
        owner: the user's id; for `capture` to refuse another's.
        hits: the memories in it, best first, with their scores; a block that was made before has none.
    """

    request: Any = field(repr=False)
    owner: str = field(repr=False)
    block: str = field(default="", repr=False)
    hits: Recall = field(default_factory=lambda: Recall([]))
    # For `capture`: the user's own text and its place in the ledger; "" and None where there is nothing of the user's.
    text: str = field(default="", repr=False)
    key: bytes | None = None
    entry: Entry | None = None
    # How many writes the user had seen; fewer at `capture` mean that everything was erased in between.
    generation: int = 0
    session: str | None = None
    captures: bool = True

    @property
    def messages(self) -> Any:
        """The request, by the name that it has for a list of messages."""
        return self.request


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How requests are prepared.

    Attributes:
        owner: the user's id.
        codec: reads and writes them.
        ledger: which memories stand behind which message, for one user.
        recall: asks for what fits a query, with at most so many hits.
        session: the conversation, or None.
        placement: where a block goes.
        k: how many memories a block has at most.
        max_tokens: how long a block may be.
        count_tokens: how many tokens a text has; an estimate where it is None.
    """

    owner: str
    codec: Codec
    ledger: Ledger
    recall: Callable[[str, int], Recall]
    session: str | None = None
    placement: Placement = "sticky"
    k: int = 10
    max_tokens: int = 800
    count_tokens: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        if self.placement not in ("sticky", "ephemeral", "system"):
            raise InvalidInputError("placement must be sticky, ephemeral or system")
        fitting([], max_tokens=self.max_tokens)
        if self.session is not None:
            valid_name(self.session, name="session")

    def prepare(self, request: Any) -> Prepared:
        """The request with memory in it."""
        messages = self.codec.messages(request)
        asked = [number for number, message in enumerate(messages) if message.role == "user"]
        if not messages:
            return self._untouched(request, captures=False)
        if not asked:
            # Results of tools for a conversation that the provider keeps: only the reply is new.
            return self._untouched(request)
        own = [_own(message) for message in messages]
        last = asked[-1]
        if own[last] is not messages[last]:
            # Somebody around us (a framework, a gateway) has put memory here already, and will take the reply.
            return self._untouched(request, captures=False)
        keys = ledger_keys(own, session=self.session)
        entries, memories, generation = self.ledger.look([keys[number] for number in asked])
        carried = self._carried(own, asked[:-1], keys, entries, memories) if self._is_sticky(request) else {}
        if not own[last].text.strip():
            return self._untouched(self._inserted(request, own, carried))
        key = keys[last]
        entry = entries.get(key)
        hits: list[Hit] = []
        if entry is not None and not (entry.done and last == len(own) - 1):
            chosen = [memories[memory_id] for memory_id in entry.memory_ids if memory_id in memories]
            block = self._fitting(chosen, max_tokens=self.max_tokens)[0]
        else:
            block, hits = self._recalled(own, last, carried)
            entry = self.ledger.open(key, Entry((), os.urandom(16), datetime.now(UTC)), hits)
        return Prepared(
            request=self._placed(request, own, carried, last, block),
            owner=self.owner,
            block=block,
            hits=Recall(hits),
            text=own[last].text,
            key=key,
            entry=entry,
            generation=generation,
            session=self.session,
        )

    def _untouched(self, request: Any, *, captures: bool = True) -> Prepared:
        return Prepared(request=request, owner=self.owner, session=self.session, captures=captures)

    def _is_sticky(self, request: Any) -> bool:
        return self.placement == "sticky" and not self.codec.is_stateful(request)

    def _carried(
        self,
        own: Sequence[Message],
        earlier: Sequence[int],
        keys: dict[int, bytes],
        entries: dict[bytes, Entry],
        memories: dict[bytes, Memory],
    ) -> dict[int, tuple[str, list[Memory]]]:
        """The blocks behind earlier messages of this conversation with their memories, as many as may be."""
        carried: dict[int, tuple[str, list[Memory]]] = {}
        room = MAX_STICKY_TOKENS
        for number in earlier:
            entry = entries.get(keys[number])
            ids = entry.memory_ids if entry is not None and own[number].text.strip() else ()
            block, chosen = self._fitting(
                [memories[memory_id] for memory_id in ids if memory_id in memories], max_tokens=self.max_tokens
            )
            cost = self._count(block)
            if chosen and cost <= room:
                room -= cost
                carried[number] = (block, chosen)
        return carried

    def _recalled(
        self, own: Sequence[Message], last: int, carried: dict[int, tuple[str, list[Memory]]]
    ) -> tuple[str, list[Hit]]:
        """A block of what fits the latest question and does not stand in the prompt: at most `k`, and as many as there
        is room for."""
        room = min(self.max_tokens, MAX_STICKY_TOKENS - sum(self._count(block) for block, _ in carried.values()))
        if room <= 0:
            return "", []
        there = {memory.id for _, chosen in carried.values() for memory in chosen}
        hits = self.recall(_query(own, last), self.k + min(len(own) + len(there), _MOST_SHOWN))
        # A message that is much longer than every hit says more than any of them.
        longest = 2 * max((len(hit.text) for hit in hits), default=0) + 100
        shown = {_same(message.text) for message in own if len(message.text) <= longest}
        new = [hit for hit in hits if hit.id not in there and _same(hit.text) not in shown]
        return self._fitting(new[: self.k], max_tokens=room)

    def _fitting(self, memories: Sequence[M], *, max_tokens: int) -> tuple[str, list[M]]:
        return fitting(memories, max_tokens=max_tokens, count_tokens=self.count_tokens) if memories else ("", [])

    def _count(self, text: str) -> int:
        return (self.count_tokens or estimate_tokens)(text) if text else 0

    def _inserted(self, request: Any, own: Sequence[Message], carried: dict[int, tuple[str, list[Memory]]]) -> Any:
        blocks = {own[number].place: block for number, (block, _) in carried.items()}
        return self.codec.insert(request, blocks) if blocks else request

    def _placed(
        self,
        request: Any,
        own: Sequence[Message],
        carried: dict[int, tuple[str, list[Memory]]],
        last: int,
        block: str,
    ) -> Any:
        if self.placement == "system" or self.codec.is_stateful(request):
            instructed = self.codec.instruct(request, block) if block else None
            return request if instructed is None else instructed
        return self._inserted(request, own, {**carried, last: (block, [])} if block else carried)


def _own(message: Message) -> Message:
    """The message without what memory put into it; the very same one where that is nothing."""
    text = without_blocks(message.text)
    return message if text is message.text or text == message.text else replace(message, text=text)


def exchanged(
    prepared: Prepared, entry: Entry | None, reply: str | None, *, complete: bool, at: datetime
) -> tuple[list[Turn], Entry | None]:
    """What is to be remembered of one exchange, and the entry as it is once that has been.

    Args:
        prepared: the request.
        entry: its entry in the ledger as it stands now; None where the user said nothing in it.
        reply: what the assistant said; None where that is nothing, or nothing to keep.
        complete: whether the reply is whole. Where it is not, the same request may be sent again, and its reply is then
            remembered too.
        at: when it was said.
    """
    if reply is not None and not isinstance(reply, str):
        raise InvalidInputError(f"a reply must be a str or None, not {type(reply).__name__}")
    turns = []
    if entry is not None and not entry.said:
        turns.append(Turn(text=prepared.text, session=prepared.session, at=entry.at, id=entry.turn.hex()))
        entry = replace(entry, said=True)
    if reply is not None and reply.strip():
        metadata = None if complete else {"incomplete": True}
        turns.append(Turn(text=reply, role="assistant", session=prepared.session, at=at, metadata=metadata))
        entry = None if entry is None else replace(entry, done=entry.done or complete)
    return turns, entry


def ledger_keys(messages: Sequence[Message], *, session: str | None) -> dict[int, bytes]:
    """For each message of the user's, by its number, 32 bytes that stand for the conversation up to and including it.

    Only what was said counts, by user and assistant: a system prompt may hold the time of day, and what tools answered
    is not the same with every provider.
    """
    digest = hashlib.sha256(b"memlayer ledger 1")
    _add(digest, b"s", session or "")
    keys = {}
    for number, message in enumerate(messages):
        if message.role in ("user", "assistant"):
            _add(digest, b"u" if message.role == "user" else b"a", message.text.strip())
        if message.role == "user":
            keys[number] = digest.copy().digest()
    return keys


def _add(digest: Any, kind: bytes, text: str) -> None:
    if kind == b"a" and not text:
        return  # A tool call: what it says is in the tool's own format.
    encoded = text.encode(errors="surrogatepass")
    digest.update(kind + len(encoded).to_bytes(8) + encoded)


def _query(own: Sequence[Message], last: int) -> str:
    text = own[last].text.strip()
    if len(re.findall(r"\w+", text)) < _SHORT_WORDS and len(text.encode(errors="surrogatepass")) <= _SHORT_BYTES:
        before = next((message for message in reversed(own[:last]) if message.text.strip()
                       and message.role in ("user", "assistant")), None)  # fmt: skip
        if before is not None:
            return f"{before.text.strip()[-_PREVIOUS_CHARACTERS:]}\n{text}"
    if len(text) > _QUERY_CHARACTERS:
        half = _QUERY_CHARACTERS // 2
        return f"{text[:half]}\n{text[-half:]}"
    return text


def _same(text: str) -> str:
    """What two texts have in common that say the same in other white space."""
    return " ".join(text.split())
