"""`memlayer.records`: what a value may be, what it gives back, and that it never shows what somebody said."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, UserDict
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.records import (
    MAX_METADATA_BYTES,
    MAX_TEXT_BYTES,
    History,
    Hit,
    Memory,
    Recall,
    Session,
    Turn,
    from_microseconds,
    to_microseconds,
    utc,
    valid_metadata,
    valid_name,
    valid_text,
)
from memlayer.reports import ErasureReceipt, ImportReport, KeySlotInfo, VerifyReport

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CANARY = "canary-words-of-somebody"
LONE = "\ud800"


class Text(str):
    __slots__ = ()


class Number(IntEnum):
    ONE = 1


class Name(StrEnum):
    ONE = "one"


def memory(kind: Any = Memory, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "id": "0123456789abcdef", "text": CANARY, "role": "user", "speaker": CANARY, "session": CANARY, "at": NOON,
        "metadata": {CANARY: CANARY}, "source": "user", "expires": None, "written": NOON,
    }  # fmt: skip
    return kind(**{**values, **changes})


def refused(call, kind=InvalidInputError):
    """The error of a refused value; it is ours, alone, and does not repeat what was passed."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.__cause__ is None
    assert CANARY not in str(caught.value)
    assert CANARY not in str(dict(caught.value.evidence))
    return caught.value


# --- Turns ---


def test_a_turn_needs_a_text_and_nothing_else():
    """Everything but the text has a default, and what was passed is what is there."""
    turn = Turn(text="hi")
    assert (turn.text, turn.role, turn.speaker, turn.session, turn.at) == ("hi", "user", None, None, None)
    assert (turn.metadata, turn.id, turn.source, turn.expires, turn.image) == (None, None, None, None, None)
    full = Turn(text="hi", role="tool", speaker="s", session="t", at=NOON, metadata={"a": 1}, id="i", source="document",
                expires=NOON, image=b"GIF89a")  # fmt: skip
    assert full.model_dump() == {
        "text": "hi", "role": "tool", "speaker": "s", "session": "t", "at": NOON, "metadata": {"a": 1}, "id": "i",
        "source": "document", "expires": NOON, "image": b"GIF89a",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", " a ", "\U0001f469\u200d\U0001f467", "e\u0301", "\u202eab", "\ufeffx", "שלום"]
)
def test_any_text_that_says_something_is_taken_exactly(text):
    """NUL, blanks at the ends, emoji, combining characters, right-to-left text: nothing is trimmed or normalised."""
    assert Turn(text=text).text == valid_text(text) == text


@pytest.mark.parametrize(
    "bad", ["", " ", "\n\t\u3000", LONE, f"{CANARY}\udfff", None, 5, b"bytes", ["a"], 1.5], ids=repr
)
def test_what_is_no_text_is_refused(bad):
    """Empty, blank, no Unicode, or no str."""
    refused(lambda: Turn(text=bad))
    refused(lambda: valid_text(bad))


@pytest.mark.parametrize("letter", ["x", "é", "記", "\U0001f95c"])
def test_a_text_has_a_limit_in_bytes(letter):
    """262,144 bytes of UTF-8 are taken, one letter more is refused with the limit as evidence."""
    most = letter * (MAX_TEXT_BYTES // len(letter.encode()))
    assert Turn(text=most).text == most
    error = refused(lambda: Turn(text=most + letter), LimitExceededError)
    assert error.evidence == {"limit": 262_144}


@pytest.mark.parametrize("name", ["speaker", "session", "id"])
@pytest.mark.parametrize("bad", ["", LONE, f"{CANARY}{LONE}", 5, b"bytes", ["a"]], ids=repr)
def test_what_is_no_name_is_refused(name, bad):
    """Speakers, sessions and ids are str, not empty, and Unicode; the error says which it was."""
    assert refused(lambda: Turn(text="hi", **{name: bad})).evidence["name"] == name


@pytest.mark.parametrize("value", [" ", "%", "'; --", "a\0b", "ä", "a\u0308", "x" * 512, "é" * 256, "*", "../.."])
def test_a_name_is_taken_exactly(value):
    """Neither patterns, paths, quotes, NUL nor Unicode forms mean anything; up to 512 bytes."""
    assert valid_name(value, name="user_id") == value
    assert Turn(text="hi", session=value, id=value, speaker=value).session == value


@pytest.mark.parametrize("value", ["x" * 513, "é" * 257, "x" * 10_000_000, LONE * 513], ids=len)
def test_a_name_has_a_limit_in_bytes(value):
    """513 bytes are one too many, and ten megabytes are refused without being encoded."""
    error = refused(lambda: valid_name(value, name="user_id"), LimitExceededError)
    assert error.evidence == {"name": "user_id", "limit": 512}


@pytest.mark.parametrize("bad", [None, 5, b"alice", ["alice"], ""], ids=repr)
def test_a_user_is_a_str_that_is_not_empty(bad):
    """No `None`, no list of users, no bytes: there is no default user."""
    refused(lambda: valid_name(bad, name="user_id"))


@pytest.mark.parametrize(
    "changes",
    [{"role": "root"}, {"role": "User"}, {"role": None}, {"role": 1}, {"source": "web"}, {"source": 1}, {"at": "now"},
     {"at": 0}, {"at": date(2026, 1, 1)}, {"expires": 1.5}, {"metadata": "x"}, {"metadata": [1]}, {"extra": CANARY},
     {CANARY[:6]: 1}],
    ids=str,
)  # fmt: skip
def test_a_field_of_another_type_is_refused(changes):
    """Roles, sources, times and metadata are what they must be, nothing is converted, and no field is made up."""
    refused(lambda: Turn(text="hi", **changes))


def test_a_turn_without_a_text_is_refused():
    """The one field that must be there."""
    assert refused(Turn).evidence == {"name": "text"}
    with pytest.raises(TypeError):
        Turn("hi")  # type: ignore[call-arg]


# --- Times ---


class Undecided(tzinfo):
    """A zone that does not know its offset, as a naive time has none."""

    def utcoffset(self, at):
        return None

    dst = tzname = utcoffset


@pytest.mark.parametrize("name", ["at", "expires"])
def test_a_time_without_a_zone_is_refused(name):
    """A guessed zone would be silently wrong; a zone without an offset is none."""
    for bad in (datetime(2026, 5, 1), NOON.replace(tzinfo=Undecided())):  # noqa: DTZ001
        error = refused(lambda bad=bad: Turn(text="hi", **{name: bad}))
        assert error.evidence == {"name": name}
        assert name in str(error)


def test_times_become_utc():
    """The same moment, in UTC, whatever the zone was; a repeated hour of autumn keeps its fold."""
    east = datetime(2026, 5, 1, 21, tzinfo=timezone(timedelta(hours=9)))
    turn = Turn(text="hi", at=east, expires=east)
    assert turn.at == turn.expires == NOON
    assert turn.at is not None
    assert turn.at.tzinfo is UTC
    assert utc(NOON, name="at") == NOON


@pytest.mark.parametrize(("hours", "year"), [(1, 1), (-1, 9999)])
def test_a_time_that_utc_has_not_is_refused(hours, year):
    """The first hour of the year 1 east of Greenwich lies before all time, the last of 9999 west of it behind."""
    first = datetime(year, 1 if hours > 0 else 12, 1 if hours > 0 else 31, 0 if hours > 0 else 23, tzinfo=UTC)
    refused(lambda: Turn(text="hi", at=first.replace(tzinfo=timezone(timedelta(hours=hours)))))


@pytest.mark.parametrize("bad", ["2026-05-01", 0, None, date(2026, 5, 1)], ids=repr)
def test_what_is_no_time_is_refused(bad):
    """Neither texts nor numbers are read as a time."""
    assert refused(lambda: utc(bad, name="since")).evidence == {"name": "since"}


@given(st.datetimes(timezones=st.timezones()))
def test_microseconds_are_exact(at):
    """Every moment comes back from its number of microseconds, in order."""
    try:
        moment = utc(at, name="at")
    except InvalidInputError:
        return
    assert from_microseconds(to_microseconds(moment)) == moment
    assert to_microseconds(moment) == to_microseconds(at)
    if moment < datetime.max.replace(tzinfo=UTC):
        assert to_microseconds(moment + timedelta(microseconds=1)) == to_microseconds(moment) + 1


# --- Metadata ---

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abé\0", max_size=3), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text("abcé", max_size=4), values, max_size=5))
def test_metadata_comes_back_as_json_would(metadata):
    """Any JSON object is kept as it is, types included, in a copy of its own."""
    kept = valid_metadata(metadata)
    assert kept == metadata
    assert json.dumps(kept) == json.dumps(metadata)
    assert kept is not metadata


def test_metadata_is_copied_to_its_depth():
    """A later change of the caller's own lists and objects changes nothing."""
    inner: list[Any] = [1]
    turn = Turn(text="hi", metadata={"a": {"b": inner}})
    inner.append(2)
    assert turn.metadata == {"a": {"b": [1]}}


NO_JSON = [
    b"bytes", {1, 2}, (1, 2), object(), 1j, Decimal("1"), NOON, float("nan"), float("inf"), -float("inf"), 2**63,
    -(2**63) - 1, LONE, f"{CANARY}{LONE}", Number.ONE, Name.ONE, Text("x"), np.float64(1.5), np.int64(1),
    np.bool_(True), np.array([1]), OrderedDict(a=1), UserDict(a=1), range(3), {1: "x"}, {None: "x"}, {Text("x"): 1},
    {LONE: 1}, {Name.ONE: 1}, {b"x": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_is_refused(value):
    """At the top, in a list and in an object: bytes, sets, tuples, NaN, numbers over 64 bits, and every subclass that
    would come back as another type."""
    for metadata in ({"k": value}, {"k": [value]}, {"k": {"k": [[value]]}}):
        refused(lambda metadata=metadata: valid_metadata(metadata))
    if not isinstance(value, dict) or type(value) is not dict:
        refused(lambda: valid_metadata(value))
    refused(lambda: Turn(text="hi", metadata={"k": value}))


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0.1, 1e308, -0.0, True, None, "", [], {}, "\0", "é"], ids=repr)
def test_values_at_the_edge_are_kept(value):
    """64-bit numbers, the largest floats, empty ones, NUL: they come back as themselves."""
    kept = valid_metadata({"k": value, "": value})
    assert (kept["k"], type(kept["k"])) == (value, type(value))
    assert kept[""] == value


def nested(depth, *, of=list):
    value: Any = "x"
    for _ in range(depth - 1):
        value = [value] if of is list else {"k": value}
    return {"k": value}


@pytest.mark.parametrize("of", [list, dict])
def test_metadata_has_a_depth(of):
    """32 levels are kept, the 33rd is refused, and one that holds itself is refused too."""
    assert valid_metadata(nested(32, of=of)) == nested(32, of=of)
    assert refused(lambda: valid_metadata(nested(33, of=of)), LimitExceededError).evidence == {"limit": 32}
    endless: dict[str, Any] = {"list": []}
    endless["list"].append(endless)
    refused(lambda: valid_metadata(endless), LimitExceededError)


@pytest.mark.parametrize("letter", ["x", "é", "記", "\U0001f95c"])
def test_metadata_has_a_size(letter):
    """16 KiB of JSON are kept, one letter more is refused with the limit as evidence."""
    room = MAX_METADATA_BYTES - len('{"k":""}')
    fitting = {"k": letter * (room // len(letter.encode()))}
    assert valid_metadata(fitting) == fitting
    error = refused(lambda: valid_metadata({"k": fitting["k"] + letter}), LimitExceededError)
    assert error.evidence["limit"] == MAX_METADATA_BYTES == 16_384


def test_metadata_that_shares_lists_is_not_walked_to_its_end():
    """A few lists that hold each other many times would be gigabytes as JSON: refused, and at once."""
    value: list[Any] = [0] * 10
    for _ in range(20):
        value = [value] * 10
    refused(lambda: valid_metadata({"k": value}), LimitExceededError)


# --- What is shown ---

SHOWN = {
    "Turn(role='user', 24 characters)": Turn(text=CANARY, session=CANARY, metadata={CANARY: CANARY}),
    "Memory(id='01234567', source='user', 24 characters)": memory(),
    "Hit(id='01234567', source='user', 24 characters)": memory(Hit, score=0.5),
    "Recall(1 hits)": Recall([memory(Hit, score=0.5)]),
    "History(1 turns)": History([memory()], cursor="c"),
}


@pytest.mark.parametrize(("shown", "value"), SHOWN.items(), ids=[shown.partition("(")[0] for shown in SHOWN])
def test_a_value_does_not_show_what_was_said(shown, value, caplog):
    """`repr`, `str`, formatting and a log line say what it is and how long: no text, speaker, session or metadata."""
    assert repr(value) == str(value) == f"{value}" == shown
    logging.getLogger("test").warning("%s %r", value, [value])
    assert CANARY not in caplog.text


@pytest.mark.parametrize("value", [list(SHOWN.values())[number] for number in range(3)], ids=["Turn", "Memory", "Hit"])
def test_a_value_does_not_show_what_was_said_to_rich(value):
    """Nor do the hooks that pretty printers use: `rich` prints locals of a traceback through them."""
    assert CANARY not in str(list(value.__rich_repr__()))
    assert CANARY not in str(list(value.__repr_args__()))


# --- Values ---


@pytest.mark.parametrize(
    "value",
    [Turn(text="hi"), memory(), memory(Hit, score=0.5), Session(id="s", first=NOON, last=NOON, count=1),
     ImportReport(added=1, kept=0), VerifyReport(users=1, memories=1, buckets=1, pages=1),
     KeySlotInfo(slot=1, kind="key", used=True),
     ErasureReceipt(at=NOON, store="s", user="u", memories=1, files_clean=True)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_are_frozen(value):
    """No field of a value or a report can be set or added."""
    name = next(iter(type(value).model_fields))
    with pytest.raises(ValidationError):
        setattr(value, name, getattr(value, name))
    with pytest.raises(ValidationError):
        value.another = 1
    assert value == value.model_copy()


def test_what_was_found_is_a_sequence():
    """Indexing, slicing, iterating and counting, best first; a slice of a recall still renders itself."""
    hits = [memory(Hit, id=str(number), score=number / 10) for number in (3, 2, 1)]
    found = Recall(hits)
    assert (len(found), list(found), found[0], found[-1]) == (3, hits, hits[0], hits[2])
    assert type(found[1:]) is Recall
    assert list(found[1:]) == hits[1:]
    assert hits[1] in found
    assert not Recall([])
    assert found[:0].as_prompt() == ""
    hits.clear()
    assert len(found) == 3
    with pytest.raises(TypeError):
        found[0] = hits  # type: ignore[index]


def test_a_history_is_a_sequence_with_a_cursor():
    """Oldest first, as given, and where to go on."""
    turns = [memory(id=str(number)) for number in range(3)]
    history = History(turns, cursor="next")
    assert (len(history), list(history), history[0], list(history[1:])) == (3, turns, turns[0], turns[1:])
    assert (history.cursor, History([], cursor=None).cursor) == ("next", None)


def test_a_hit_says_how_well_it_fits():
    """A hit is a memory with a score, and with the parts of it where they were asked for."""
    hit = memory(Hit, score=0.5)
    assert Memory in type(hit).__mro__
    assert (hit.score, hit.parts) == (0.5, None)
    assert memory(Hit, score=0.5, parts={"vector": 0.5}).parts == {"vector": 0.5}
    refused(lambda: memory(Hit, score="0.5"))
