"""`where` and the other conditions of a recall, compiled to one SQL expression over a user's rows in RAM.

Pure: a mapping in, SQL text and bound parameters out. The text is put together from the constants of this file only;
every key and value that the caller wrote is a bound parameter.

The rows it speaks about (made by `memlayer.index`):

    turns   row INTEGER PRIMARY KEY, session, at, expires, source, ...      times in microseconds
    fields  turn, key, value                                                one row per top-level key of the metadata

The language:

    {"channel": "web"}                      equal to; any JSON value, None is JSON null
    {"n": {"$gte": 50, "$lt": 60}}          $eq $ne $in $nin (any JSON values), $gt $gte $lt $lte (numbers or strings),
                                            $exists (True or False); several on one key must all hold
    {"a": 1, "b": 2}                        several keys must all hold; {} holds for every turn
    {"$or": [{...}, {...}], "$not": {...}}  $and, $or take a list that is not empty, $not takes one mapping

- A key is literal, never a path. A metadata key that begins with "$" cannot be asked for.
- Values of different JSON types never match and never compare: True is not 1, "1" is not 1. 1 and 1.0 are the same
  number, also inside lists and objects, which are equal when all that they hold is; the order of keys is nothing.
- Strings compare by code point, numbers by value, exactly.
- A turn without the key matches `$ne`, `$nin` and `{"$exists": False}` only.
- A mapping whose keys begin with "$" is operators; any other, {} included, is an object to be equal to. To compare with
  an object that has such keys, write `{"$eq": {...}}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

from memlayer.errors import InvalidFilterError, InvalidInputError
from memlayer.records import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    Source,
    to_microseconds,
    utc,
    valid_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

__all__ = ["MATCH_ALL", "Condition", "Sql", "column_value", "compile_where"]

SqlValue: TypeAlias = int | float | str | bytes

# Each operand is one look-up in an index. A thousand stay under SQLite's 32,766 parameters and compile in milliseconds.
MAX_OPERANDS = 1_000
# Far below SQLite's bound of 1,000 on the depth of an expression: one level costs at most 2 + log2(MAX_OPERANDS).
MAX_NESTING = 32
# 16 KiB of metadata cannot hold more values than this, so an object or list that does matches nothing.
MAX_VALUES = MAX_METADATA_BYTES

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = "$eq $ne $gt $gte $lt $lte $in $nin $exists"
_INT64 = range(-(2**63), 2**63)
_SOURCES = frozenset(get_args(Source))


class Sql(NamedTuple):
    """A part of a statement.

    Attributes:
        text: SQL with one `?` per parameter; nothing of the caller's is in it.
        parameters: what is bound, in order.
    """

    text: str
    parameters: tuple[SqlValue, ...] = ()


MATCH_ALL = Sql("1")
_MATCH_NONE = Sql("0")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Which turns are meant. What is None does not restrict; everything that is given must hold.

    Checked and compiled where it is made, so that a condition that exists can be asked.

    Attributes:
        session: turns of this conversation.
        since: turns said at or after this time, aware.
        until: turns said before this time, aware. A window that ends before it begins finds nothing.
        sources: turns from one of these sources; an empty set finds nothing.
        where: see the head of this file; {} is no restriction.
        alive_at: leaves out turns that expire at or before this time, aware.

    Raises:
        InvalidFilterError: `where` is not in the language.
        InvalidInputError: another value is not what it should be.
    """

    session: str | None = field(default=None, repr=False)
    since: datetime | None = None
    until: datetime | None = None
    sources: Set[Source] | Sequence[Source] | None = None
    where: Mapping[str, Any] | None = field(default=None, repr=False)
    alive_at: datetime | None = None
    sql: Sql = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sql", _joined("AND", self._parts()))

    def _parts(self) -> list[Sql]:
        """What restricts; nothing at all for a condition that every turn fulfils."""
        parts = []
        if self.session is not None:
            parts.append(Sql("turns.session = ?", (valid_name(self.session, name="session"),)))
        if self.since is not None:
            parts.append(Sql("turns.at >= ?", (_microseconds(self.since, name="since"),)))
        if self.until is not None:
            parts.append(Sql("turns.at < ?", (_microseconds(self.until, name="until"),)))
        if self.sources is not None:
            parts.append(Sql(*_one_of("turns.source", _valid_sources(self.sources))))
        if self.where is not None and (where := compile_where(self.where)) != MATCH_ALL:
            parts.append(where)
        if self.alive_at is not None:
            now = _microseconds(self.alive_at, name="alive_at")
            parts.append(Sql("(turns.expires IS NULL OR turns.expires > ?)", (now,)))
        return parts


def compile_where(where: Mapping[str, Any]) -> Sql:
    """An expression that holds for the rows of `turns` that `where` means.

    Raises:
        InvalidFilterError: it is not in the language, or over a limit: 1,000 operands, 32 levels. The message says what
            is allowed and repeats nothing of `where`.
    """
    return _Reader().condition(where, depth=1)


def column_value(value: object) -> SqlValue:
    """A JSON value as it stands in `fields.value`: two are equal in SQL exactly when the JSON values are.

    Numbers and strings are themselves. Everything else is its one spelling in JSON, as bytes. SQLite never takes values
    of two storage classes for equal and sorts numbers before strings before bytes, so no column for the type is needed.
    """
    if type(value) is int or type(value) is float or type(value) is str:
        return value
    spelling = json.dumps(_one_spelling(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return spelling.encode()


def _one_spelling(value: object) -> object:
    """The value with 1.0 written as 1. Floats outside 64 bits stay: no integer of ours is equal to one."""
    if type(value) is float and value.is_integer() and int(value) in _INT64:
        return int(value)
    if type(value) is list:
        return [_one_spelling(item) for item in value]
    if type(value) is dict:
        return {key: _one_spelling(item) for key, item in value.items()}
    return value


class _Reader:
    """Reads one `where`. A class because the limits count over all of it."""

    def __init__(self) -> None:
        self._operands = 0
        self._values = 0

    def condition(self, where: object, *, depth: int) -> Sql:
        if not isinstance(where, Mapping):
            raise InvalidFilterError(f"where, and what stands in $and, $or and $not, is a mapping, not {_type(where)}")
        if depth > MAX_NESTING:
            raise InvalidFilterError(f"where is nested more than {MAX_NESTING} deep", limit=MAX_NESTING)
        parts = []
        for key, operand in where.items():
            self._key(key)
            if key in ("$and", "$or"):
                parts.append(_joined(key[1:].upper(), self._conditions(operand, depth=depth + 1)))
            elif key == "$not":
                parts.append(_negated(self.condition(operand, depth=depth + 1)))
            elif key.startswith("$"):
                raise InvalidFilterError("an operator stands where a metadata key belongs; only $and $or $not may")
            else:
                parts.append(self._field(key, operand))
        return _joined("AND", parts)

    def _conditions(self, operands: object, *, depth: int) -> list[Sql]:
        if type(operands) is not list or not operands:
            raise InvalidFilterError("$and and $or take a list of mappings that is not empty")
        self._count(len(operands))
        return [self.condition(operand, depth=depth) for operand in operands]

    def _field(self, key: str, operand: object) -> Sql:
        if not isinstance(operand, Mapping) or not any(type(k) is str and k.startswith("$") for k in operand):
            return self._operator(key, "$eq", operand)
        if not all(type(k) is str and k.startswith("$") for k in operand):
            raise InvalidFilterError(
                "a mapping under a key holds operators and plain keys; operators stand alone, an object goes under $eq"
            )
        return _joined("AND", [self._operator(key, operator, value) for operator, value in operand.items()])

    def _operator(self, key: str, operator: str, operand: object) -> Sql:
        self._count(1)
        if operator in ("$eq", "$ne"):
            found = _with_field(key, Sql("value = ?", (self._value(operand),)))
        elif operator in ("$in", "$nin"):
            found = _with_field(key, _one_of("value", self._list(operand)))
        elif operator in _COMPARISONS:
            found = _with_field(key, self._compared(_COMPARISONS[operator], operand))
        elif operator == "$exists":
            if type(operand) is not bool:
                raise InvalidFilterError("$exists takes True or False")
            found = _with_field(key, MATCH_ALL)
            return found if operand else _negated(found)
        else:
            raise InvalidFilterError(f"an unknown operator; under a key there are {_OPERATORS}")
        return _negated(found) if operator in ("$ne", "$nin") else found

    def _list(self, operand: object) -> list[SqlValue]:
        if type(operand) is not list:
            raise InvalidFilterError("$in and $nin take a list of JSON values")
        self._count(len(operand))
        return [self._value(item) for item in operand]

    def _compared(self, comparison: str, operand: object) -> Sql:
        """Bounded to the operand's own type: in SQLite all numbers are below all strings, and those below all bytes."""
        if type(operand) not in (int, float, str):
            raise InvalidFilterError("$gt, $gte, $lt and $lte take a number or a string")
        value = self._value(operand)
        if comparison[0] == ">":
            own_type = "value < x''" if type(value) is str else "value < ''"
        else:
            own_type = "value >= ''" if type(value) is str else "1"
        return Sql(f"value {comparison} ? AND {own_type}", (value,))

    def _value(self, value: object) -> SqlValue:
        self._json(value, depth=1)
        return column_value(value)

    def _json(self, value: object, *, depth: int) -> None:
        """Refuses what metadata cannot hold either. Exact types, as there: an enum, a numpy scalar is no JSON value."""
        self._values += 1
        if depth > MAX_METADATA_DEPTH or self._values > MAX_VALUES:
            raise InvalidFilterError(
                f"a value in where is nested more than {MAX_METADATA_DEPTH} deep or where holds more than {MAX_VALUES}"
            )
        if value is None or type(value) is bool:
            return
        if type(value) is str:
            _string(value)
        elif type(value) is int:
            if value not in _INT64:
                raise InvalidFilterError("an integer in where does not fit 64 bits")
        elif type(value) is float:
            if not math.isfinite(value):
                raise InvalidFilterError("a number in where is NaN or infinite, which JSON cannot hold")
        elif type(value) is list:
            for item in value:
                self._json(item, depth=depth + 1)
        elif type(value) is dict:
            for key, item in value.items():
                self._key(key)
                self._json(item, depth=depth + 1)
        else:
            raise InvalidFilterError(
                f"a value in where is {_type(value)}; it may be None, bool, int, float, str, list or dict"
            )

    def _key(self, key: object) -> None:
        if type(key) is not str:
            raise InvalidFilterError(f"the keys of where are str, not {_type(key)}")
        _string(key)

    def _count(self, operands: int) -> None:
        self._operands += operands
        if self._operands > MAX_OPERANDS:
            raise InvalidFilterError(f"where holds more than {MAX_OPERANDS} operands", limit=MAX_OPERANDS)


def _with_field(key: str, test: Sql) -> Sql:
    """The turns that have this key with a value that passes: a set that SQLite looks up once, not per turn."""
    return Sql(f"turns.row IN (SELECT turn FROM fields WHERE key = ? AND {test.text})", (key, *test.parameters))


def _one_of(column: str, values: Sequence[SqlValue]) -> Sql:
    return Sql(f"{column} IN ({', '.join('?' * len(values))})", tuple(values))


def _negated(part: Sql) -> Sql:
    """Holds where `part` does not: no part is ever NULL, because no column that it reads is."""
    return _MATCH_NONE if part == MATCH_ALL else Sql(f"NOT ({part.text})", part.parameters)


def _joined(word: str, parts: Sequence[Sql]) -> Sql:
    """All parts with AND or OR between them, as a balanced tree: a chain of a thousand is too deep for SQLite."""
    if not parts:
        return MATCH_ALL
    if len(parts) == 1:
        return parts[0]
    left, right = _joined(word, parts[: len(parts) // 2]), _joined(word, parts[len(parts) // 2 :])
    return Sql(f"({left.text} {word} {right.text})", left.parameters + right.parameters)


def _string(text: str) -> None:
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidFilterError(
            f"a string in where is longer than {MAX_METADATA_BYTES} characters, and metadata cannot be",
            limit=MAX_METADATA_BYTES,
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidFilterError("a string in where holds a lone surrogate, which is no Unicode character") from None


def _microseconds(at: datetime, *, name: str) -> int:
    return to_microseconds(utc(at, name=name))


def _valid_sources(sources: object) -> list[str]:
    """The sources in one order, so that equal sets give equal SQL."""
    if not isinstance(sources, Set | list | tuple) or not all(type(s) is str and s in _SOURCES for s in sources):
        raise InvalidInputError(f"sources is a set or list of {', '.join(sorted(_SOURCES))}", name="sources")
    return sorted(set(sources))


def _type(value: object) -> str:
    return type(value).__name__
