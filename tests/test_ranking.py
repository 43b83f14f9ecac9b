"""`memlayer.ranking`: from raw scores to an order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.errors import InvalidInputError
from memlayer.ranking import (
    DISTANCES,
    VECTOR_NEIGHBOURS,
    beside,
    best_turns,
    calibrated,
    checked_parts,
    in_context,
    length_prior,
    part_penalty,
    picked,
    pooled,
    score,
    session_part,
    weigh,
)


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


# --- What stands beside a turn ---

CONVERSATIONS = st.lists(st.tuples(st.integers(0, 1_200), st.floats(-1, 1, width=32)), max_size=12)


def in_a_row(count):
    """The neighbours in one conversation of so many turns."""
    places = np.arange(count)
    return {
        distance: np.where((places + distance >= 0) & (places + distance < count), places + distance, -1)
        for distance in DISTANCES
    }


@given(CONVERSATIONS)
def test_context_is_the_weighted_mean_of_a_turn_and_its_neighbours(turns):
    """Short turns lean on neighbours, on short ones twice as much as on long ones, and on those of a word or two
    hardly; long turns on none."""
    widths, own = (np.array([turn[field] for turn in turns]) for field in (0, 1))
    found = in_context(own.astype(np.float32), beside=beside(widths.astype(np.int32), in_a_row(len(turns))))
    short = [min(max((900 - width) / 600, 0), 1) for width in widths]
    for row, cosine in enumerate(own):
        top, bottom = cosine, 1.0
        for distance, share in VECTOR_NEIGHBOURS.items():
            if 0 <= row + distance < len(turns):
                weight = share * short[row] * (0.5 + 0.5 * short[row + distance])
                weight *= min(widths[row + distance] / 60, 1)
                top += weight * own[row + distance]
                bottom += weight
        assert found[row] == pytest.approx(top / bottom, abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2, width=32)), min_size=1, max_size=12))
def test_a_turn_takes_from_the_best_of_its_conversation(turns):
    """Nothing in the best conversation; elsewhere a share of what its best turn is behind, at most of 1."""
    sessions, values = (
        np.array([turn[0] for turn in turns], np.int32),
        np.array([turn[1] for turn in turns], np.float32),
    )
    found = session_part(values, sessions)
    for row, session in enumerate(sessions):
        behind = values[sessions == session].max() - values.max()
        assert found[row] == pytest.approx(0.15 * max(behind, -1), abs=1e-6)


def test_a_conversation_of_which_nothing_may_be_found_changes_nothing():
    """Nor does a question for which nothing at all may be found."""
    none = -np.inf
    assert session_part(np.array([1, none], np.float32), np.array([0, 1], np.int32))[0] == 0
    assert session_part(np.array([none, none], np.float32), np.array([0, 1], np.int32)).tolist() == [0, 0]


# --- The best ---


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30),
    st.integers(1, 35),
    st.randoms(use_true_random=False),
)
def test_the_pool_is_what_sorting_gives(values, most, random):
    """Best first, of equal ones the earlier, of any rows."""
    rows = sorted(random.sample(range(len(values)), random.randint(1, len(values))))
    expected = sorted(rows, key=lambda row: (-values[row], row))[:most]
    assert pooled(np.array(values, np.float32), np.array(rows, np.int32), most=most).tolist() == expected


def picks(values, *, alike, tools=None, k=10):
    tools = np.zeros(len(values), bool) if tools is None else np.array(tools)
    groups = np.array(alike)
    return picked(np.array(values, np.float32), alike=lambda place: groups == groups[place], tools=tools, k=k)


def test_each_pick_takes_more_from_those_that_say_the_same():
    """.05 the first time, .1 the second: three copies of the best stand behind what is a little worse."""
    found = picks([1.0, 1.0, 1.0, 0.96, 0.8], alike=[0, 0, 0, 1, 2])
    assert [place for place, _ in found] == [0, 3, 1, 2, 4]
    assert [value for _, value in found] == pytest.approx([1.0, 0.96, 0.95, 0.85, 0.8])


def test_tools_make_room_for_others():
    """Each pick of a tool's takes from all of its texts, alike or not; nobody else's."""
    found = picks([1.0, 1.0, 1.0, 0.97], alike=[0, 1, 2, 3], tools=[True, True, True, False])
    assert [place for place, _ in found] == [0, 3, 1, 2]
    assert [value for _, value in found] == pytest.approx([1.0, 0.97, 0.95, 0.9])


def test_after_a_hundred_picks_the_rest_comes_as_it_stands():
    """Each once, in the order of what they have left; nothing looks at thousands of others thousands of times."""
    looks = []

    def alike(place):
        looks.append(place)
        return np.ones(3_000, bool)

    values = np.linspace(1, 0, 3_000, dtype=np.float32)
    found = picked(values, alike=alike, tools=np.zeros(3_000, bool), k=2_500)
    assert len(looks) == 100
    assert [place for place, _ in found] == list(range(2_500))


@given(st.lists(st.floats(-1, 1, width=32), max_size=8), st.integers(1, 10))
def test_without_diversity_the_best_come_as_they_are(values, k):
    """In the order in which they are given, with the values that they have."""
    values = sorted(values, reverse=True)
    found = picked(np.array(values, np.float32), alike=None, tools=np.ones(len(values), bool), k=k)
    assert found == list(enumerate(values))[:k]


# --- Values and scores ---


def test_parts_that_say_nothing_are_not_there():
    """What is None is no part."""
    nothing = dict.fromkeys(["vector", "lexical", "others", "assistant", "words", "in_time"])
    assert weigh(**nothing, knows_language=True) == {}


def test_an_embedder_counts_less_in_a_language_that_it_does_not_know():
    """A fifth; the words count as ever."""
    ones = np.ones(1, np.float32)
    rest = dict.fromkeys(["others", "assistant", "words", "in_time"])
    known = weigh(vector=ones, lexical=ones, knows_language=True, **rest)
    unknown = weigh(vector=ones, lexical=ones, knows_language=False, **rest)
    assert known["vector"][0] == 1.0
    assert unknown["vector"][0] == pytest.approx(0.2)
    assert known["lexical"][0] == unknown["lexical"][0] == pytest.approx(0.05)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5), st.floats(1, 60), st.floats(-0.5, 1.5))
def test_a_calibrated_score_is_between_0_and_1_and_rises(value, other, top, steep, middle):
    """With the value, and with the best one's; nothing overflows."""

    def at(value, top):
        return calibrated(value, top=top, steep=steep, middle=middle)

    assert 0 < at(value, top) < 1
    low, high = sorted([value, other])
    assert at(low, top) <= at(high, top)
    assert at(top, low) <= at(top, high)
    assert at(middle, middle) == pytest.approx(0.5)


def test_of_many_parts_the_best_is_better_by_luck():
    """One part has no luck, and no part has none either."""
    assert part_penalty(np.array([0, 1, 8], np.int32)).tolist() == pytest.approx([0, 0, 0.08 * math.log(8)])


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_longer_turn_says_more(one, other):
    """Up to sixty words."""
    short, long = length_prior(np.array(sorted([one, other]), np.float32))
    assert short <= long
    assert bool(short == long) is (one == other or min(one, other) >= 60)


@pytest.mark.parametrize("without", ["vector", ["vectors"], [""], {"lexical", "nothing"}])
def test_what_is_no_part_cannot_be_off(without):
    """A string is no collection of parts; the error says which parts there are."""
    with pytest.raises(InvalidInputError, match="vector, lexical, context"):
        checked_parts(without)
    assert checked_parts(["vector", "vector"]) == {"vector"}
