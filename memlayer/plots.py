"""Plots as SVG, to be put into an HTML page. Pure functions from numbers to text.

Small on purpose: bars side by side and lines over two axes are all that a report needs, and a plotting library would
bring a hundred times its size. Colours are classes, which the page's style gives a value for light and for dark; what
they tell apart is told apart by the pattern of the line too. Every plot has a title that is read aloud; the numbers
themselves stand in a table beside it, which is the page's.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["STYLE", "Line", "Mark", "bars", "lines"]

STYLE: Final = """
svg { display: block; width: 100%; max-width: 40rem; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .faint { fill: var(--faint); }
svg .grid { stroke: var(--grid); stroke-width: 1; fill: none; }
svg .axis { stroke: var(--faint); stroke-width: 1; fill: none; }
svg .bar0 { fill: var(--first); } svg .bar1 { fill: var(--second); }
svg .line0 { stroke: var(--first); } svg .line1 { stroke: var(--second); }
svg .line0, svg .line1 { stroke-width: 2; fill: none; }
svg .line1 { stroke-dasharray: 6 3; }
svg .thin { stroke-width: 1.25; }
svg .guide { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
svg .dot0 { fill: var(--first); } svg .dot1 { fill: var(--second); }
svg .ring { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
"""
"""What the classes look like; the variables are the page's."""

_WIDTH: Final = 560
_GREATEST_LABEL: Final = 26


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot.

    Attributes:
        name: what it is.
        points: (x, y), in the plot's units.
        kind: 0 or 1: its colour and pattern.
        dots: mark each point; for few.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: int
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that is named."""

    name: str
    x: float
    y: float


def bars(title: str, groups: Sequence[tuple[str, Sequence[float]]], *, series: Sequence[str]) -> str:
    """Bars that lie on their side, one a series in every group, from 0 to 1, each with its value.

    Args:
        title: what is shown, for those who cannot see it.
        groups: (label, one value a series).
        series: their names, two at most.
    """
    left, right, bar, gap, top = 190, 48, 13, 12, 26
    group = bar * len(series) + gap
    height = top + group * len(groups) + 6
    plot = _WIDTH - left - right

    def x(value: float) -> float:
        return left + plot * min(max(value, 0), 1)

    drawn = [_legend(series, left)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        drawn.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{height - 6}"/>')
    for number, (label, values) in enumerate(groups):
        y = top + group * number + gap / 2
        middle = y + bar * len(series) / 2
        drawn.append(f'<text x="{left - 8}" y="{middle:.1f}" {_RIGHT}>{_short(label)}</text>')
        for place, value in enumerate(values):
            at = y + bar * place
            drawn.append(
                f'<rect class="bar{place}" x="{left}" y="{at:.1f}" width="{x(value) - left:.1f}" height="{bar - 2}"/>'
                f'<text x="{x(value) + 5:.1f}" y="{at + (bar - 2) / 2:.1f}" {_MIDDLE}>{value:.3f}</text>'
            )
    return _svg(title, drawn, height=height)


def lines(
    title: str,
    drawn_lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    x_most: float = 1.0,
    marks: Sequence[Mark] = (),
    diagonal: bool = False,
    at: float | None = None,
) -> str:
    """Lines from 0 to `x_most` and from 0 to 1.

    Args:
        title: what is shown, for those who cannot see it.
        drawn_lines: four at most.
        x_name, y_name: of the axes.
        x_most: where the axis ends; what lies behind is cut off.
        marks: points to be named.
        diagonal: draw where x and y are equal.
        at: draw a line up from here.
    """
    left, right, top, bottom, plot_height = 56, 24, 14 + 16 * ((len(drawn_lines) + 1) // 2), 44, 250
    plot, height = _WIDTH - left - right, top + plot_height + bottom

    def x(value: float) -> float:
        return left + plot * value / x_most

    def y(value: float) -> float:
        return top + plot_height * (1 - min(max(value, 0), 1))

    drawn = [_key(drawn_lines, left)]
    for step in range(6):
        tick = step / 5
        drawn += [
            f'<path class="grid" d="M{left} {y(tick):.1f}H{_WIDTH - right}"/>',
            f'<text class="faint" x="{left - 6}" y="{y(tick):.1f}" {_RIGHT}>{tick:.1f}</text>',
            f'<text class="faint" x="{x(tick * x_most):.1f}" y="{height - 28}" {_CENTRE}>{tick * x_most:.2g}</text>',
        ]
    drawn.append(f'<path class="axis" d="M{left} {top}V{y(0):.1f}H{_WIDTH - right}"/>')
    if diagonal:
        drawn.append(f'<path class="guide" d="M{x(0):.1f} {y(0):.1f}L{x(x_most):.1f} {y(x_most):.1f}"/>')
    if at is not None:
        drawn.append(f'<path class="guide" d="M{x(at):.1f} {top}V{y(0):.1f}"/>')
    for number, line in enumerate(drawn_lines):
        drawn += _line(line, x=x, y=y, most=x_most, thin=number > 1)
    for mark in marks:
        # Above the point, on the side where there is room.
        before = mark.x > x_most * 0.6
        drawn.append(
            f'<circle class="ring" cx="{x(mark.x):.1f}" cy="{y(mark.y):.1f}" r="5"/>'
            f'<text x="{x(mark.x) + (-9 if before else 9):.1f}" y="{y(mark.y) - 13:.1f}" '
            f"{_RIGHT if before else _MIDDLE}>{escape(mark.name)}</text>"
        )
    drawn += [
        f'<text class="faint" x="{left + plot / 2:.1f}" y="{height - 8}" {_CENTRE}>{escape(x_name)}</text>',
        f'<text class="faint" transform="translate(14 {top + plot_height / 2:.1f}) rotate(-90)" {_CENTRE}>'
        f"{escape(y_name)}</text>",
    ]
    return _svg(title, drawn, height=height)


_RIGHT: Final = 'text-anchor="end" dominant-baseline="central"'
_MIDDLE: Final = 'dominant-baseline="central"'
_CENTRE: Final = 'text-anchor="middle" dominant-baseline="central"'


def _line(
    line: Line, *, x: Callable[[float], float], y: Callable[[float], float], most: float, thin: bool
) -> list[str]:
    inside = [(at, value) for at, value in line.points if at <= most]
    path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in inside)
    drawn = [f'<path class="line{line.kind}{" thin" if thin else ""}" d="M{path}"/>'] if inside else []
    if line.dots:
        drawn += [f'<circle class="dot{line.kind}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"/>' for a, b in inside]
    return drawn


def _legend(series: Sequence[str], left: int) -> str:
    return "".join(
        f'<rect class="bar{number}" x="{left + 150 * number}" y="4" width="12" height="12"/>'
        f'<text x="{left + 150 * number + 18}" y="10" {_MIDDLE}>{escape(name)}</text>'
        for number, name in enumerate(series)
    )


def _key(drawn_lines: Sequence[Line], left: int) -> str:
    drawn = []
    for number, line in enumerate(drawn_lines):
        x, y = left + 250 * (number % 2), 8 + 16 * (number // 2)
        thin = " thin" if number > 1 else ""
        drawn.append(
            f'<path class="line{line.kind}{thin}" d="M{x} {y}h26"/>'
            f'<text x="{x + 32}" y="{y}" {_MIDDLE}>{escape(line.name)}</text>'
        )
    return "".join(drawn)


def _svg(title: str, drawn: Sequence[str], *, height: float) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _short(label: str) -> str:
    """What sets labels apart stands at their end as often as at their beginning."""
    if len(label) <= _GREATEST_LABEL:
        return escape(label)
    half = _GREATEST_LABEL // 2
    return escape(f"{label[: half - 1]}…{label[-half:]}")
