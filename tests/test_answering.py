"""From a question to the turns that answer it: `memlayer.answering`, through an index with either engine."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlayer import MemoryStore, RawKey, Turn
from memlayer.calibration import Calibration
from memlayer.embedders import MiniLM
from memlayer.filters import Condition
from memlayer.index import Entry, UserIndex
from memlayer.questions import read_question
from memlayer.ranking import PARTS
from memlayer.records import Memory
from memlayer.searching import Shown
from memlayer.testing import HashingEmbedder

NOON = datetime(2023, 5, 17, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
EMBEDDER = HashingEmbedder()
CALIBRATION = Calibration()
ENGINES = ["sqlite-vec", "flat"]


def entry(seq, text="the cat", *, at=NOON, parts=1, **fields):
    plain: dict[str, Any] = {
        "role": "user",
        "speaker": None,
        "session": None,
        "metadata": {},
        "source": "user",
        "expires": None,
    }
    memory = Memory(id=f"id-{seq}", text=text, at=at, written=NOON, **{**plain, **fields})
    vectors = np.repeat(EMBEDDER.embed_documents([text]), parts, axis=0)
    return Entry(key=seq.to_bytes(16, "big"), seq=seq, stamp=bytes(32), memory=memory, vectors=vectors)


def index_of(*entries, engine=None):
    index = UserIndex(dimensions=EMBEDDER.identity.dimensions, engine=engine)
    index.apply(entries, removed=())
    return index


def answers(index, text, *, k=10, without=(), now=NOON, explain=True, floor=0.0, calibration=CALIBRATION, **condition):
    question = read_question(text, speakers=() if "speaker" in without else index.speakers)
    return index.answer(
        question,
        EMBEDDER.embed_query(question.spoken),
        k=k,
        condition=Condition(**condition),
        floor=floor,
        now=now,
        calibration=calibration,
        without=without,
        shown=Shown(parts=explain),
    )


def texts(hits):
    return [hit.text for hit in hits]


def values(hits, *, turns, calibration=CALIBRATION):
    """The values that the scores were made of; `memlayer.ranking.calibrated` read backwards."""
    middle = calibration.middle + calibration.growth * math.log(turns)
    mixed = [math.log(hit.score / (1 - hit.score)) / calibration.steep + middle for hit in hits]
    top = mixed[0]
    return [top] + [max((value - 0.7 * top) / 0.3, value - 0.15) for value in mixed[1:]]


def chat():
    """Two people, two conversations, an assistant and a tool; texts that look for each other."""
    said = [
        ("Anna", "user", "I went to Oslo with my red boat yesterday"),
        ("Bob", "user", "That is a long way, was the sea calm?"),
        ("Anna", "user", "It was, and the boat is fine"),
        (None, "assistant", "The boat of Anna is red and it was in Oslo"),
        ("Bob", "user", "My cat ate the peanuts on 12 May"),
        ("Anna", "user", "Was it a red cat?"),
        (None, "tool", "boat boat boat red 17"),
        (None, "tool", "boat boat boat red 18"),
        ("Bob", "user", "My cat ate the peanuts, on 12 May!"),
    ]
    return [
        entry(seq, text, at=NOON + seq * HOUR, session="ab"[seq // 4 % 2], speaker=speaker, role=role)
        for seq, (speaker, role, text) in enumerate(said)
    ]


# --- Copies ---


def test_copies_are_one_hit_with_a_count():
    """Equal but for case, spaces and punctuation: one hit, the earliest of equal ones, in place of many."""
    index = index_of(
        entry(0, "My cat is red"), entry(1, "my cat is red!"), entry(2, "MY  CAT, IS RED"), entry(3, "a dog")
    )
    found = answers(index, "cat")
    assert [(hit.id, hit.count) for hit in found] == [("id-0", 3), ("id-3", 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("take 1.5 pills", "take 15 pills"), ("call HV-67965", "call HV-67966"), ("met Anna", "met Anne")],
)
def test_texts_that_differ_in_a_number_a_code_or_a_name_are_two_hits(one, other):
    """However alike they are otherwise."""
    found = answers(index_of(entry(0, one), entry(1, other)), one)
    assert sorted(texts(found)) == sorted([one, other])
    assert [hit.count for hit in found] == [1, 1]


def test_copies_that_a_filter_leaves_out_do_not_count():
    """The count is of what may be found."""
    index = index_of(entry(0, "a cat", session="a"), entry(1, "a cat", session="b"), entry(2, "a cat", session="b"))
    assert [hit.count for hit in answers(index, "cat", session="b")] == [2]


# --- Parts ---


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_are_what_the_value_is_the_sum_of(engine):
    """For every hit, also for those from which others that say the same took something."""
    index = index_of(*chat(), engine=engine)
    found = answers(index, "When was Anna in Oslo with her red boat yesterday?")
    assert [math.fsum(hit.parts.values()) for hit in found] == pytest.approx(values(found, turns=9), abs=1e-3)
    assert any(hit.parts.get("diversity") for hit in found)
    assert all(set(hit.parts) <= set(PARTS) for hit in found)


def test_without_explain_there_are_no_parts():
    """And the hits are the same."""
    index = index_of(*chat())
    plain = answers(index, "red boat", explain=False)
    assert {hit.parts for hit in plain} == {None}
    assert [(hit.id, hit.score) for hit in plain] == [(hit.id, hit.score) for hit in answers(index, "red boat")]


# What else changes when a part goes: what is made of it.
TOUCHED = {
    "vector": {"vector"}, "lexical": {"lexical"}, "context": {"vector", "lexical"}, "speaker": {"speaker"},
    "role": {"role"}, "length": {"length"}, "time": {"time"}, "session": {"session"}, "duplicates": set(),
    "diversity": set(),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_off_changes_that_part_only(part):
    """All others have the values that they had, but for the session's share, which is of their sum."""
    index = index_of(*chat())
    question = "What did the cat eat yesterday, and where was the red boat on 12 May?"
    of_all = {hit.id: hit.parts for hit in answers(index, question, k=100, without=["diversity", "duplicates"])}
    found = answers(index, question, k=100, without={part, "diversity", "duplicates"})
    assert len(found) == 9
    for hit in found:
        before = of_all[hit.id]
        for name in set(before) - TOUCHED.get(part, set()) - {"session"}:
            assert hit.parts[name] == before[name]
        if part in ("vector", "lexical", "role", "length", "time", "session"):
            assert part not in hit.parts
            assert part in before
    if part == "context":
        assert any(hit.parts["lexical"] != of_all[hit.id]["lexical"] for hit in found)
        assert any(hit.parts["vector"] != of_all[hit.id]["vector"] for hit in found)


def test_without_the_speaker_the_question_stays_as_it_is():
    """Nobody is meant, and the name is a word."""
    index = index_of(*chat())
    meant = {hit.id: hit.parts for hit in answers(index, "What does Bob like?")}
    assert meant["id-0"]["speaker"] == pytest.approx(-0.2)
    assert meant["id-1"]["speaker"] == 0
    assert all("speaker" not in hit.parts for hit in answers(index, "What does Bob like?", without=["speaker"]))


def test_without_duplicates_each_copy_is_a_hit():
    """With a count of one."""
    index = index_of(entry(0, "a cat"), entry(1, "A cat!"))
    assert [hit.count for hit in answers(index, "cat", without=["duplicates"])] == [1, 1]


def test_with_everything_off_all_are_equal():
    """In the order of writing, with no parts."""
    found = answers(index_of(*chat()), "boat", without=PARTS)
    assert [hit.id for hit in found] == [f"id-{seq}" for seq in range(9)]
    assert [hit.parts for hit in found] == [{}] * 9


# --- What may be found ---


@pytest.mark.parametrize("engine", ENGINES)
def test_filters_restrict(engine):
    """By session, time, source, metadata and expiry; what is left out takes no place among the `k`."""
    index = index_of(
        entry(0, "the red cat", session="a", at=NOON, metadata={"n": 1}),
        entry(1, "the red cats", session="b", at=NOON + HOUR, source="tool"),
        entry(2, "a red cat", session="b", at=NOON + 2 * HOUR, expires=NOON + 3 * HOUR),
        entry(3, "a dog", session="b", at=NOON + 3 * HOUR),
        engine=engine,
    )
    assert texts(answers(index, "red cat", k=1, session="a")) == ["the red cat"]
    assert set(texts(answers(index, "red cat", since=NOON + HOUR, until=NOON + 3 * HOUR))) == {
        "the red cats",
        "a red cat",
    }
    assert texts(answers(index, "red cat", sources=["tool"])) == ["the red cats"]
    assert texts(answers(index, "red cat", where={"n": 1})) == ["the red cat"]
    assert "a red cat" in texts(answers(index, "red cat", alive_at=NOON + 2 * HOUR))
    assert "a red cat" not in texts(answers(index, "red cat", alive_at=NOON + 3 * HOUR))
    assert answers(index, "red cat", where={"n": 2}) == []


def test_a_memory_without_vectors_is_not_found():
    """With a filter or without: it is for filters and history."""
    index = index_of(entry(0, "a red cat"), entry(1, "the red dog", parts=0))
    assert texts(answers(index, "red dog")) == ["a red cat"]
    assert texts(answers(index, "red dog", since=NOON - HOUR)) == ["a red cat"]


@pytest.mark.parametrize("engine", ENGINES)
def test_small_stores(engine):
    """One that is empty, one of one turn, and fewer turns than are asked for."""
    assert answers(index_of(engine=engine), "cat") == []
    assert texts(answers(index_of(entry(0), engine=engine), "cat", k=10_000)) == ["the cat"]
    assert len(answers(index_of(*chat(), engine=engine), "cat", k=10_000, without=["duplicates"])) == 9


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_are_in_the_order_of_writing(engine):
    """Whatever the order in which they came, and for more than the pool holds."""
    alike = [entry(seq, f"{'abcdefghij'[seq % 10]}{'abcdefghijklmnopqrstuvw'[seq // 10]}q cat") for seq in range(230)]
    index = index_of(*reversed(alike), engine=engine)
    for k in (1, 7, 100, 150, 230):
        found = answers(index, "a dog or nothing", k=k, without=["vector", "lexical", "diversity"])
        assert [hit.id for hit in found] == [f"id-{seq}" for seq in range(k)]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_floor_cuts(engine):
    """What scores as much as the floor stays, what scores less goes."""
    index = index_of(*chat(), engine=engine)
    everything = answers(index, "red boat in Oslo")
    floor = everything[2].score
    assert [hit.id for hit in answers(index, "red boat in Oslo", floor=floor)] == [
        hit.id for hit in everything if hit.score >= floor
    ]


# --- The same answer ---

WORDS = ["cat", "cats", "boat", "red", "Oslo", "Anna", "7", "HV-12", "yesterday", "北京"]
ENTRIES = st.lists(
    st.builds(
        lambda words, **fields: ("the " + " ".join(words), fields),
        st.lists(st.sampled_from(WORDS), max_size=6),
        session=st.sampled_from([None, "a", "b"]),
        speaker=st.sampled_from([None, "Anna", "Bob"]),
        role=st.sampled_from(["user", "assistant", "tool"]),
        at=st.integers(0, 30).map(lambda hours: NOON + hours * HOUR),
        parts=st.sampled_from([1, 1, 1, 3]),
    ),
    max_size=12,
).map(lambda made: [entry(seq, text, **fields) for seq, (text, fields) in enumerate(made)])
QUESTIONS = st.lists(st.sampled_from([*WORDS, "What", "did", "Bob's"]), min_size=1, max_size=6).map(" ".join)


def seen(hits):
    return [(hit.id, hit.score, hit.count, hit.parts) for hit in hits]


@given(ENTRIES, QUESTIONS, st.integers(1, 6), st.sets(st.sampled_from(PARTS)))
@settings(max_examples=60)
def test_both_engines_give_the_same_answer(entries, question, k, without):
    """To the last bit, with any parts off."""
    small, flat = (index_of(*entries, engine=engine) for engine in ENGINES)
    assert seen(answers(small, question, k=k, without=without)) == seen(answers(flat, question, k=k, without=without))


@given(ENTRIES, QUESTIONS, st.sets(st.integers(0, 11)), st.randoms())
@settings(max_examples=60)
def test_an_index_answers_alike_however_it_came_to_be(entries, question, removed, random):
    """Built at once, or turn by turn, with turns that were removed and turns that were written anew; to the last
    bit."""
    grown = index_of()
    for one in entries:
        grown.apply([one], removed=())
    for again in random.sample(entries, len(entries) // 2):
        grown.apply([again], removed=())
    grown.apply([], removed=[seq.to_bytes(16, "big") for seq in removed])
    at_once = index_of(*(one for one in entries if one.seq not in removed))
    assert seen(answers(grown, question)) == seen(answers(at_once, question))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_written_and_forgotten_costs_nothing_later(engine):
    """Rows are given anew when most are nobody's: the index answers, filters and forgets as one that was built of what
    is there, in a place of its size."""
    index = index_of(*chat(), engine=engine)
    long = [entry(seq, f"the note {seq}", parts=1 + seq % 3, metadata={"n": seq}) for seq in range(9, 14)]
    index.apply(long, removed=())
    for start in range(100, 3_100, 200):
        passing = [entry(seq, f"the error {seq}") for seq in range(start, start + 200)]
        index.apply(passing, removed=())
        index.apply([], removed=[one.key for one in passing])
    late = entry(9_999, "The red boat is for sale", session="a", at=NOON + 9 * HOUR)
    index.apply([late], removed=[long[1].key])
    fresh = index_of(*chat(), long[0], *long[2:], late, engine=engine)
    if engine == "flat":  # SQLite keeps the pages that are free, for later
        assert index.nbytes < fresh.nbytes + 150_000
    for question in ("Where is the red boat of Anna?", "note 12", "peanuts on 12 May"):
        assert seen(answers(index, question, k=50)) == seen(answers(fresh, question, k=50))
    assert texts(answers(index, "note", where={"n": 12})) == ["the note 12"]
    assert index.keys() == fresh.keys()
    index.apply([], removed=[late.key])
    assert "The red boat is for sale" not in texts(answers(index, "red boat", k=50))


# --- Many alike ---


def test_ten_thousand_hits_of_which_many_are_alike():
    """All of them come, each once, those that say the same after the first of them later."""
    index = index_of(*(entry(seq, f"the boat number {seq}") for seq in range(1_200)), engine="flat")
    found = answers(index, "which boat", k=10_000, explain=False)
    assert len({hit.id for hit in found}) == 1_200


@pytest.fixture(scope="module")
def minilm():
    return MiniLM()


OWN = {
    "What is the name of my sister's dog?": "Her dog is called Biscuit, my sister got him from a shelter",
    "Where did I park the car?": "The car is on level three of the garage by the station",
    "What am I allergic to?": "Peanuts make my throat swell, I am allergic to them",
    "When does my flight to Lisbon leave?": "We fly to Lisbon on Friday at seven in the morning",
    "What is the code of the front door?": "For the front door you need the code 4711",
}
OTHERS = [
    "I had a long day at the office and slept badly", "We painted the kitchen green last summer",
    "My brother plays the cello in an orchestra", "The museum was closed, so we had cake instead",
    "I want to learn how to bake bread", "Our neighbour has a very loud motorbike",
    "I read a book about the history of maps", "The doctor says that I should run more",
]  # fmt: skip


@pytest.mark.parametrize("source", ["tool", "user"])
@pytest.mark.parametrize("question", OWN)
def test_two_hundred_copies_do_not_hide_what_the_user_said(tmp_path, minilm, question, source):
    """Two hundred near-identical texts that repeat the question, by a tool or in the user's name: what the user said
    about it is among the first ten, with the real embedder."""
    with MemoryStore.open(tmp_path / "memories.db", keys=RawKey(bytes(32)), embedder=minilm) as store:
        user = store.user("alice")
        user.remember_many([Turn(text=text) for text in (*OWN.values(), *OTHERS)])
        assert OWN[question] in texts(user.recall(question))
        poison = [f"{question} See entry {number}." for number in range(200)]
        # Embedded once: the last bit of a vector is not what counts here.
        vectors = np.repeat(minilm.embed_documents(poison[:8]), 25, axis=0)
        user.remember_many([Turn(text=text, source=source) for text in poison], embeddings=vectors)
        assert OWN[question] in texts(user.recall(question))


# --- Languages ---


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("Meine Bücher liegen im Regal", "Wo ist das Buch?"),
        ("Nous avons visité l'école hier", "Quelles écoles avez-vous vues ?"),
        ("Compré dos bicicletas rojas", "¿Dónde está mi bicicleta?"),
        ("Ho comprato due biciclette nuove", "Dove è la mia bicicletta?"),
        ("Comprei três camisas azuis", "Onde está a minha camisa?"),
        ("Ik heb drie honden in huis", "Hoe heet mijn hond?"),
        ("Jag har två bilar i garaget", "Var är min bil?"),
        ("Я купил новые книги", "Где моя книга?"),
        ("Benim yeni kitaplarım çok güzel", "Kitap nerede?"),
        ("اشتريت الكتب الجديدة من هذا السوق", "أين هو السوق؟"),
        ("मेरे पास तीन किताबें हैं", "मेरी किताब कहाँ है?"),
        ("My boats are in the harbour", "Where is the boat?"),
        ("我昨天在北京吃了烤鸭", "烤鸭好吃吗？"),
        ("昨日は東京タワーに行きました", "東京タワーはどうでしたか"),
        ("저는 부산에서 태어났어요", "부산은 어디예요?"),
        ("ฉันชอบกินต้มยำกุ้งมาก", "ต้มยำกุ้งอร่อยไหม"),
    ],
)
def test_words_are_found_across_inflections_and_without_spaces(alice, said, question):
    """By their stems or characters alone, among turns in the same and in other languages."""
    others = [
        "Meine Schwester wohnt in Berlin",
        "Elle est à la maison",
        "Она живёт в Москве",
        "她住在上海",
        "彼は先生です",
    ]
    others += ["The weather is nice today", "वह दिल्ली में रहता है", "هذا البيت كبير", "오늘은 비가 와요", "วันนี้อากาศดี"]
    alice.remember_many([Turn(text=text) for text in (*others, said)])
    found = alice.recall(question, without={"vector"}, explain=True, min_score=0)
    assert found[0].text == said
    assert found[0].parts["lexical"] > 0
