"""`memlayer.dates`: the time that a text names."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.dates import named_window

# A Wednesday.
NOW = datetime(2023, 5, 17, 15, 30, tzinfo=UTC)


def days(window):
    """First day and last day, as they are written."""
    return None if window is None else (f"{window.since:%Y-%m-%d}", f"{window.until - timedelta(days=1):%Y-%m-%d}")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("on 7 May 2023", "2023-05-07", "2023-05-07"),
        ("on the 7th of May, 2022", "2022-05-07", "2022-05-07"),
        ("May 7th", "2023-05-07", "2023-05-07"),
        ("on Sept. 3, 2022", "2022-09-03", "2022-09-03"),
        ("2022-12-31", "2022-12-31", "2022-12-31"),
        ("on 1 June", "2022-06-01", "2022-06-01"),
        ("in May 2023", "2023-05-01", "2023-05-31"),
        ("in December of 2022", "2022-12-01", "2022-12-31"),
        ("yesterday", "2023-05-16", "2023-05-16"),
        ("last night", "2023-05-16", "2023-05-16"),
        ("this morning", "2023-05-17", "2023-05-17"),
        ("last week", "2023-05-08", "2023-05-14"),
        ("this week", "2023-05-15", "2023-05-17"),
        ("last weekend", "2023-05-13", "2023-05-14"),
        ("last month", "2023-04-01", "2023-04-30"),
        ("last monday", "2023-05-15", "2023-05-15"),
        ("last wednesday", "2023-05-10", "2023-05-10"),
        ("last thursday", "2023-05-11", "2023-05-11"),
        ("three days ago", "2023-05-14", "2023-05-14"),
        ("2 weeks ago", "2023-04-30", "2023-05-06"),
        ("a year ago", "2022-03-18", "2022-07-16"),
        ("2022年12月31日", "2022-12-31", "2022-12-31"),
        ("六月一日", "2022-06-01", "2022-06-01"),
        ("十二月二十三号", "2022-12-23", "2022-12-23"),
        ("2022年十二月", "2022-12-01", "2022-12-31"),
        ("昨天晚上", "2023-05-16", "2023-05-16"),
        ("昨日", "2023-05-16", "2023-05-16"),
        ("前天", "2023-05-15", "2023-05-15"),
        ("大前天", "2023-05-14", "2023-05-14"),
        ("今晚", "2023-05-17", "2023-05-17"),
        ("上周", "2023-05-08", "2023-05-14"),
        ("上个星期五", "2023-05-12", "2023-05-12"),
        ("上周一个朋友", "2023-05-08", "2023-05-14"),
        ("这周", "2023-05-15", "2023-05-17"),
        ("这个礼拜天", "2023-05-21", "2023-05-21"),
        ("先週末", "2023-05-13", "2023-05-14"),
        ("上个月", "2023-04-01", "2023-04-30"),
        ("今月", "2023-05-01", "2023-05-17"),
        ("三天前", "2023-05-14", "2023-05-14"),
        ("两周之前", "2023-04-30", "2023-05-06"),
        ("2週間前", "2023-04-30", "2023-05-06"),
        ("一年前", "2022-03-18", "2022-07-16"),
    ],
)
def test_times_are_read(text, first, last):
    """As a date, or counted from now."""
    assert days(named_window(f"What did we do {text.upper()}?", now=NOW)) == (first, last)
    assert days(named_window(f"{text}, it was", now=NOW)) == (first, last)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I may go",
        "目前天气很好",
        "日本週刊",
        "很久以前",
        "十十月一日",
        "二月三十日",
        "march on",
        "31 February 2023",
        "0 may",
        "12 marbles",
        "2023-13-01",
        "a day",
        "1234567",
        "in 2023",
    ],
)
def test_what_names_no_time_has_none(text):
    """Months that are verbs, days that do not exist, numbers."""
    assert named_window(text, now=NOW) is None


def test_a_29th_of_february_is_the_last_one_that_was():
    """Up to eight years back: 1900 had none."""
    assert days(named_window("29 February", now=NOW)) == ("2020-02-29", "2020-02-29")
    assert days(named_window("29 February", now=datetime(1903, 1, 1, tzinfo=UTC))) == ("1896-02-29", "1896-02-29")


@given(
    st.text(alphabet="19 may,-th23 lastweekdyago/")
    | st.sampled_from(["yesterday", "last month", "29 feb", "31 dec", "9 years ago", "999 years ago", "this weekend"]),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))])),
)
def test_any_text_at_any_time(text, now):
    """From the year 1 to 9999, in any zone: a window of a positive length, or none."""
    window = named_window(text, now=now)
    assert window is None or (window.since < window.until and window.since.tzinfo is UTC)


@pytest.mark.parametrize("unit", ["1 ", "may 1", "12 may ", "a day ", " ", "2023-", "1", "last ", "٣ may "])
def test_the_largest_text(unit):
    """A date is near the beginning or nowhere."""
    named_window(unit * (262_144 // len(unit.encode())), now=NOW)
    assert named_window("x" * 3_000 + " on 7 May 2023", now=NOW) is None


def test_the_language_of_the_process_is_nothing_to_it():
    """Where `calendar` speaks German, the months are English still."""
    code = (
        "import calendar\n"
        "calendar.month_name = calendar.month_abbr = calendar.day_name = ['', 'Januar', 'Mai']\n"
        "from datetime import datetime, UTC\n"
        "from memlayer.dates import named_window\n"
        "assert named_window('on 7 May 2023', now=datetime(2024, 1, 1, tzinfo=UTC)).since.month == 5\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
