"""`memlayer.ranking`: from parts to turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.ranking import best_turns, score


@pytest.mark.parametrize(("cosine", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (1.0000001, 1.0)])
def test_a_score_is_between_0_and_1(cosine, expected):
    """A cosine below 0, or above 1 by rounding, is clipped."""
    assert score(cosine) == expected


def test_a_turn_has_the_score_of_its_best_part():
    """Each turn comes once, with the first and so best of its parts."""
    parts = [(7, 0.9), (7, 0.8), (3, 0.7), (7, 0.6), (3, 0.1)]
    assert best_turns(parts, k=5, floor=0.0) == [(7, 0.9), (3, 0.7)]


def test_what_is_under_the_floor_is_left_out():
    """The floor itself still counts; anything weaker does not."""
    parts = [(1, 0.9), (2, 0.5), (3, 0.4999)]
    assert best_turns(parts, k=5, floor=0.5) == [(1, 0.9), (2, 0.5)]


def test_floor_0_keeps_what_points_away_in_order():
    """Below 0 every score is 0 and the order is that of the cosines."""
    assert best_turns([(1, 0.1), (2, -0.1), (3, -0.9)], k=5, floor=0.0) == [(1, 0.1), (2, 0.0), (3, 0.0)]


@given(
    parts=st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1)), max_size=20),
    k=st.integers(1, 6),
    floor=st.floats(0, 1),
)
def test_the_best_turns_are_the_best(parts, k, floor):
    """The result is what sorting all turns by their best part and cutting at floor and k gives."""
    parts.sort(key=lambda part: -part[1])
    best = {turn: max(cosine for other, cosine in parts if other == turn) for turn, _ in parts}
    ranked = sorted(best, key=lambda turn: (-best[turn], [t for t, _ in parts].index(turn)))
    expected = [(turn, score(best[turn])) for turn in ranked if score(best[turn]) >= floor][:k]
    assert best_turns(parts, k=k, floor=floor) == expected
