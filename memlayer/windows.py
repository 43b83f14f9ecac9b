"""Stretches of time that people have words for, counted from a time. Pure functions on UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = ["Unit", "Window", "day", "long_ago", "month", "named_day", "named_month", "week", "weekend"]

Unit: TypeAlias = Literal["day", "week", "month", "year"]

# How many days one is, and by how many people who say so are off.
_UNITS: Final[dict[Unit, tuple[int, int]]] = {"day": (1, 0), "week": (7, 3), "month": (30, 15), "year": (365, 60)}
# From a 29th of February it is up to so many years to the one before.
_LEAP: Final = 8
_DAY: Final = timedelta(days=1)


class Window(NamedTuple):
    """From `since` until before `until`, both UTC."""

    since: datetime
    until: datetime


def day(now: datetime, *, ago: int) -> Window:
    """Today is 0 days ago."""
    since = _today(now) - ago * _DAY
    return Window(since, since + _DAY)


def week(now: datetime, *, ago: int) -> Window:
    """From Monday on; of this one, which is 0 weeks ago, up to today."""
    monday = _monday(now) - ago * 7 * _DAY
    return Window(monday, monday + 7 * _DAY if ago else _today(now) + _DAY)


def weekend(now: datetime, *, ago: int) -> Window:
    """Saturday and Sunday of such a week."""
    monday = _monday(now) - ago * 7 * _DAY
    return Window(monday + 5 * _DAY, monday + 7 * _DAY)


def month(now: datetime, *, ago: int) -> Window:
    """From the first on; of this one, which is 0 months ago, up to today."""
    if not ago:
        return Window(_today(now).replace(day=1), _today(now) + _DAY)
    year, before = divmod(now.year * 12 + now.month - 1 - ago, 12)
    return named_month(year, before + 1)


def long_ago(now: datetime, *, count: int, unit: Unit) -> Window:
    """So many days, weeks, months or years ago, as exactly as people say it."""
    days, off = _UNITS[unit]
    then = _today(now) - count * days * _DAY
    return Window(then - off * _DAY, then + (off + 1) * _DAY)


def named_day(now: datetime, *, year: int | None, month: int, day: int) -> Window:
    """A day by its date; without a year, the latest one that is not after now.

    Raises:
        ValueError: there is no such day.
    """
    since = datetime(year, month, day, tzinfo=UTC) if year else _latest(month, day, now)
    return Window(since, since + _DAY)


def named_month(year: int, month: int) -> Window:
    """A month by its name.

    Raises:
        ValueError: there is no such month.
    """
    return Window(datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC))


def _latest(month: int, day: int, now: datetime) -> datetime:
    for year in range(now.year, max(now.year - _LEAP, 1) - 1, -1):
        try:
            since = datetime(year, month, day, tzinfo=UTC)
        except ValueError:
            if (month, day) != (2, 29):
                raise
            continue
        if since <= now:
            return since
    raise ValueError("no such day")


def _today(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def _monday(now: datetime) -> datetime:
    return _today(now) - now.weekday() * _DAY
