"""LangGraph: items as they are stored, and what a store answers about them, with the meaning of `InMemoryStore`.

Stored name:       JSON [*namespace, key]
Stored content:    JSON {"order": [n, n], "created": t, "updated": t, "value": {...}, "vectors": [base64 of float32]}
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from operator import ge, gt, le, lt
from typing import TYPE_CHECKING, Any

import numpy as np
from langgraph.store.base import GetOp, Item, ListNamespacesOp, SearchItem, SearchOp

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langgraph.store.base import MatchCondition, Op, Result

__all__ = ["Entry", "Vectors", "answer", "entries_of", "name_of", "packed"]

Vectors = dict[str, list[float]]
"""By the text that they were made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stored item. `order` says when its namespace and when it itself was new: items come in that order."""

    name: str
    namespace: tuple[str, ...]
    key: str
    order: list[int]
    created: str
    updated: str
    value: dict[str, Any]
    vectors: list[str]

    def fields(self) -> dict[str, Any]:
        """What LangGraph's own `Item` is made of."""
        at = {"created_at": datetime.fromisoformat(self.created), "updated_at": datetime.fromisoformat(self.updated)}
        return {"namespace": self.namespace, "key": self.key, "value": self.value, **at}


def name_of(namespace: Sequence[str], key: str) -> str:
    """The name that an item is stored under."""
    return json.dumps([*namespace, key])


def _entry(name: str, content: bytes) -> Entry:
    *namespace, key = json.loads(name)
    return Entry(name=name, namespace=tuple(namespace), key=key, **json.loads(content))


def entries_of(items: Mapping[str, bytes], prefix: tuple[str, ...] = ()) -> list[Entry]:
    """The items under a prefix, in their order."""
    start = json.dumps(prefix)[:-1]  # Other kinds of names do not begin so; the quotes keep ("a",) from ("ab",).
    entries = [_entry(name, content) for name, content in items.items() if name.startswith(start)]
    return sorted((one for one in entries if one.namespace[: len(prefix)] == prefix), key=lambda one: one.order)


def packed(vector: Sequence[float]) -> str:
    """A vector as it stands in an item."""
    return b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def answer(op: Op, items: Mapping[str, bytes], queries: Vectors) -> Result:
    """The result of an operation that reads; None for one that writes."""
    if isinstance(op, GetOp):
        name = name_of(op.namespace, op.key)
        return Item(**_entry(name, items[name]).fields()) if name in items else None
    if isinstance(op, SearchOp):
        return _found(op, entries_of(items, tuple(op.namespace_prefix)), queries.get(op.query or ""))
    if isinstance(op, ListNamespacesOp):
        return _namespaces(op, {entry.namespace for entry in entries_of(items)})
    return None


def _found(op: SearchOp, entries: list[Entry], query: list[float] | None) -> list[SearchItem]:
    asked = (op.filter or {}).items()
    entries = [one for one in entries if all(_meets(one.value.get(field), wanted) for field, wanted in asked)]
    ranked = [(one, None if query is None else _best_cosine(one.vectors, query)) for one in entries]
    if query is not None:
        ranked.sort(key=lambda one: -2.0 if one[1] is None else one[1], reverse=True)
    return [SearchItem(**one.fields(), score=score) for one, score in ranked[op.offset : op.offset + op.limit]]


def _namespaces(op: ListNamespacesOp, namespaces: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [one for one in namespaces if all(_matches(one, condition) for condition in op.match_conditions or ())]
    return sorted({one[: op.max_depth] for one in kept})[op.offset : op.offset + op.limit]


def _best_cosine(vectors: Sequence[str], query: Sequence[float]) -> float | None:
    """The cosine of the query and the best of these vectors; None where none has its length."""
    asked = np.asarray(query, np.float32)
    given = [np.frombuffer(b64decode(vector), "<f4") for vector in vectors]
    rows = [vector for vector in given if vector.shape == asked.shape]
    if not rows:
        return None
    lengths = [float(np.linalg.norm(row) * np.linalg.norm(asked)) for row in rows]
    return max(float(row @ asked) / length if length else 0.0 for row, length in zip(rows, lengths, strict=True))


def _meets(value: Any, wanted: Any) -> bool:
    """Whether a value meets a filter: operators, a part of an object, a list of such, or the same."""
    if isinstance(wanted, dict) and any(name.startswith("$") for name in wanted):
        return all(_compares(value, operator, operand) for operator, operand in wanted.items())
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(_meets(value.get(field), own) for field, own in wanted.items())
    if isinstance(wanted, list | tuple):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_meets, value, wanted))
    return bool(value == wanted)


_ORDERS = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


def _compares(value: Any, operator: str, operand: Any) -> bool:
    if operator in ("$eq", "$ne"):
        return bool(value == operand) is (operator == "$eq")
    if operator not in _ORDERS:
        raise InvalidInputError("a filter knows $eq, $ne, $gt, $gte, $lt and $lte")
    try:
        return bool(_ORDERS[operator](float(value), float(operand)))
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, str) and isinstance(operand, str) and bool(_ORDERS[operator](value, operand))


def _matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins or ends as the condition says; "*" stands for any one label."""
    if condition.match_type not in ("prefix", "suffix"):
        raise InvalidInputError("a condition on namespaces is prefix or suffix")
    path = condition.path
    part = (
        namespace[: len(path)] if condition.match_type == "prefix" else namespace[max(0, len(namespace) - len(path)) :]
    )
    return len(part) == len(path) and all(own in ("*", label) for label, own in zip(part, path, strict=True))
