"""`memlayer.words`: the words of a text, as the lexical leg compares them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.languages import LANGUAGES
from memlayer.words import document_words, is_unspaced, query_words, width

LARGEST = 262_144


def words(text, prevailing="english"):
    return document_words(text, prevailing=prevailing)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't like Caroline's peanuts", ["like", "carolin", "peanut"]),
        ("HV-67965", ["hv", "67965", "hv-67965"]),
        ("ping 10.0.0.7", ["ping", "10", "0", "0", "7", "10.0.0.7"]),
        ("a@b.org", ["b", "org", "a@b.org"]),
        ("well-known", ["well", "known"]),
        ("snake_case is_2", ["snake", "case", "2", "is_2"]),
        ("ＦＵＬＬ width", ["full", "width"]),
        ("Fahr\u00adplan", ["fahrplan"]),
        ("l'école de la ville", ["écol", "vill"]),
        ("dell'amico non sono qui", ["amic", "qui"]),
        ("İstanbul'da bir ev var ve güzel", ["istanbul", "ev", "güzel"]),
        ("हिन्दी में मेरी किताबें हैं", ["हिन्द", "किताब"]),
        ("الكُتُب الجديدة", ["كتب", "جديد"]),
        ("我爱北京", ["爱", "北", "京", "我爱", "爱北", "北京"]),
        ("in 北京 today", ["北", "京", "北京", "today"]),
        ("?!… 🙂", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, expected):
    """Folded, stemmed, without small words; codes whole and in pieces; scripts without spaces by characters and
    pairs."""
    assert words(text) == expected


@given(st.text(max_size=200), st.sampled_from([None, *LANGUAGES]))
def test_a_text_has_its_words_again(text, prevailing):
    """With the language that it was taken for, a text has the words that it had; so they can be removed."""
    found, language = document_words(text, prevailing=prevailing)
    assert document_words(text, prevailing=language) == (found, language)


@given(st.text(max_size=200))
def test_composed_or_not_is_the_same(text):
    """Two ways to write one text have the same words."""
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=200))
def test_ascii_is_no_exception(text):
    """It has the words that it has beside a sign that is not ASCII."""
    assert words(text + " ×") == words(text)


def test_a_word_said_twice_counts_half_as_much_again():
    """The square root of how often it is said."""
    (once,) = query_words("peanut", languages=["english"])
    (twice,) = query_words("peanut peanuts", languages=["english"])
    assert (once.forms, once.weight) == (("peanut",), 1.0)
    assert twice.weight == pytest.approx(2**0.5)


def test_a_question_looks_for_the_forms_of_every_language_of_the_store():
    """A German question finds a name that stands in English turns."""
    (word,) = query_words("Reisen", languages=["german", "english"])
    assert set(word.forms) == {"reis", "reisen"}


def test_words_that_are_one_in_the_language_of_the_question_count_once():
    """Though another language of the store tells them apart."""
    (word,) = query_words("what is the runner's run and running", languages=["english", "german"])[1:]
    assert word.weight == pytest.approx(2**0.5)
    assert set(word.forms) == {"run", "running"}


def test_a_single_character_says_less_than_a_pair():
    """In scripts without spaces."""
    weights = {word.forms[0]: word.weight for word in query_words("北京", languages=[])}
    assert weights == {"北": 0.4, "京": 0.4, "北京": 1.0}


@pytest.mark.parametrize(
    ("text", "expected"), [("北京", True), ("I went to 北京 with my whole family", False), ("", False), ("กินข้าว", True)]
)
def test_mostly_unspaced(text, expected):
    """Nearly a third of a text's characters decide."""
    assert is_unspaced(text) is expected


def test_a_character_without_spaces_is_three_letters_wide():
    """As it says as much."""
    assert (width("abc"), width("北京"), width("é北")) == (3, 6, 4)


@pytest.mark.parametrize("unit", ["a", "a-", "a.", "漢", "🙂", "\u0301", "1", ".", "'", "a'", "कि ", "1 ", "\ufdfa"])
def test_the_largest_text_has_words(unit):
    """Of any shape, and again for its removal."""
    text = unit * (LARGEST // len(unit.encode()))
    found, language = document_words(text, prevailing="english")
    assert len(found) <= 20 * len(text)
    assert language is None or language in LANGUAGES
