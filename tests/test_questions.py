"""`memlayer.questions`: who is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.questions import Question, read_question

LARGEST = 262_144


def unchanged(text):
    return Question(spoken=text, words=text)


def test_a_question_about_a_speaker_is_as_they_would_say_it():
    """In the first person, and without the name where words are compared."""
    question = read_question("When did Caroline go to CAROLINE’S house?", speakers=["Caroline", "Melanie"])
    assert question.spoken == "When did I go to my house?"
    assert question.words == "When did   go to   house?"
    assert question.about == {"Caroline"}


def test_both_may_be_meant():
    """Each name counts."""
    question = read_question("What did Caroline tell Melanie?", speakers=["Caroline", "Melanie"])
    assert (question.spoken, question.about) == ("What did I tell I?", frozenset({"Caroline", "Melanie"}))


@pytest.mark.parametrize("speakers", [[], ["Caroline"], ["Caroline", "user"], ["Caroline", "Assistant", "I"]])
def test_with_fewer_than_two_persons_nothing_is_told_apart(speakers):
    """A role is no person."""
    text = "When did Caroline go?"
    assert read_question(text, speakers=speakers) == unchanged(text)


def test_a_crowd_is_no_conversation():
    """With ten thousand speakers no question is searched for all of them."""
    text = "When did S5 go?"
    assert read_question(text, speakers=[f"S{number}" for number in range(10_000)]) == unchanged(text)
    assert read_question(text, speakers=[f"S{number}" for number in range(200)]).about == {"S5"}


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("What did Anna Jones say?", {"Anna Jones"}),
        ("What did anna-jones say?", {"Anna Jones"}),
        ("What does Anna like?", {"Anna Smith", "Anna Jones"}),
        ("What did Anna. Jones say?", {"Anna Jones"}),
        ("What did Anna say to Mr Jones?", {"Anna Smith", "Anna Jones"}),
        ("What did Joanna say?", set()),
        ("What did Annas say?", set()),
    ],
)
def test_the_longest_name_that_stands_there_is_meant(text, about):
    """A first name alone is everybody's who has it, a part of a word nobody's."""
    assert read_question(text, speakers=["Anna Smith", "Anna Jones"]).about == about


@pytest.mark.parametrize(
    ("text", "speakers"),
    [
        ("What is my dog's name?", ["my", "Bob"]),
        ("Will it rain?", ["Will", "Bob"]),
        ("When will it rain?", ["Will", "Bob"]),
        ("What did the user say?", ["User 1", "User 2"]),
        ("Who was the keynote speaker?", ["Speaker 1", "Speaker 2"]),
        ("Who is the person?", ["Person A", "Person B"]),
        ("Who is the boss?", ["The Tall One", "Bob"]),
        ("Is Dr. No in room 12?", ["Dr. Li", "12"]),
        ("x (?: y [a- z", ["(?:", "[a-", "*", "\\"]),
        ("a  .  b , c 🙂 d", [" ", ".", ",", "🙂"]),
    ],
)
def test_words_that_are_names_by_chance_are_words(text, speakers):
    """Small words, roles, titles, numbers, and names without a letter in them."""
    assert read_question(text, speakers=speakers) == unchanged(text)


@pytest.mark.parametrize(
    ("text", "speakers", "spoken"),
    [
        ("What did Will do?", ["Will", "Bob"], "What did I do?"),
        ("Will's dog?", ["Will", "Bob"], "my dog?"),
        ("What did speaker 2 say?", ["Speaker 1", "Speaker 2"], "What did I say?"),
        ("What about James' dog?", ["James", "Bob"], "What about my dog?"),
        ("O'Brien's cat", ["O'Brien", "Bob"], "my cat"),
        ("What did J.R. say?", ["J.R.", "Bob"], "What did I. say?"),
        ("Что сказала Анна?", ["Анна", "Борис"], "Что сказала I?"),
        ("क्या राम घर गया?", ["राम", "रामा"], "क्या I घर गया?"),
    ],
)
def test_names_of_any_kind(text, speakers, spoken):
    """Small words as written within a sentence, numbers with a word, apostrophes, other scripts."""
    assert read_question(text, speakers=speakers).spoken == spoken


@pytest.mark.parametrize(
    ("text", "spoken", "words", "about"),
    [
        ("小明什么时候去了北京", "我什么时候去了北京", " 什么时候去了北京", {"王小明"}),
        ("王小明先生和李雷的狗叫什么", "我和我的狗叫什么", " 和 的狗叫什么", {"王小明", "李雷"}),
        ("Caroline什么时候去了北京", "我什么时候去了北京", " 什么时候去了北京", {"Caroline"}),
        ("Caroline's dog和小明的猫", "my dog和I的猫", "  dog和 的猫", {"Caroline", "王小明"}),
        ("田中さんの犬は何", "私の犬は何", " の犬は何", {"田中太郎"}),
        ("민수는 언제 갔어", "나는 언제 갔어", " 는 언제 갔어", {"김민수"}),
        ("สมชายไปไหน", "ฉันไปไหน", " ไปไหน", {"สมชาย"}),
        ("When did 小明 go?", "When did I go?", "When did   go?", {"王小明"}),
        ("明天去哪里", "明天去哪里", "明天去哪里", set()),
    ],
)
def test_a_name_stands_within_a_run_without_spaces(text, spoken, words, about):
    """With its courtesy, by its whole name or one's own; a name of one character is found nowhere."""
    speakers = ["王小明", "李雷", "田中太郎", "김민수", "สมชาย", "Caroline", "明"]
    assert read_question(text, speakers=speakers) == Question(spoken=spoken, words=words, about=frozenset(about))


@pytest.mark.parametrize(
    ("text", "asking"),
    [
        ("I was ill yesterday. What did I say last week?", " What did I say last week?"),
        ('"I was ill yesterday!" he said. And today?', " And today?"),
        ("what did i do last week", "what did i do last week"),
        ("Please tell me what we did last week.", "Please tell me what we did last week."),
        ("我昨天病了。上周我说了什么？", "上周我说了什么？"),
        ("告诉我上周的事。", "告诉我上周的事。"),
        ("Yesterday was fine.\nIt rained.", ""),
        ("", ""),
    ],
)
def test_what_asks(text, asking):
    """Of a text only its questions, its requests and what ends in nothing ask; a statement's time is another time."""
    assert read_question(text, speakers=[]).asking.strip() == asking.strip()


def test_a_question_that_is_a_name_stays():
    """Nothing would be left of it; whom it is about is known all the same."""
    question = read_question("Caroline", speakers=["Caroline", "Melanie"])
    assert question == Question(spoken="Caroline", words="Caroline", about=frozenset({"Caroline"}))


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), max_size=6))
def test_any_question_and_any_names(text, speakers):
    """Only speakers are named, and a question about nobody stays as it is."""
    question = read_question(text, speakers=speakers)
    assert question.about <= set(speakers)
    if not question.about:
        assert question == unchanged(text)


@pytest.mark.parametrize(
    "unit", ["Anna ", "Anna Smith ", "a", "Anna's ", "漢", "\u0301", "An", "Anna-", "a. ", "!?", "\n"]
)
def test_the_largest_question(unit):
    """Of any shape."""
    text = unit * (LARGEST // len(unit.encode()))
    question = read_question(text, speakers=["Anna Smith", "Anna Jones", "A"])
    assert question.about <= {"Anna Smith", "Anna Jones", "A"}
    assert len(question.asking) <= 2 * len(text)
