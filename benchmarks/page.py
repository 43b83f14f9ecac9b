"""The results as one HTML page that loads nothing: tables, and a plot where figures grow with size."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from memlayer.plots import STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["page"]

_LEFT, _TOP, _PLOT, _HEIGHT = 60, 30, 480, 220

_PAGE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #57606a; --grid: #dfe3e8;
  --first: #0b62a8; --second: #c2570c; --miss: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --faint: #a3acb6; --grid: #353c45;
  --first: #6cb6ff; --second: #f2a25c; --miss: #ff8a80; } }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:last-child { text-align: left; } th[scope=row] { font-weight: 500; }
.faint { color: var(--faint); } .miss { color: var(--miss); }
"""


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in results["figures"]:
        sections.setdefault(figure["section"], []).append(figure)
    machine = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in results["machine"].items())
    body = "".join(_section(name, figures) for name, figures in sections.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>memlayer: benchmarks</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{_PAGE}{STYLE}</style></head><body>'
        f'<h1>What memlayer costs</h1><p class="faint">{escape(results["at"])}; {machine}. Medians; a floor is '
        f"measured in the same run, turn by turn with what it is the floor of.</p>{body}</body></html>\n"
    )


def _section(name: str, figures: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(_row(figure) for figure in figures)
    head = "<tr><th>what</th><th>median</th><th>unit</th><th>must be</th><th>of its floor</th><th>the floor</th></tr>"
    return f"<h2>{escape(name)}</h2>{_plot(name, figures)}<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _row(figure: Mapping[str, Any]) -> str:
    limit = ""
    if figure["limit"] is not None:
        limit = f"{'≥' if figure['more'] else '≤'} {figure['limit']:,.2f}{' x' if figure['of_floor'] else ''}"
    missed = ' class="miss"' if figure["reached"] is False else ""
    floor = "" if figure["floor"] is None else f"{figure['floor']:,.3f}: {escape(figure['floor_name'])}"
    ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.2f} x"
    return (
        f'<tr><th scope="row">{escape(figure["name"])}</th><td{missed}>{figure["value"]:,.3f}</td>'
        f"<td>{escape(figure['unit'])}</td><td{missed}>{limit}</td><td>{ratio}</td><td>{floor}</td></tr>"
    )


def _plot(name: str, figures: Sequence[Mapping[str, Any]]) -> str:
    """How a section's figures, and their floors, grow with the number of memories."""
    sized = [figure for figure in figures if figure["size"] is not None]
    if len({figure["unit"] for figure in sized}) != 1 or len({figure["size"] for figure in sized}) < 2:
        return ""
    drawn = {"memlayer": [(figure["size"], figure["value"]) for figure in sized]}
    if all(figure["floor"] for figure in sized):
        drawn[sized[0]["floor_name"]] = [(figure["size"], figure["floor"]) for figure in sized]
    return _growth(f"{name}, {sized[0]['unit']} by the number of memories", drawn)


def _growth(title: str, drawn: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over two axes whose steps are powers of ten."""
    points = [point for line in drawn.values() for point in line]
    (left, right), (low, high) = (_decades([point[axis] for point in points]) for axis in (0, 1))

    def x(value: float) -> float:
        return _LEFT + _PLOT * (math.log10(value) - left) / (right - left)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (high - math.log10(value)) / (high - low)

    parts = []
    for power in range(low, high + 1):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(10**power):.1f}h{_PLOT}"/>')
        parts.append(
            f'<text class="faint" x="{_LEFT - 6}" y="{y(10**power) + 4:.1f}" text-anchor="end">{10**power:g}</text>'
        )
    for power in range(left, right + 1):
        at = f'x="{x(10**power):.1f}" y="{_TOP + _HEIGHT + 18}"'
        parts.append(f'<text class="faint" {at} text-anchor="middle">{10**power:,}</text>')
    for kind, (name, line) in enumerate(drawn.items()):
        path = "L".join(f"{x(size):.1f} {y(value):.1f}" for size, value in line)
        parts.append(f'<path class="line{kind}" d="M{path}"/>')
        parts += [f'<circle class="dot{kind}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"/>' for a, b in line]
        parts.append(f'<path class="line{kind}" d="M{_LEFT + 230 * kind} 8h26"/>')
        parts.append(f'<text x="{_LEFT + 32 + 230 * kind}" y="12">{escape(name)}</text>')
    height = _TOP + _HEIGHT + 30
    return f'<svg viewBox="0 0 560 {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around positive numbers; never the same one twice."""
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)
