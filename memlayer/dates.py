"""The time that a text names: "last week", "three days ago", "on 7 May 2023". Pure functions; English only.

In a question it says which turns are meant; in a turn, when it happened what somebody tells. Both are counted from a
time: a question's from now, a turn's from when it was said.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

__all__ = ["Window", "named_window"]


class Window(NamedTuple):
    """From `since` until before `until`, both UTC."""

    since: datetime
    until: datetime


# Not `calendar`'s: those are in the language of the process's locale.
_NAMES = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTHS: Final = {
    **{name: number for number, name in enumerate(_NAMES, 1)},
    **{name[:3]: number for number, name in enumerate(_NAMES, 1)},
    "sept": 9,
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_YEAR = r"(?:19|20)\d\d"
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b\.?,?\s*({_YEAR})?")
_MONTH_DAY = re.compile(rf"\b({_MONTH})\.? (\d{{1,2}})(?:st|nd|rd|th)?\b(?!\d),?\s*({_YEAR})?")
_ISO = re.compile(rf"\b({_YEAR})-(\d\d)-(\d\d)\b")
_MONTH_YEAR = re.compile(rf"\b({_MONTH}),? (?:of )?({_YEAR})\b")
_NUMBERS: Final = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_AGO = re.compile(rf"\b(\d{{1,3}}|{'|'.join(_NUMBERS)}) (day|week|month|year)s? ago\b")
# How many days one is, and by how many people who say so are off.
_UNITS: Final = {"day": (1, 0), "week": (7, 3), "month": (30, 15), "year": (365, 60)}
_RELATIVE = re.compile(
    r"\b(?:yesterday|last night|today|this morning|tonight|(?:last|this) (?:week|month|weekend)|"
    r"last (?:monday|tuesday|wednesday|thursday|friday|saturday|sunday))\b"
)
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# From a 29th of February it is up to so many years to the one before.
_LEAP = 8
_DAY = timedelta(days=1)
# A date is near the beginning or nowhere; of a long text no more is read.
_CHARACTERS = 2_000


def named_window(text: str, *, now: datetime) -> Window | None:
    """The first time that the text names; None where it names none.

    Args:
        text: a question or a turn.
        now: what it is counted from, aware. A date without a year is the latest one that is not after it.
    """
    text = text[:_CHARACTERS].lower()
    try:
        now = now.astimezone(UTC)
        return _date(text, now) or _month(text) or _relative(text, now) or _ago(text, now)
    except (ValueError, OverflowError):
        return None  # the 31st of February, or before the year 1


def _date(text: str, now: datetime) -> Window | None:
    if (found := _DAY_MONTH.search(text)) is not None:
        day, month, year = int(found[1]), _MONTHS[found[2]], found[3]
    elif (found := _MONTH_DAY.search(text)) is not None:
        day, month, year = int(found[2]), _MONTHS[found[1]], found[3]
    elif (found := _ISO.search(text)) is not None:
        day, month, year = int(found[3]), int(found[2]), found[1]
    else:
        return None
    if year:
        since = datetime(int(year), month, day, tzinfo=UTC)
    else:
        since = _latest(month, day, now)
    return Window(since, since + _DAY)


def _latest(month: int, day: int, now: datetime) -> datetime:
    """The last such day that is not after now."""
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


def _month(text: str) -> Window | None:
    found = _MONTH_YEAR.search(text)
    if found is None:
        return None
    month, year = _MONTHS[found[1]], int(found[2])
    return Window(datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC))


def _relative(text: str, now: datetime) -> Window | None:
    found = _RELATIVE.search(text)
    if found is None:
        return None
    word = found[0]
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = today - today.weekday() * _DAY
    first = today.replace(day=1)
    windows = {
        "yesterday": Window(today - _DAY, today),
        "last night": Window(today - _DAY, today),
        "last week": Window(monday - 7 * _DAY, monday),
        "this week": Window(monday, today + _DAY),
        "last weekend": Window(monday - 2 * _DAY, monday),
        "this weekend": Window(monday + 5 * _DAY, monday + 7 * _DAY),
        "last month": Window((first - _DAY).replace(day=1), first),
        "this month": Window(first, today + _DAY),
    }
    if (name := word.removeprefix("last ")) in _WEEKDAYS:
        weekday = _WEEKDAYS.index(name)
        day = today - ((today.weekday() - weekday - 1) % 7 + 1) * _DAY
        return Window(day, day + _DAY)
    return windows.get(word, Window(today, today + _DAY))


def _ago(text: str, now: datetime) -> Window | None:
    found = _AGO.search(text)
    if found is None:
        return None
    days, off = _UNITS[found[2]]
    count = _NUMBERS.get(found[1]) or int(found[1])
    day = now.replace(hour=0, minute=0, second=0, microsecond=0) - count * days * _DAY
    return Window(day - off * _DAY, day + (off + 1) * _DAY)
