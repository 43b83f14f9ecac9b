"""LangGraph: a `BaseStore` that keeps its items in one user's memory, sealed as everything there is.

    store = MemlayerStore(alice, index={"embed": embeddings, "dims": 384, "fields": ["text"]})
    graph = builder.compile(store=store)

The store is bound to its user: namespaces lie inside of what this user has, and are erased with the user. Its items are
no memories, so `recall` does not find them, and the store finds no memories.

As `InMemoryStore`, but for what that one has no place for: values come back as JSON gives them back; `created_at` stays
when an item is overwritten; an item that lacks a field, or has something else than a number there, does not meet a
comparison instead of raising; items without a vector come after the others on each page. There is no time to live.
One batch is one transaction: its reads see what was there before its writes.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memlayer import workers
from memlayer.errors import InvalidInputError, MissingExtraError
from memlayer.items import ItemKind
from memlayer.wrapping import one_user

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        ListNamespacesOp,
        PutOp,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
    )

    from memlayer.adapters.langgraph_search import Vectors, answer, entries_of, name_of, packed
except ImportError as error:
    raise MissingExtraError('langgraph is missing: pip install "memlayer-sdk[langgraph]"') from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from langgraph.store.base import IndexConfig, Op, Result

    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory

__all__ = ["MemlayerStore"]


class MemlayerStore(BaseStore):
    """A LangGraph store inside of one user's memory.

    Args:
        memory: of one user.
        index: as `InMemoryStore` takes it: what embeds (`embed`) and which fields of a value (`fields`, by default all
            of it). Without it a query ranks nothing.

    Raises:
        InvalidInputError: this is not the memory of one user.
    """

    def __init__(self, memory: UserMemory | AsyncUserMemory, *, index: IndexConfig | None = None) -> None:
        self._items = one_user(memory).items(ItemKind.FRAMEWORK)
        self._embeddings = None if index is None else ensure_embeddings(index.get("embed"))
        self._fields = list((index or {}).get("fields") or ["$"])

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Executes operations in one transaction; the result of each.

        Raises:
            InvalidInputError: a value is no JSON; nothing was written.
        """
        ops = _checked(ops)
        texts, queries = self._due(ops)
        documents: Vectors = {}
        asked: Vectors = {}
        if self._embeddings is not None:
            documents = dict(zip(texts, self._embeddings.embed_documents(texts), strict=True)) if texts else {}
            asked = {query: self._embeddings.embed_query(query) for query in queries}
        return self._executed(ops, documents, asked)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`, and never on the event loop."""
        ops = _checked(ops)
        texts, queries = self._due(ops)
        documents: Vectors = {}
        asked: Vectors = {}
        if self._embeddings is not None:
            documents = dict(zip(texts, await self._embeddings.aembed_documents(texts), strict=True)) if texts else {}
            vectors = await asyncio.gather(*(self._embeddings.aembed_query(query) for query in queries))
            asked = dict(zip(queries, vectors, strict=True))
        return await asyncio.wrap_future(workers.submit(self._executed, ops, documents, asked))

    def _due(self, ops: Sequence[Op]) -> tuple[list[str], list[str]]:
        """The texts and the queries to embed, each once."""
        texts = [text for op in ops if isinstance(op, PutOp) for text in self._texts(op)]
        queries = [op.query for op in ops if isinstance(op, SearchOp) and op.query]
        return list(dict.fromkeys(texts)), list(dict.fromkeys(queries))

    def _texts(self, op: PutOp) -> list[str]:
        if self._embeddings is None or op.value is None or op.index is False:
            return []
        value = _plain(op.value)
        paths = self._fields if op.index is None else op.index
        return [text for path in paths for text in get_text_at_path(value, path)]

    def _executed(self, ops: Sequence[Op], documents: Vectors, queries: Vectors) -> list[Result]:
        # Of several writes to one place the last one counts.
        puts = {name_of(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if not puts:
            items = self._items.read()
            return [answer(op, items, queries) for op in ops]
        with self._items.change() as items:
            results = [answer(op, items, queries) for op in ops]
            self._put(puts, items, documents)
        return results

    def _put(self, puts: Mapping[str, PutOp], items: dict[str, bytes], documents: Vectors) -> None:
        entries = {entry.name: entry for entry in entries_of(items)}
        homes = {entry.namespace: entry.order[0] for entry in entries.values()}
        latest = max((entry.order[1] for entry in entries.values()), default=0)
        now = datetime.now(UTC).isoformat()
        for number, (name, op) in enumerate(puts.items(), latest + 1):
            if op.value is None:
                items.pop(name, None)
                continue
            there = entries.get(name)
            content = {
                "order": there.order if there else [homes.setdefault(tuple(op.namespace), number), number],
                "created": there.created if there else now,
                "updated": now,
                "value": _plain(op.value),
                "vectors": [packed(documents[text]) for text in self._texts(op)],
            }
            items[name] = json.dumps(content, separators=(",", ":")).encode()


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it will come back."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"a value must be a JSON object ({type(error).__name__})") from None
    return plain


def _checked(ops: Iterable[Op]) -> list[Op]:
    ops = list(ops)
    for op in ops:
        if not isinstance(op, GetOp | SearchOp | PutOp | ListNamespacesOp):
            raise InvalidInputError(f"an operation must be one of LangGraph's, not {type(op).__name__}")
        if isinstance(op, PutOp) and op.ttl is not None:
            raise InvalidInputError("this store has no time to live; nothing was written")
    return ops
