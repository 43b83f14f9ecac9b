"""The metrics by hand-reckoned values, the reader by files that do and do not fit, the run by a counting embedder."""

from __future__ import annotations

import json
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from memlayer.errors import InvalidInputError, MemlayerError
from memlayer.evaluation import EvaluationReport, KeptEmbedder, evaluate
from memlayer.evaluation_file import Conversation, read_conversations
from memlayer.metrics import METRICS, hit_at, ndcg_at, recall_at, reciprocal_rank, scores
from memlayer.ranking import PARTS
from memlayer.testing import HashingEmbedder

DATA = Path(__file__).parent / "data" / "conversations.jsonl"


# --- The metrics ---

FOUND = ["a", "x", "b", "y", "z"]


def test_recall_is_the_share_of_the_evidence():
    """Of three turns of evidence, one is among the first two found and two among the first three."""
    assert recall_at(FOUND, {"a", "b", "c"}, k=2) == pytest.approx(1 / 3)
    assert recall_at(FOUND, {"a", "b", "c"}, k=3) == pytest.approx(2 / 3)
    assert recall_at([], {"a"}, k=5) == 0


def test_a_hit_is_any_evidence():
    """hit@k is 1 as soon as one turn of evidence is among the first k, else 0."""
    assert (hit_at(FOUND, {"b", "c"}, k=2), hit_at(FOUND, {"b", "c"}, k=3)) == (0, 1)


def test_the_reciprocal_rank_is_that_of_the_first_evidence():
    """The first evidence at place 3 gives 1/3; none found gives 0."""
    assert reciprocal_rank(FOUND, {"b", "z"}) == pytest.approx(1 / 3)
    assert reciprocal_rank(FOUND, {"c"}) == 0


def test_ndcg_is_a_share_of_the_best_order():
    """Evidence at places 1 and 3 gains 1 + 1/2 of the 1 + 1/log2(3) that places 1 and 2 would."""
    assert ndcg_at(FOUND, {"a", "b"}, k=10) == pytest.approx(1.5 / (1 + 1 / math.log2(3)))
    assert ndcg_at(["a", "b"], {"a", "b"}, k=10) == pytest.approx(1)
    assert ndcg_at(FOUND, {"a", "b"}, k=2) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_more_evidence_than_places_can_still_be_perfect():
    """nDCG@10 is 1 when all ten places hold evidence, however much more there is."""
    many = [str(number) for number in range(20)]
    assert ndcg_at(many, set(many), k=10) == pytest.approx(1)


def test_all_metrics_come_by_name():
    """`scores` gives each of `METRICS` once, and refuses a question without evidence."""
    given = scores(FOUND, {"x"})
    assert tuple(given) == METRICS
    assert (given["recall@5"], given["hit@10"], given["mrr"]) == (1, 1, 1 / 2)
    assert given["ndcg@10"] == pytest.approx(1 / math.log2(3))
    with pytest.raises(InvalidInputError):
        scores(FOUND, set())


# --- The file ---


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return read_conversations(DATA)


def test_turns_are_read_as_they_are_remembered(conversations):
    """A turn is "speaker: text" with its caption in brackets, under its own id, in its session."""
    ann, xiaoming = conversations
    assert ann.turns[1].text == "Bo: Look what I baked! [a photo of a plum cake on a blue plate]"
    assert (ann.turns[1].id, ann.turns[1].session, ann.turns[1].speaker) == ("a2", "1", "Bo")
    assert [turn.text for turn in xiaoming.turns] == ["user: 我对花生过敏。", "我的狗叫小黑。"]
    assert xiaoming.turns[1].session is None


def test_times_are_read_in_both_forms(conversations):
    """LoCoMo's spelled-out times, ISO dates and ISO times with a zone become UTC; null stays none."""
    ann = conversations[0]
    assert [ann.turns[number].at for number in (0, 3, 4, 6)] == [
        datetime(2023, 5, 8, 13, 56, tzinfo=UTC),
        datetime(2023, 6, 1, tzinfo=UTC),
        datetime(2023, 6, 1, 7, 30, tzinfo=UTC),
        None,
    ]


def test_categories_are_text(conversations):
    """A number or a word or nothing: a category is compared as text."""
    assert [question.category for question in conversations[0].questions] == ["4", "4", "1", "1", "2", "5", "3"]
    assert conversations[1].questions[0].category == "food"


GOOD = {
    "id": "c",
    "turns": [{"id": "t1", "text": "hello"}],
    "questions": [{"id": "q", "question": "hi?", "evidence": ["t1"]}],
}


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    """Only lines with something in them are conversations, and the least of a conversation is enough."""
    file = tmp_path / "file.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n")
    [conversation] = read_conversations(file)
    assert (conversation.turns[0].text, conversation.questions[0].category) == ("hello", "")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{not json", "no JSON"),
        (b"[]", "the line"),
        (b'"secret words"', "the line"),
        (b'{"id": "c"}', "turns"),
        (json.dumps(GOOD | {"id": 7}).encode(), "id"),
        (json.dumps(GOOD | {"id": ""}).encode(), "id is empty"),
        (json.dumps(GOOD | {"turns": []}).encode(), "turns"),
        (json.dumps(GOOD | {"turns": [{"id": "t1"}]}).encode(), "turns.0.text"),
        (json.dumps(GOOD | {"turns": [{"id": "t1", "text": "a"}, {"id": "t1", "text": "b"}]}).encode(), "two turns"),
        (json.dumps(GOOD | {"turns": [{"id": "t1", "text": "  "}]}).encode(), "text is empty"),
        (json.dumps(GOOD | {"turns": [{"id": "t1", "text": "secret words", "time": "soon"}]}).encode(), "a time"),
        (json.dumps(GOOD | {"questions": [{"id": "q", "question": "?", "evidence": ["t9"]}]}).encode(), "no turn"),
        (json.dumps(GOOD | {"questions": [{"id": "q", "question": "", "evidence": []}]}).encode(), "text is empty"),
        (b'{"id": "\xff\xfe"}', "no JSON"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, line, told):
    """The error names the file, the line and what is wrong with it, and repeats no text."""
    file = tmp_path / "file.jsonl"
    file.write_bytes(json.dumps(GOOD | {"id": "first"}).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(InvalidInputError) as caught:
        read_conversations(file)
    assert caught.value.evidence["line"] == 3
    assert "file.jsonl, line 3: " in str(caught.value)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_typed_error(tmp_path):
    """A missing file, a folder, an empty file, a name with NUL, and one conversation twice are InvalidInputError."""
    empty, twice = tmp_path / "empty.jsonl", tmp_path / "twice.jsonl"
    empty.write_text("\n")
    twice.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    for path in (tmp_path / "nothing", tmp_path, empty, "a\0b", twice):
        with pytest.raises(InvalidInputError):
            read_conversations(path)


# --- The run ---


@pytest.fixture(scope="module")
def counted() -> HashingEmbedder:
    return HashingEmbedder(256, window=60)


@pytest.fixture(scope="module")
def steps() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def report(conversations, counted, steps) -> EvaluationReport:
    return evaluate(conversations, embedder=counted, progress=lambda done, total: steps.append((done, total)))


@pytest.fixture(scope="module")
def plain(conversations) -> EvaluationReport:
    return evaluate(conversations, embedder=HashingEmbedder(256, window=60), without=set(PARTS) - {"vector"})


def test_recall_finds_what_exact_cosine_finds(plain):
    """With every part but the vectors switched off recall and exact cosine agree on every metric: overall, in each
    category and in each conversation."""
    report = plain
    groups = [report.overall, *report.by_category.values(), *report.by_conversation.values()]
    assert len(groups) == 1 + 4 + 2
    for group in groups:
        assert group.recall == group.cosine
    assert report.overall.recall["recall@50"] == 1
    assert report.overall.recall["mrr"] > 0.5


def test_only_questions_that_can_be_answered_count(report):
    """Category 5 and questions without evidence are left out, and counted as such."""
    assert (report.overall.questions, report.skipped, report.without_evidence) == (6, 1, 1)
    assert {name: group.questions for name, group in report.by_category.items()} == {"1": 2, "2": 1, "4": 2, "food": 1}
    assert list(report.by_conversation) == ["ann", "小明"]


def test_category_5_counts_when_asked_for(conversations):
    """With `skip_categories=()` the adversarial question is asked too."""
    report = evaluate(conversations, embedder=HashingEmbedder(), skip_categories=())
    assert (report.overall.questions, report.skipped) == (7, 0)


def test_nothing_is_embedded_twice(report, counted):
    """Every part of every turn is embedded once, though it serves recall and cosine alike; and every question, but for
    those that name a speaker: recall asks them in the speaker's words. Foreign questions are questions again."""
    assert report.turns == 9
    assert report.vectors > report.turns
    documents = counted.texts - counted.query_calls
    assert documents == report.embedded == report.vectors
    assert counted.query_calls == report.overall.questions + 1 + 2  # one to load the model


def test_a_long_turn_is_found_by_its_best_part(report):
    """The one question about a turn of several parts has it first, in recall and in the baseline."""
    assert report.by_category["2"].recall["mrr"] == report.by_category["2"].cosine["mrr"] == 1


def test_progress_runs_to_its_end(report, steps):
    """Progress rises to the number of turns, questions and foreign questions."""
    assert steps[-1] == (21, 21)
    assert steps == sorted(steps)


def test_the_times_are_there(report):
    """Each time was taken, and the 95th percentile is not below the median."""
    assert all(value >= 0 for value in report.times.model_dump().values())
    assert report.times.recall_p95_ms >= report.times.recall_p50_ms > 0


def test_an_evaluation_leaves_nothing_behind(conversations, home, tmp_path, monkeypatch):
    """Neither a temporary file nor a note of the rollback guard stays, also when it is interrupted."""

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    evaluate(conversations, embedder=HashingEmbedder())
    with pytest.raises(KeyboardInterrupt):
        evaluate(conversations, embedder=HashingEmbedder(), progress=interrupted)
    assert list(tmp_path.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_an_evaluation_needs_questions():
    """Where no question counts there is nothing to measure, and that is said before anything is embedded."""
    [conversation] = [each for each in read_conversations(DATA) if each.id == "小明"]
    embedder = HashingEmbedder()
    with pytest.raises(MemlayerError, match="none of the questions"):
        evaluate([conversation], embedder=embedder, skip_categories={"food"})
    assert embedder.texts == 0


def test_the_kept_vectors_are_those_of_the_embedder():
    """A `KeptEmbedder` gives the embedder's own vectors in the order asked for, and asks it once for each text."""
    inner, outer = HashingEmbedder(), HashingEmbedder()
    kept = KeptEmbedder(inner)
    for texts in (["a", "b", "a"], ["b", "c"]):
        assert np.array_equal(kept.embed_documents(texts), outer.embed_documents(texts))
    assert inner.texts == 3
    assert sorted(kept.vectors) == ["a", "b", "c"]
    assert np.array_equal(kept.embed_query("a"), outer.embed_query("a"))
    assert kept.identity == outer.identity
