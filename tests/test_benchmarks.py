"""`benchmarks`: figures, the page, and that each section runs."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import footprint, overhead, page, recall, users, writing
from benchmarks.figures import Figure


def figure(**values: Any) -> Figure:
    made: dict[str, Any] = {"section": "s", "name": "n", "value": 2.0, "unit": "ms"} | values
    return Figure(**made)


@pytest.mark.parametrize(
    ("values", "reached"),
    [
        ({}, None),
        ({"limit": 2.0}, True),
        ({"limit": 1.9}, False),
        ({"limit": 2.1, "more": True}, False),
        ({"limit": 0.5, "floor": 4.0, "of_floor": True}, True),
        ({"limit": 0.4, "floor": 4.0, "of_floor": True}, False),
        ({"limit": 0.4, "of_floor": True}, None),
    ],
)
def test_a_limit_is_kept_or_not(values, reached):
    """Of the value or of its ratio to the floor, from above or from below; without a floor there is no ratio."""
    assert figure(**values).reached is reached
    assert figure(**values).as_json()["reached"] is reached


def test_the_page_shows_every_figure_and_loads_nothing():
    """What was missed is marked, names are escaped, and where figures have sizes a plot is drawn."""
    figures = [figure(name=f"<n{size}>", size=size, limit=1.0, floor=1.0, floor_name="f") for size in (10, 1000)]
    html = page.page({"at": "now", "machine": {"processors": 2}, "figures": [one.as_json() for one in figures]})
    assert html.count('class="miss"') == 4
    assert "&lt;n10&gt;" in html
    assert html.count("<circle") == 4
    assert "http" not in html.replace("http-equiv", "")


SECTIONS = {
    "footprint": lambda: footprint.measure(sizes=[10]),
    "overhead": lambda: overhead.measure(rounds=2),
    "recall": lambda: recall.measure(sizes=[20], rounds=2),
    "users": lambda: users.measure(users=3, each=4, rounds=4),
    "writing": lambda: writing.measure(many=20, rounds=3),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_runs(name):
    """Each gives figures that are numbers, with names that tell them apart."""
    figures = list(SECTIONS[name]())
    assert figures
    assert len({one.name for one in figures}) == len(figures)
    assert all(one.value == one.value for one in figures)
