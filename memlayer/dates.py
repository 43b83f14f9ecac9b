"""The time that a text names: "last week", "three days ago", "on 7 May 2023", "上周五". Pure functions.

In a question it says which turns are meant; in a turn, when it happened what somebody tells. Both are counted from a
time: a question's from now, a turn's from when it was said. English here, Chinese and Japanese in `memlayer.han_dates`.
"""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING, Final, cast

from memlayer import windows
from memlayer.han_dates import han_window

if TYPE_CHECKING:
    from datetime import datetime

    from memlayer.windows import Unit, Window

__all__ = ["named_window"]

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
_RELATIVE = re.compile(
    r"\b(?:yesterday|last night|today|this morning|tonight|(?:last|this) (?:week|month|weekend)|"
    r"last (?:monday|tuesday|wednesday|thursday|friday|saturday|sunday))\b"
)
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
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
        found = _date(text, now) or _month(text) or _relative(text, now) or _ago(text, now)
        return found if found is not None or text.isascii() else han_window(text, now=now)
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
    return windows.named_day(now, year=int(year) if year else None, month=month, day=day)


def _month(text: str) -> Window | None:
    found = _MONTH_YEAR.search(text)
    return None if found is None else windows.named_month(int(found[2]), _MONTHS[found[1]])


def _relative(text: str, now: datetime) -> Window | None:
    found = _RELATIVE.search(text)
    if found is None:
        return None
    which, _, name = found[0].partition(" ")
    ago = 1 if which == "last" else 0
    if name in _WEEKDAYS:
        return windows.day(now, ago=(now.weekday() - _WEEKDAYS.index(name) - 1) % 7 + 1)
    if name == "week":
        return windows.week(now, ago=ago)
    if name == "weekend":
        return windows.weekend(now, ago=ago)
    if name == "month":
        return windows.month(now, ago=ago)
    return windows.day(now, ago=1 if found[0] in ("yesterday", "last night") else 0)


def _ago(text: str, now: datetime) -> Window | None:
    found = _AGO.search(text)
    if found is None:
        return None
    count = _NUMBERS.get(found[1]) or int(found[1])
    return windows.long_ago(now, count=count, unit=cast("Unit", found[2]))
