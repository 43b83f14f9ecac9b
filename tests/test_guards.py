"""Guards, foreign questions, slices and curves: pure functions, by hand-made cases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memlayer.curves import abstention, reliability
from memlayer.evaluation_file import Conversation, Question
from memlayer.guards import GUARDS, cut, guarded, joined, nameless, renamed, with_foreign
from memlayer.records import Turn
from memlayer.slices import (
    EVIDENCE_AGES,
    QUESTION_LENGTHS,
    count_words,
    evidence_age,
    prevailing_language,
    question_length,
    written_language,
)

AT = datetime(2026, 3, 2, tzinfo=UTC)


def conversation(id_: str = "c", *, speakers: tuple[str, str] = ("Ann Lee", "Bo"), turns: int = 6) -> Conversation:
    one, two = speakers
    said = [
        f"{one}: Hello {two}, I went to Oslo. It rained all day! Did it rain at yours?",
        f"{two}: Yes. {one.split()[0]}'s umbrella is here.",
    ]
    return Conversation(
        id=id_,
        turns=tuple(
            Turn(
                id=f"t{number}",
                text=said[number % 2],
                speaker=speakers[number % 2],
                session="s1" if number < 4 else "s2",
                at=AT,
            )
            for number in range(turns)
        ),
        questions=(
            Question(id="q", text=f"Where did {one} go with {two}?", category="1", evidence=frozenset({"t0", "t4"})),
        ),
    )


# --- Guards ---


def test_joined_turns_stay_in_their_session_and_take_turns():
    """Turns of one session become one, of a user and an assistant in turn without names; evidence follows."""
    done = joined(conversation())
    assert [(turn.session, turn.role, turn.speaker) for turn in done.turns] == [
        ("s1", "user", None),
        ("s2", "assistant", None),
    ]
    assert done.turns[0].text.count("\n") == 3
    assert done.questions[0].evidence == {"0", "1"}


def test_joined_turns_end_where_they_are_long():
    """Of a long session several long turns are made, each turn in one of them."""
    long = conversation(turns=4)
    many = Conversation(
        id="c",
        turns=tuple(turn.model_copy(update={"id": f"{n}-{turn.id}"}) for n in range(10) for turn in long.turns),
        questions=(),
    )
    assert len(joined(many).turns) == 5


def test_cut_turns_are_sentences_that_know_their_turn():
    """Every sentence is a turn with the speaker's name; a short one goes with its neighbour; evidence is as it was."""
    done = cut(conversation(turns=2))
    assert [turn.text for turn in done.turns] == [
        "Ann Lee: Hello Bo, I went to Oslo.",
        "Ann Lee: It rained all day!",
        "Ann Lee: Did it rain at yours?",
        "Bo: Yes. Ann's umbrella is here.",
    ]
    assert [done.origins[turn.id or ""] for turn in done.turns] == ["t0", "t0", "t0", "t1"]
    assert done.questions == conversation().questions


def test_renamed_speakers_are_others_everywhere():
    """Neither turns, nor speakers, nor questions have an old name, first names included, and both have one new name."""
    [first] = with_foreign([conversation(), conversation("d", speakers=("Cy", "Di"))],
                           asked={"c": conversation().questions, "d": conversation().questions})[:1]  # fmt: skip
    done = renamed(first)
    told = " ".join([*(turn.text for turn in done.turns), done.questions[0].text, *done.foreign])
    assert not any(name in told for name in ("Ann", "Bo", "Lee"))
    new = {turn.speaker for turn in done.turns}
    assert len(new) == 2
    assert all(turn.text.startswith(f"{turn.speaker}: ") for turn in done.turns)
    assert all(name in done.questions[0].text for name in map(str, new))


def test_a_name_within_a_word_stays():
    """ "Bo" is no part of "Bob" and "Boat"; Chinese names need no spaces around them."""
    zh = Conversation(
        id="z",
        turns=(
            Turn(id="1", text="小明: Bob和小红去了。", speaker="小明"),
            Turn(id="2", text="小红: 好", speaker="小红"),
        ),
        questions=(),
    )
    done = renamed(zh)
    assert "小明" not in done.turns[0].text
    assert "小红" not in done.turns[0].text
    assert "Bob" in done.turns[0].text


def test_nameless_turns_have_no_speaker():
    """Neither the field nor the text's beginning says who spoke; what they call each other stays."""
    done = nameless(conversation())
    assert {turn.speaker for turn in done.turns} == {None}
    assert done.turns[0].text.startswith("Hello Bo")


def test_every_guard_keeps_what_is_asked():
    """Each guard has the same questions, by id, and evidence that is there."""
    for guard in GUARDS:
        [done] = guarded([conversation()], guard)
        there = {done.origins.get(turn.id or "", turn.id) for turn in done.turns}
        assert [question.id for question in done.questions] == ["q"]
        assert done.questions[0].evidence <= there
        assert len({turn.id for turn in done.turns}) == len(done.turns)


def test_foreign_questions_carry_the_own_names():
    """A conversation is asked the next one's questions about its own speakers; the last one the first one's; one that
    is alone none."""
    two = [conversation(), conversation("d", speakers=("Cy", "Di"))]
    asked = {each.id: each.questions for each in two}
    first, second = with_foreign(two, asked=asked)
    assert first.foreign == ("Where did Ann Lee go with Bo?",)
    assert second.foreign == ("Where did Cy go with Di?",)
    assert with_foreign(two[:1], asked=asked)[0].foreign == ()


# --- Slices ---


@pytest.mark.parametrize(
    ("text", "words", "length"),
    [
        ("Who?", 1, 0),
        ("我不能吃什么？", 3, 0),
        ("It's in Bo's well-known bag", 6, 1),
        ("a " * 20, 20, 2),
        ("a " * 21, 21, 3),
    ],
)
def test_questions_by_their_length(text, words, length):
    """Words are counted, two characters for one where none are parted by spaces."""
    assert count_words(text) == words
    assert question_length(text) == QUESTION_LENGTHS[length]


@pytest.mark.parametrize(("days", "age"), [(0, 0), (1, 0), (2, 1), (20, 2), (90, 3), (300, 4), (400, 5)])
def test_questions_by_the_age_of_their_evidence(days, age):
    """The oldest evidence counts, from the end of the conversation; without all times nothing is known."""
    assert evidence_age([AT, AT - timedelta(days=days)], end=AT) == EVIDENCE_AGES[age]
    assert evidence_age([AT, None], end=AT) == evidence_age([AT], end=None) == "unknown"


def test_questions_by_their_language():
    """Scripts and small words tell; a name alone does not, and is taken for what prevails."""
    told = {"Where is the dog?": "english", "Wo ist mein Hund?": "german", "我不能吃什么？": "chinese",
            "私の犬はどこですか": "japanese", "내 개는 어디 있어요": "korean", "Tokyo": "unknown"}  # fmt: skip
    assert {text: written_language(text) for text in told} == told
    assert written_language("Tokyo", prevailing="english") == "english"
    assert prevailing_language(["Tokyo", "Where is it?", "Where are you?", "Wo ist er?"]) == "english"
    assert prevailing_language(["Tokyo"]) is None


# --- Curves ---


def test_hits_are_put_into_bins_by_score():
    """Each bin has its hits, their mean score and the share that is right; 1 belongs to the last; empty ones say so."""
    bins = reliability([(0.05, False), (0.09, True), (0.95, True), (1.0, True), (0.1, False)])
    assert [each.hits for each in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0].score == pytest.approx(0.07)
    assert bins[0].evidence == 0.5
    assert (bins[2].score, bins[2].evidence) == (None, None)
    assert bins[9].evidence == 1


def test_a_floor_loses_what_is_below_it():
    """A hit with the floor's own score stays; questions that had nothing right lose nothing, and count."""
    found = abstention([0.2, 0.5, None, 0.9], [0.1, 0.3, 0.6], default=0.5)
    assert found.default is not None
    assert found.default.lost == 0.25
    assert found.default.silent == pytest.approx(2 / 3)
    assert (found.questions, found.foreign, len(found.curve)) == (4, 3, 101)
    assert found.curve[100].lost == 0.75


def test_the_accepted_floor_is_the_highest_that_costs_little():
    """Of 100 questions five may lose a hit: the floor is the sixth lowest right score, and costs five."""
    found = abstention([number / 100 for number in range(100)], [0.04, 0.06], default=None)
    assert (found.accepted.floor, found.accepted.lost, found.accepted.silent) == (0.05, 0.05, 0.5)
    assert found.default is None
    assert abstention([0.4, 0.5], [], default=None).accepted.floor == 0.4
