"""The time that a text in Chinese or Japanese names: "上周五", "三天前", "2023年5月7日", "先月". Pure functions.

One file for both: most words for it are written with the same characters, and none of one means another time in the
other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from memlayer import windows

if TYPE_CHECKING:
    from datetime import datetime

    from memlayer.windows import Unit, Window

__all__ = ["han_window"]

_DIGITS: Final = {character: number for number, character in enumerate("一二三四五六七八九", 1)} | {"两": 2, "兩": 2}
_NUMBER = "[0-9]{1,3}|[一二两兩三四五六七八九十]{1,3}"
_YEAR = "(?:19|20)[0-9]{2}"
_DATE = re.compile(rf"(?:({_YEAR})年)?\s?({_NUMBER})月\s?({_NUMBER})[日号號]")
_MONTH = re.compile(rf"({_YEAR})年\s?({_NUMBER})月")
_AGO = re.compile(
    rf"({_NUMBER})\s?(天|日|周|週間|週|个?星期|個星期|个?礼拜|個禮拜|个月|個月|[ヶかカケ]月|年)(?:之|以)?前"
)
_UNITS: Final[dict[str, Unit]] = {"天": "day", "日": "day", "月": "month", "年": "year"}
_WEEK = re.compile(
    "(上|这|這|(?<!日)本|先|今)(?:个|個)?(?:周|週|星期|礼拜|禮拜)(末|[一二三四五六日天](?![天年月个個]))?"
)
_WEEKDAYS: Final = "一二三四五六日"
_WHICH_MONTH = re.compile("(上|这|這|(?<!日)本|先|今)(?:个|個)?月")
# Not in "目前天气", the weather at present, nor in "三天前".
_DAY = re.compile("((?<![目以之天日周月年])大?前[天日]|昨[天日晚夜]|今[天日晚早夜])")
_DAYS: Final = {"今": 0, "昨": 1, "前": 2, "大": 3}
_BEFORE: Final = frozenset("上先")


def han_window(text: str, *, now: datetime) -> Window | None:
    """The first time of the most exact kind that the text names; None where it names none.

    Args:
        text: a question or a turn.
        now: what it is counted from, UTC.

    Raises:
        ValueError: there is no such day.
    """
    if (found := _DATE.search(text)) is not None:
        year = int(found[1]) if found[1] else None
        return windows.named_day(now, year=year, month=_number(found[2]), day=_number(found[3]))
    if (found := _MONTH.search(text)) is not None:
        return windows.named_month(int(found[1]), _number(found[2]))
    if (found := _DAY.search(text)) is not None:
        return windows.day(now, ago=_DAYS[found[1][0]])
    if (found := _WEEK.search(text)) is not None:
        return _week(now, ago=int(found[1] in _BEFORE), part=found[2])
    if (found := _WHICH_MONTH.search(text)) is not None:
        return windows.month(now, ago=int(found[1] in _BEFORE))
    if (found := _AGO.search(text)) is not None:
        return windows.long_ago(now, count=_number(found[1]), unit=_UNITS.get(found[2][-1], "week"))
    return None


def _week(now: datetime, *, ago: int, part: str | None) -> Window:
    """A week, its weekend or one of its days: what is said of last week's Friday is so in both languages."""
    if part is None:
        return windows.week(now, ago=ago)
    if part == "末":
        return windows.weekend(now, ago=ago)
    return windows.day(now, ago=now.weekday() - _WEEKDAYS.index(part.replace("天", "日")) + 7 * ago)


def _number(text: str) -> int:
    """A number up to 99 in characters, or one in digits."""
    if text[0] not in _DIGITS and text[0] != "十":
        return int(text)
    tens, ten, ones = text.rpartition("十") if "十" in text else ("", "", text)
    if not {tens, ones} <= {"", *_DIGITS}:
        raise ValueError("no number")
    return (10 * _DIGITS.get(tens, 1) if ten else 0) + _DIGITS.get(ones, 0)
