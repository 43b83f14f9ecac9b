"""Neighbours in a conversation, against a list that is sorted anew each time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlayer.timeline import Timeline

MINUTE = 60_000_000


def expected(turns, row, distance):
    """By the definition: the turns of the row's session by time, then by order of writing."""
    session = turns[row][0]
    own = sorted((at, seq, other) for other, (its, at, seq) in turns.items() if its == session)
    place = [other for _, _, other in own].index(row)
    step = 1 if distance > 0 else -1
    for _ in range(abs(distance)):
        if not 0 <= place + step < len(own):
            return -1
        apart = abs(own[place + step][0] - own[place][0])
        if apart > 12 * 60 * MINUTE or (session is None and not 0 < apart <= 30 * MINUTE):
            return -1
        if not apart and abs(own[place + step][1] - own[place][1]) > 9:
            return -1
        place += step
    return own[place][2]


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 2) | st.integers(0, 80) | st.integers(0, 2_000),
        st.booleans(),
    ),
    max_size=40,
)


@given(CHANGES)
def test_neighbours_are_those_of_the_sorted_conversation(changes):
    """After any turns were added and removed, in any order, at distances of up to three."""
    timeline = Timeline()
    turns: dict[int, tuple[str | None, int, int]] = {}
    for seq, (row, session, minute, adds) in enumerate(changes):
        if row in turns:
            its, at, written = turns.pop(row)
            timeline.remove(row, session=its, at=at, seq=written)
        if adds:
            turns[row] = (session, minute * MINUTE, seq)
            timeline.add(row, session=session, at=minute * MINUTE, seq=seq)
    for distance in (-3, -2, -1, 1, 2, 3):
        found = timeline.neighbours(distance)
        assert {row: found[row] for row in turns} == {row: expected(turns, row, distance) for row in turns}


def test_it_grows_with_its_rows():
    """Any number of turns, each after the one before."""
    timeline = Timeline()
    for row in range(1000):
        timeline.add(row, session="s", at=row, seq=row)
    assert np.array_equal(timeline.neighbours(-1)[:1000], np.arange(-1, 999))
    assert np.array_equal(timeline.neighbours(2)[:1000], [*range(2, 1000), -1, -1])


def test_turns_of_one_day_are_no_conversation_where_they_were_not_written_together():
    """Of memories that are dated by the day, those of one day may have nothing to do with each other."""
    timeline = Timeline()
    for row in range(30):
        timeline.add(row, session="s", at=(row % 15) * 24 * 60 * MINUTE, seq=row)
    assert set(timeline.neighbours(-1)[:30].tolist()) == {-1}
    together = Timeline()
    for row in range(30):
        together.add(row, session="s", at=row // 2 * 24 * 60 * MINUTE, seq=row)
    assert together.neighbours(1)[:30].tolist() == [row + 1 if row % 2 == 0 else -1 for row in range(30)]
