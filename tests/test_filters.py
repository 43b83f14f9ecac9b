"""`memlayer.filters`: what a filter means, what it refuses, and that SQL and plain Python agree about it."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from types import MappingProxyType

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.errors import InvalidFilterError, InvalidInputError
from memlayer.filters import MATCH_ALL, Condition, column_value, compile_where

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

# --- A table as memlayer.index makes it, and an evaluator that shares nothing with the code under test ---


def matches(where, *documents):
    """Which of the metadata documents the compiled filter finds, by position."""
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE turns (row INTEGER PRIMARY KEY)")
    db.execute("CREATE TABLE fields (turn INTEGER, key TEXT, value, PRIMARY KEY (turn, key)) WITHOUT ROWID")
    db.execute("CREATE INDEX fields_by_value ON fields (key, value)")
    for seq, document in enumerate(documents):
        db.execute("INSERT INTO turns VALUES (?)", (seq,))
        db.executemany(
            "INSERT INTO fields VALUES (?, ?, ?)", [(seq, key, column_value(value)) for key, value in document.items()]
        )
    text, parameters = compile_where(where)
    return [seq for (seq,) in db.execute(f"SELECT row FROM turns WHERE {text} ORDER BY row", parameters)]


def kind(value):
    if value is None:
        return "null"
    if value is True or value is False:
        return "boolean"
    return {int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]


def equal(left, right):
    if kind(left) != kind(right):
        return False
    if kind(left) == "array":
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if kind(left) == "object":
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return left == right


def holds_for(operator, operand, present, value):
    if operator == "$exists":
        return present is operand
    if operator == "$ne":
        return not (present and equal(value, operand))
    if operator == "$nin":
        return not (present and any(equal(value, item) for item in operand))
    if not present:
        return False
    if operator == "$eq":
        return equal(value, operand)
    if operator == "$in":
        return any(equal(value, item) for item in operand)
    if kind(value) != kind(operand):
        return False
    return {
        "$gt": lambda: value > operand,
        "$gte": lambda: value >= operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: value <= operand,
    }[operator]()


def holds(where, document):
    for key, operand in where.items():
        if key == "$and":
            good = all(holds(part, document) for part in operand)
        elif key == "$or":
            good = any(holds(part, document) for part in operand)
        elif key == "$not":
            good = not holds(operand, document)
        elif type(operand) is dict and any(k.startswith("$") for k in operand):
            good = all(holds_for(op, value, key in document, document.get(key)) for op, value in operand.items())
        else:
            good = holds_for("$eq", operand, key in document, document.get(key))
        if not good:
            return False
    return True


KEYS = st.sampled_from(["a", "b", "a.b", "a[0]", "x'; DROP TABLE turns; --", "", "é", "e\u0301", "n\0"])
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 2**53, 2**53 + 1, -(2**63), 2**63 - 1, 0.0, -0.0, 1.0, 1.5, 2.0**53, 2.0**63, 1e300, 5e-324, -1.0]
)
STRINGS = st.sampled_from(["", "1", "a", "a\0", "a\0b", "B", "é", "\uffff", "\U0001f600", "true", "null"])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["a", "b", "$gt"]), inner, max_size=2)
    ),
    max_leaves=3,
)
DOCUMENTS = st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=8)
OPERATORS = st.dictionaries(st.sampled_from(["$eq", "$ne"]), VALUES, min_size=1) | st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), NUMBERS | STRINGS),
        **{operator: st.lists(VALUES, max_size=4) for operator in ("$in", "$nin")},
        "$exists": st.booleans(),
    },
).filter(bool)
PLAIN = VALUES.filter(lambda value: not (type(value) is dict and "$gt" in value))
WHERES = st.recursive(
    st.dictionaries(KEYS, PLAIN | OPERATORS, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"a": PLAIN, "$or": st.lists(inner, min_size=1, max_size=2), "$not": inner}),
    ),
    max_leaves=6,
)


@given(where=WHERES, documents=DOCUMENTS)
def test_sql_and_plain_python_agree(where, documents):
    """The compiled filter finds exactly the documents that a naive evaluator of the language finds."""
    assert matches(where, *documents) == [i for i, document in enumerate(documents) if holds(where, document)]


@given(value=VALUES, other=VALUES)
def test_two_values_are_one_column_value_exactly_when_they_are_equal(value, other):
    """Two JSON values have equal spellings in SQL exactly when they are deeply equal and of one type."""
    same = apsw.Connection(":memory:").execute("SELECT ? = ?", (column_value(value), column_value(other))).get
    assert bool(same) == equal(value, other)


# --- What it means ---


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"n": 1}, [0, 1]),
        ({"n": 1.0}, [0, 1]),
        ({"n": True}, [2]),
        ({"n": "1"}, [3]),
        ({"n": None}, [4]),
        ({"n": [1]}, [5, 6]),
        ({"n": {"b": 2, "a": 1}}, [7]),
        ({"n": {"$ne": 1}}, [2, 3, 4, 5, 6, 7, 8]),
        ({"n": {"$ne": None}}, [0, 1, 2, 3, 5, 6, 7, 8]),
        ({"n": {"$in": [True, None]}}, [2, 4]),
        ({"n": {"$nin": [1, "1"]}}, [2, 4, 5, 6, 7, 8]),
        ({"n": {"$in": []}}, []),
        ({"n": {"$nin": []}}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"n": {"$gte": 0}}, [0, 1]),
        ({"n": {"$lte": ""}}, []),
        ({"n": {"$gt": ""}}, [3]),
        ({"n": {"$exists": True}}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"n": {"$exists": False}}, [8]),
        ({"n": {"$eq": {"a": 1.0, "b": 2.0}}}, [7]),
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"$not": {}}, []),
        ({"$not": {"n": 1}}, [2, 3, 4, 5, 6, 7, 8]),
        ({"$or": [{"n": 1}, {"n": "1"}]}, [0, 1, 3]),
        ({"$and": [{"n": {"$gt": 0}}, {"n": {"$lt": 1}}]}, []),
        ({"n": {"$gt": 0, "$lt": 2}}, [0, 1]),
    ],
)
def test_types_are_kept_apart(where, found):
    """Values match within their own JSON type only, and a missing key matches what denies it only."""
    documents = [1, 1.0, True, "1", None, [1], [1.0], {"a": 1, "b": 2}]
    assert matches(where, *[{"n": value} for value in documents], {"other": 1}) == found


def test_an_object_with_operators_for_keys_is_reached_through_eq():
    """`$eq` takes its operand literally, so metadata whose keys look like operators can be found."""
    assert matches({"n": {"$eq": {"$gt": 1}}}, {"n": {"$gt": 1}}, {"n": 2}) == [0]


def test_an_empty_object_is_equality_with_it():
    """A mapping without any key under a metadata key is the empty object, not an empty set of operators."""
    assert matches({"n": {}}, {"n": {}}, {"n": []}, {"n": {"a": 1}}, {}) == [0]


def test_keys_are_literal():
    """A dot, a bracket or SQL in a key is part of the key."""
    documents = [{"a.b": 1}, {"a": {"b": 1}}, {"a[0]": 1}, {"a": [1]}, {"x') OR 1 --": 1}]
    assert matches({"a.b": 1}, *documents) == [0]
    assert matches({"a[0]": 1}, *documents) == [2]
    assert matches({"x') OR 1 --": 1}, *documents) == [4]


def test_nothing_of_the_caller_is_in_the_sql():
    """Keys and values are bound parameters only."""
    text, parameters = compile_where({"KEY": {"$in": ["VALUE", 77], "$lt": "VALUE"}, "$not": {"KEY": {"VALUE": 77}}})
    assert "KEY" not in text
    assert "VALUE" not in text
    assert "77" not in text
    assert text.count("?") == len(parameters)


def test_strings_compare_by_code_point():
    """The order of strings is that of code points, whatever the letters, and a NUL does not end one."""
    assert matches({"s": {"$gt": "a\0b"}}, {"s": "a"}, {"s": "a\0c"}, {"s": "é"}, {"s": "\U0001f600"}) == [1, 2, 3]
    assert matches({"s": {"$gt": "\uffff"}}, {"s": "\U0001f600"}, {"s": "z"}) == [0]


def test_numbers_compare_exactly():
    """Integers that no float can tell apart are told apart, from floats too."""
    assert matches({"n": 2**53}, {"n": 2**53 + 1}, {"n": 2.0**53}) == [1]
    assert matches({"n": {"$gt": 2.0**53}}, {"n": 2**53 + 1}, {"n": 2**53}) == [0]


def test_any_mapping_may_carry_conditions():
    """Conditions and operators may stand in any mapping, as in a read-only view of a dict."""
    where = MappingProxyType({"n": MappingProxyType({"$gt": 1}), "$not": MappingProxyType({"m": 1})})
    assert matches(where, {"n": 2}, {"n": 2, "m": 1}) == [0]


# --- What is refused ---


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 1


SECRET = "tell-nobody"
LOOP: list[object] = []
LOOP.append(LOOP)


def nested(levels, inner):
    for _ in range(levels):
        inner = {"$not": inner}
    return inner


@pytest.mark.parametrize(
    "where",
    [
        [],
        "n",
        None,
        {1: 1},
        {None: 1},
        {Colour.RED: 1},
        {"\ud800": 1},
        {"$nor": [{"n": 1}]},
        {"$eq": 1},
        {"$where": SECRET},
        {"n": {"$regex": SECRET}},
        {"n": {"$not": {"$gt": 1}}},
        {"n": {"$gt": 1, SECRET: 1}},
        {"n": {"$gt": 1, 2: 1}},
        {"n": {"$gt": None}},
        {"n": {"$gt": True}},
        {"n": {"$lte": [SECRET]}},
        {"n": {"$lt": {"a": SECRET}}},
        {"n": {"$exists": 1}},
        {"n": {"$exists": None}},
        {"n": {"$in": SECRET}},
        {"n": {"$in": (1, 2)}},
        {"n": {"$nin": {"a": 1}}},
        {"n": {"$in": [{1: SECRET}]}},
        {"n": float("nan")},
        {"n": {"$gt": float("inf")}},
        {"n": [float("-inf")]},
        {"n": 2**63},
        {"n": {"$lt": -(2**63) - 1}},
        {"n": [2**64]},
        {"n": (1,)},
        {"n": {1, 2}},
        {"n": b"bytes"},
        {"n": np.int64(1)},
        {"n": np.float64(1.0)},
        {"n": np.array([1])},
        {"n": Level.HIGH},
        {"n": Colour.RED},
        {"n": NOON},
        {"n": "\ud800"},
        {"n": {"\ud800": 1}},
        {"n": MappingProxyType({"a": 1})},
        {"n": SECRET * 10_000},
        {SECRET * 10_000: 1},
        {"$and": []},
        {"$or": []},
        {"$and": {"n": 1}},
        {"$or": ({"n": 1},)},
        {"$or": [SECRET]},
        {"$not": [{"n": 1}]},
        {"$not": None},
        {"n": {"$in": list(range(1_000))}},
        {"$or": [{}] * 1_001},
        {"$and": [{"$or": [{}] * 600}, {"$or": [{}] * 600}]},
        {str(i): i for i in range(1_001)},
        {"n": [0] * 20_000},
        {"n": LOOP},
        nested(32, {"n": 1}),
    ],
)
def test_what_is_not_in_the_language_is_refused(where):
    """Anything else is an InvalidFilterError that repeats nothing of the filter."""
    with pytest.raises(InvalidFilterError) as caught:
        compile_where(where)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(dict(caught.value.evidence))


def test_a_filter_that_shares_its_parts_is_refused_before_it_explodes():
    """Thirty doublings, a million million operands, are refused at the thousandth."""
    where: dict[str, object] = {"n": 1}
    for _ in range(30):
        where = {"$and": [where, where]}
    with pytest.raises(InvalidFilterError):
        compile_where(where)
    value: list[object] = []
    for _ in range(30):
        value = [value, value]
    with pytest.raises(InvalidFilterError):
        compile_where({"n": value})


def test_a_filter_at_the_limits_runs():
    """A thousand operands, thirty-two levels and the deepest value run in SQLite."""
    assert matches({"n": {"$in": list(range(999))}}, {"n": 5}) == [0]
    assert matches({"$or": [{"n": i} for i in range(500)]}, {"n": 499}, {"n": 500}) == [0]
    assert matches({str(i): {"$exists": False} for i in range(1_000)}, {"n": 1}) == [0]
    assert matches(nested(31, {str(i): i for i in range(900)}), {"n": 1}) == [0]
    deep: object = 1
    for _ in range(31):
        deep = [deep]
    assert matches({"n": deep}, {"n": deep}, {"n": [deep]}) == [0]


# --- Condition ---


def test_a_condition_without_restrictions_is_every_turn():
    """Nothing given, or `where={}`, restricts nothing."""
    assert Condition().sql == MATCH_ALL
    assert Condition(where={}).sql == MATCH_ALL
    assert Condition(where={"$and": [{}]}).sql == MATCH_ALL


def test_a_condition_binds_what_it_is_given():
    """Every part that is given restricts, and its values are parameters."""
    condition = Condition(
        session="s", since=NOON, until=NOON, sources=("tool", "user", "user"), where={"n": 1}, alive_at=NOON
    )
    microseconds = 1_777_636_800_000_000
    assert set(condition.sql.parameters) == {"s", microseconds, "tool", "user", "n", 1}
    assert condition.sql.text.count("?") == len(condition.sql.parameters) == 8


def test_a_time_in_another_zone_is_the_same_time():
    """Times are compared as instants."""
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert Condition(since=NOON).sql == Condition(since=elsewhere).sql


@pytest.mark.parametrize(
    "given",
    [
        {"session": ""},
        {"session": 7},
        {"since": NOON.replace(tzinfo=None)},
        {"until": "2026-05-01"},
        {"alive_at": NOON.replace(tzinfo=None)},
        {"sources": "user"},
        {"sources": ["somebody"]},
        {"sources": [b"user"]},
        {"sources": 5},
        {"where": {"n": {"$gt": None}}},
    ],
)
def test_a_condition_is_checked_where_it_is_made(given):
    """A value that is not what it should be raises at once."""
    with pytest.raises(InvalidInputError):
        Condition(**given)


def test_a_condition_does_not_show_its_content():
    """The repr of a condition holds neither the session's name nor the filter."""
    shown = repr(Condition(session=SECRET, where={SECRET: SECRET}))
    assert SECRET not in shown


def test_filters_load_neither_numpy_nor_a_database():
    """They are needed where a condition is made, long before anything is searched."""
    code = (
        "import sys, memlayer.filters;"
        "print(sorted({'numpy', 'apsw', 'sqlite_vec', 'sqlalchemy', 'sqlcipher3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
