"""`memlayer.languages`: which language a text is in."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.languages import LANGUAGES, MARKS, language_of

SENTENCES = {
    "english": "I have never been to the sea with my sister",
    "german": "Ich war noch nie mit meiner Schwester am Meer",
    "french": "Je ne suis jamais allé à la mer avec ma sœur",
    "spanish": "Nunca he ido al mar con mi hermana, pero ya es hora",
    "italian": "Non sono mai stato al mare con mia sorella",
    "portuguese": "Eu nunca fui ao mar com a minha irmã",
    "dutch": "Ik ben nog nooit met mijn zus naar zee geweest",
    "swedish": "Jag har aldrig varit vid havet med min syster, men det är fint",
    "russian": "Я ещё никогда не был на море с сестрой",
    "turkish": "Ben hiç kız kardeşim ile denize gitmedim ama çok isterim",
    "arabic": "لم أذهب إلى البحر مع أختي من قبل",
    "hindi": "मैं अपनी बहन के साथ समुद्र पर नहीं गया था",
    "nepali": "म मेरो दिदी सँग समुद्रमा गएको छैन",
    "tamil": "நான் என் சகோதரியுடன் கடலுக்கு சென்றது இல்லை",
    "greek": "Δεν έχω πάει ποτέ στη θάλασσα με την αδελφή μου",
    "polish": "Nigdy nie byłem nad morzem z moją siostrą, ale już się cieszę",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_tells_its_language(language):
    """Whatever the texts around it are in."""
    for prevailing in ("english", "german", "russian", None):
        assert language_of(SENTENCES[language], prevailing=prevailing) == language


@pytest.mark.parametrize("language", SENTENCES)
def test_composed_or_not_is_the_same(language):
    """Accents that stand alone, as some systems write them, change nothing."""
    assert language_of(unicodedata.normalize("NFD", SENTENCES[language])) == language


def test_a_name_is_in_the_language_of_the_texts_around_it():
    """Nothing in a single name says what it is in."""
    assert language_of("Schwarzwald", prevailing="german") == "german"
    assert language_of("Schwarzwald", prevailing="english") == "english"
    assert language_of("Schwarzwald", prevailing=None) is None


def test_a_script_overrules_what_prevails():
    """A word in Cyrillic is not English because the other texts are."""
    assert language_of("Привет", prevailing="english") == "russian"
    assert language_of("नमस्ते", prevailing="english") == "hindi"


def test_what_no_stemmer_covers_has_no_language():
    """Ukrainian endings are not Russian ones; numbers, pictures and nothing are in no language."""
    for text in ("Добрий вечір, дівчата", "12345", "🙂🙂", "", "漢字", "ไทย", "שלום"):
        assert language_of(text, prevailing="english") is None


@given(st.text(max_size=400), st.sampled_from([None, *LANGUAGES]))
def test_what_a_text_was_taken_for_it_is_taken_for_again(text, prevailing):
    """So a turn's words can be found again when it is removed."""
    language = language_of(text, prevailing=prevailing)
    assert language is None or language in LANGUAGES
    assert language_of(text, prevailing=language) == language


@pytest.mark.parametrize("block", [(0x0300, 0x0370), (0x0591, 0x05C8), (0x0610, 0x0660), (0x0900, 0x0E00)])
def test_marks_are_all_marks_and_no_letter(block):
    """Accents, and the vowels of Hebrew, Arabic and the scripts of India, are parts of words."""
    for character in map(chr, range(*block)):
        category = unicodedata.category(character)
        if category != "Cn":
            assert bool(re.match(f"[{MARKS}]", character)) is (category[0] == "M")
