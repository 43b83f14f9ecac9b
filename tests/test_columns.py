"""`memlayer.columns`: what a question is compared with beside the vectors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlayer.columns import Columns, Gone
from memlayer.ranking import DISTANCES
from memlayer.records import Memory, to_microseconds
from memlayer.windows import Window

NOON = datetime(2023, 5, 17, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def memory(text="the cat", *, at=NOON, **fields):
    plain: dict[str, Any] = {
        "role": "user",
        "speaker": None,
        "session": None,
        "metadata": {},
        "source": "user",
        "expires": None,
    }
    return Memory(id="id", text=text, at=at, written=NOON, **{**plain, **fields})


def gone(row, memory, seq):
    return Gone(row, seq, memory.text, memory.speaker, memory.session, to_microseconds(memory.at))


def of(*memories):
    columns = Columns()
    for row, each in enumerate(memories):
        columns.add(row, each, seq=row)
    return columns


def test_a_turn_is_a_row_of_numbers():
    """Whether it is an assistant's, a tool's, how wide it is, and of whom."""
    columns = of(
        memory("hello"),
        memory("北京", role="assistant", speaker="Bob"),
        memory("log", role="tool"),
        memory("log", source="tool", speaker="Anna"),
    )
    assert columns.column("assistant").tolist() == [False, True, False, False]
    assert columns.column("tool").tolist() == [False, False, True, True]
    assert columns.column("width").tolist() == [5, 6, 3, 3]
    assert set(columns.speakers) == {"Anna", "Bob"}
    assert columns.others_than({"Anna"}).tolist() == [True, True, True, False]
    assert columns.others_than({"Anna", "Bob"}).tolist() == [True, False, True, False]
    assert columns.others_than(()).all()


def test_a_turn_is_of_the_time_in_which_it_was_said_and_of_which_it_tells():
    """And of the week before it was said: people tell of a thing for some days."""
    columns = of(
        memory(at=NOON),
        memory(at=NOON + 6 * DAY),
        memory(at=NOON + 9 * DAY),
        memory(at=NOON - DAY),
        memory("I went on 17 May 2023", at=NOON + 300 * DAY),
        memory("I go on 18 May 2023", at=NOON - 300 * DAY),
    )
    midnight = NOON.replace(hour=0)
    found = columns.in_time(Window(midnight, midnight + DAY))
    assert found.tolist() == [True, True, False, False, True, False]


def test_turns_of_any_year_are_counted():
    """From the year 1 to 9999, telling of the day before and of years ago."""
    times = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
    columns = of(*(memory("yesterday, five years ago, this weekend", at=at) for at in times))
    windows = [Window(at.replace(hour=0, minute=0, second=0, microsecond=0), at) for at in times]
    assert columns.in_time(windows[1]).tolist() == [False, True]
    assert columns.in_time(Window(times[0], times[0] + DAY)).tolist() == [True, False]


TURNS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["the cat", "the dog 7", "on 17 May 2023 it is", "北京", "the " * 400]),
        st.sampled_from([None, "Anna", "Bob"]),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=30,
)


@given(TURNS)
def test_what_was_held_and_removed_leaves_no_trace(turns):
    """After any adds and removes: the columns, speakers, sessions and neighbours of those that are there."""
    columns = Columns()
    held: dict[int, Any] = {}
    for seq, (row, text, speaker, session, hours, adds) in enumerate(turns):
        if row in held:
            columns.remove([gone(row, *held.pop(row))])
        if adds:
            one = memory(text, speaker=speaker, session=session, at=NOON + hours * timedelta(hours=1))
            held[row] = (one, seq)
            columns.add(row, one, seq=seq)
    fresh = Columns()
    for row in sorted(held):
        fresh.add(row, held[row][0], seq=held[row][1])
    assert set(columns.speakers) == set(fresh.speakers)
    assert columns.sessions == fresh.sessions
    rows = sorted(held)
    for name in ("there", "width", "assistant", "tool", "at", "since", "until", "kind"):
        assert columns.column(name)[rows].tolist() == fresh.column(name)[rows].tolist()
        assert not np.delete(columns.column(name), rows).any()
    if held:
        assert columns.others_than(columns.speakers)[rows].tolist() == [held[row][0].speaker is None for row in rows]
        # Behind the last there is none, wherever the last is.
        neighbours = [np.where(beside.rows >= beside.rows.shape[1], -1, beside.rows)[:, rows].tolist()
                      for beside in (columns.beside, fresh.beside)]  # fmt: skip
        assert neighbours[0] == neighbours[1]
        for name in ("vectors", "words", "whole"):
            assert np.array_equal(getattr(columns.beside, name)[..., rows], getattr(fresh.beside, name)[..., rows])


def test_short_turns_lean_on_short_neighbours():
    """A turn of 900 characters needs none; a long neighbour counts half, one of 15 characters a quarter."""
    turns = [("a" * 15), ("b" * 300), ("c" * 900), ("d" * 15)]
    columns = of(*(memory(text, session="s", at=NOON + number * DAY / 24) for number, text in enumerate(turns)))
    before = DISTANCES.index(-1)
    after = DISTANCES.index(1)
    assert columns.beside.vectors[before].tolist() == [0.0, 0.0625, 0.0, 0.125]
    assert columns.beside.vectors[after].tolist() == [0.25, 0.125, 0.0, 0.0]


def test_a_picture_is_part_of_what_a_turn_says():
    """One caption under two pictures is two turns, under one picture it is one."""
    columns = of(*(memory("my cat", image_sha256=sha * 64) for sha in "aab"), memory("my cat"))
    one, again, other, none = columns.column("kind").tolist()
    assert one == again
    assert len({one, other, none}) == 3


def test_bytes_grow_with_the_turns():
    """And come down with them, but for the columns themselves."""
    columns = of()
    empty = columns.nbytes
    memories = [memory(f"the w{number}x is here", session="s") for number in range(500)]
    for row, one in enumerate(memories):
        columns.add(row, one, seq=row)
    full = columns.nbytes
    columns.remove([gone(row, one, row) for row, one in enumerate(memories)])
    assert empty < columns.nbytes < full / 3
