"""`memlayer.kinds`: which texts say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.kinds import kind_of

LARGEST = 262_144


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I love tea!", "i  LOVE tea"),
        ("Hello, world", "hello world..."),
        ("don't", "don’t"),
        ("It is 5.", "it is 5"),
        ("Room 5, please", "room 5 please"),
        ("“Hi” — she said", "hi she said"),
        ("**bold** move", "bold move"),
        ("我爱你。", "我 爱 你"),
        ("caf\u00e9", "cafe\u0301"),
        ("ｆｕｌｌ", "full"),
        ("\u2764\ufe0f", "\u2764"),
    ],
)
def test_case_spaces_and_punctuation_are_nothing(one, other):
    """Texts that differ in nothing else are one."""
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Take 1.5 mg", "Take 15 mg"),
        ("1,5", "15"),
        ("1 5", "15"),
        ("1/2", "12"),
        ("5-3", "53"),
        ("10:30", "1030"),
        ("it is -5", "it is 5"),
        (".5", "5"),
        ("$5", "5"),
        ("5%", "5"),
        ("10²", "102"),
        ("10.0.0.7", "100.0.7"),
        ("HV-67965", "HV-67966"),
        ("I like C#.", "I like C."),
        ("I like C++.", "I like C."),
        ("An A-, no?", "An A, no?"),
        ("Anna", "Anne"),
        ("मेरा", "मेरी"),
        ("กิน", "กัน"),
        ("ok 🙂", "ok 😡"),
        ("!", "?"),
    ],
)
def test_a_number_a_name_and_a_code_are_something(one, other):
    """Texts that differ in one of them are two."""
    assert kind_of(one) != kind_of(other)


@given(st.lists(st.from_regex(r"[a-z]{1,5}|[0-9]{1,3}", fullmatch=True), min_size=1), st.data())
def test_words_and_numbers_decide(tokens, data):
    """However they are put together: with a comma and a space, in capitals, with a full stop."""
    plain = " ".join(tokens)
    assert kind_of(plain) == kind_of(plain.upper() + ".") == kind_of(" " + plain + " !")
    changed = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens[:changed], tokens[changed] + "7", *tokens[changed + 1 :]]
    assert kind_of(" ".join(other)) != kind_of(plain)


@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from(["{}", "it is {} now", "x={}", "({})", "{}°"]))
def test_another_number_is_another_text(one, other, sentence):
    """With its sign."""
    assert (kind_of(sentence.format(one)) == kind_of(sentence.format(other))) is (one == other)


@pytest.mark.parametrize("unit", ["a-", ".", "1 ", "🙂", "\u0301", " ", "- ", "-1", "#"])
def test_the_largest_text_has_a_kind(unit):
    """Of any shape."""
    assert isinstance(kind_of(unit * (LARGEST // len(unit.encode()))), int)
