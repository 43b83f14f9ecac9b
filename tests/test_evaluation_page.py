"""The comparison of runs, and the page that shows it: what it holds, what it never loads, and whose words it shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from memlayer.cli.app import app
from memlayer.evaluation import compare
from memlayer.evaluation_file import read_conversations
from memlayer.evaluation_page import page
from memlayer.guards import GUARDS
from memlayer.plots import Line, bars, lines
from memlayer.ranking import PARTS
from memlayer.testing import HashingEmbedder
from tests.tiny_models import sentence_transformer

if TYPE_CHECKING:
    from memlayer.evaluation_report import EvaluationReport

DATA = Path(__file__).parent / "data" / "conversations.jsonl"
VOID = {"meta", "br"}


class Read(HTMLParser):
    """A page as a tree of what was opened and closed; anything left open or closed twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(self.data)


@pytest.fixture(scope="module")
def reports() -> list[EvaluationReport]:
    """Two embedders, two settings and every guard."""
    return compare(
        read_conversations(DATA),
        embedders=[HashingEmbedder(256, window=60), HashingEmbedder(8)],
        settings=[(), ("lexical", "vector")],
        guards=GUARDS,
    )


# --- The runs ---


def test_every_embedder_setting_and_guard_is_a_run(reports):
    """All combinations are there, the file as it is first, and each has plain cosine beside it."""
    assert [(each.guard, each.dimensions, each.without) for each in reports] == [
        (guard, dimensions, without)
        for guard in (None, *GUARDS)
        for dimensions in (256, 8)
        for without in ([], ["vector", "lexical"])
    ]
    assert all(each.overall.questions == 6 for each in reports)
    # What is switched off changes recall and never cosine.
    assert reports[0].overall.recall != reports[1].overall.recall
    assert reports[0].overall.cosine == reports[1].overall.cosine
    assert reports[0].overall.cosine != reports[2].overall.cosine


def test_settings_share_what_was_embedded():
    """A second setting embeds nothing, turns or questions, that the first one has."""
    one, two = HashingEmbedder(), HashingEmbedder()
    compare(read_conversations(DATA), embedders=[one])
    compare(read_conversations(DATA), embedders=[two], settings=[set(), {"length"}, {"context"}])
    assert one.texts == two.texts


def test_every_slice_adds_up(reports):
    """Each way of parting the questions has all of them."""
    for report in reports:
        for parted in ("category", "conversation", "question_length", "evidence_age", "language"):
            groups = getattr(report, f"by_{parted}")
            assert sum(group.questions for group in groups.values()) == 6
    first = reports[0]
    assert {name: group.questions for name, group in first.by_language.items()} == {"chinese": 1, "english": 5}
    assert {name: group.questions for name, group in first.by_evidence_age.items()} == {
        "the last day": 1,
        "the last month": 3,
        "unknown": 2,
    }


def test_a_sentence_counts_as_its_turn(reports):
    """Where turns are cut, finding a sentence is finding its turn: a question about the turn of 26 sentences has it."""
    [cut] = [each for each in reports if each.guard == "cut" and each.dimensions == 256 and not each.without]
    assert cut.turns > reports[0].turns + 20
    assert cut.by_category["2"].recall["hit@10"] == 1


def test_foreign_questions_are_asked(reports):
    """Each conversation is asked the other's questions that count; floors are looked at from 0 to 1, and the higher,
    the more is lost and the more foreign questions get nothing."""
    curve = reports[0].abstention.recall.curve
    assert sum(each.hits for each in reports[0].calibration.answered) == 12
    assert reports[0].abstention.recall.foreign == 6
    assert (curve[0].lost, curve[0].silent) == (0, 0)
    assert [each.lost for each in curve] == sorted(each.lost for each in curve)
    assert [each.silent for each in curve] == sorted(each.silent for each in curve)
    [alone] = compare(read_conversations(DATA)[:1], embedders=[HashingEmbedder()])
    assert (alone.abstention.recall.foreign, alone.abstention.recall.curve[50].silent) == (0, None)


def test_missed_questions_have_no_words_unless_asked():
    """What was missed is named by ids; the words of question, evidence and hits come only when they are asked for."""
    options: dict[str, Any] = {"embedders": [HashingEmbedder(8)], "settings": [("vector", "lexical", "context")]}
    [quiet] = compare(read_conversations(DATA), **options)
    assert "cello" not in quiet.model_dump_json()
    [told] = compare(read_conversations(DATA), **options, show_texts=True)
    assert [(each.conversation, each.question) for each in told.missed] == [
        (each.conversation, each.question) for each in quiet.missed
    ]


# --- The page ---


def test_the_page_is_whole_and_loads_nothing(reports):
    """Well-formed, with no script, no link, no picture and no address in it; its own policy forbids them."""
    text = page(reports)
    read = Read(text)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & {tag for tag, _ in read.tags}
    assert not any(set(attributes) & {"src", "href", "style", "onload", "xlink:href"} for _, attributes in read.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    [policy] = [attributes["content"] for _, attributes in read.tags if attributes.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in text


def test_every_plot_has_a_name_and_a_table_beside_it(reports):
    """Each SVG says what it shows, and stands next to a table whose rows have headers."""
    text = page(reports)
    read = Read(text)
    names = [attributes.get("aria-label") for tag, attributes in read.tags if tag == "svg"]
    assert len(names) == read.count("figure") == text.count('</svg></figure><div class="scroll"') > 9
    assert all(names)
    assert read.count("caption") == read.count("table") > len(names)
    assert read.count("th") > 100


def test_the_page_shows_every_number_of_the_comparison(reports):
    """Every run is a row, and the guards stand across."""
    text = Read(page(reports)).text
    for report in reports:
        assert f"hashing ({report.dimensions}), {report.setting}" in text
        assert f"{report.overall.recall['recall@10']:.3f}" in text
    assert "Guards against over-fitting" in text
    assert "the last month" in text


def test_one_run_has_no_comparison():
    """A single run shows no other; without foreign questions the page says why."""
    text = Read(page(compare(read_conversations(DATA)[:1], embedders=[HashingEmbedder()]))).text
    assert "Runs side by side" not in text
    assert "there are no foreign questions" in text


def test_the_page_shows_words_only_where_the_reports_have_them(tmp_path):
    """No word of a turn or a question is in the page by default; with texts they are, as text and not as markup."""
    hostile = '<img src=x onerror=alert(1)> & "quoted" secret'
    turns = [{"id": f"t{number}", "text": f"note number {number}", "speaker": "Bo"} for number in range(30)]
    turns.append({"id": "hidden", "text": hostile, "speaker": "Ann"})
    question = {"id": "<b>q", "question": "note number <i>?", "evidence": ["hidden"], "category": "<u>"}
    file = tmp_path / "file.jsonl"
    file.write_text(json.dumps({"id": "<script>", "turns": turns, "questions": [question]}))
    options: dict[str, Any] = {"embedders": [HashingEmbedder()]}
    quiet = page(compare(read_conversations(file), **options))
    assert "secret" not in quiet
    assert "note number" not in quiet
    told = Read(page(compare(read_conversations(file), **options, show_texts=True)))
    assert hostile in told.text
    assert not {"u", "script", "img"} & {tag for tag, _ in told.tags}


def test_plots_keep_within_their_frame():
    """Values beyond 0 and 1 are drawn at the edge, lines end where the axis does, and long labels are shortened."""
    drawn = bars("t", [("a" * 100, (-1, 2))], series=("x", "y"))
    assert [
        float(width)
        for width in re.findall(r'<rect class="bar[01]" x="190" y="[\d.]+" width="([\d.]+)" height="11"', drawn)
    ] == [
        0,
        322,
    ]
    assert "a" * 30 not in drawn
    shown = lines("t", [Line("l", [(0, 0), (0.1, 0.5), (0.9, 1)], 0)], x_name="x", y_name="y", x_most=0.3)
    [path] = re.findall(r'<path class="line0" d="M([^"h]+)"', shown)
    assert len(path.split("L")) == 2


# --- The command ---


def test_the_command_compares_and_writes(tmp_path):
    """The real model and a tiny one, a part switched off: a table of all four runs, one HTML file, and in JSON the
    first run with the others under "compared"."""
    html, tiny = tmp_path / "report.html", sentence_transformer(tmp_path / "tiny", "bert")
    arguments = ["eval", str(DATA), "--embedder", "all-MiniLM-L6-v2", "--embedder", str(tiny), "--without", "time"]
    done = CliRunner().invoke(app, [*arguments, "--html", str(html), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    runs = [told, *told["compared"]]
    assert [each["without"] for each in runs] == [[], ["time"], [], ["time"]]
    assert runs[0]["embedder"] == runs[1]["embedder"] != runs[2]["embedder"]
    assert runs[0]["abstention"]["recall"]["default"]["floor"] > 0
    text = html.read_text(encoding="utf-8")
    assert Read(text).count("svg") > 9
    assert "all-MiniLM-L6-v2 (384), without time" in text
    assert "cello" not in text


def test_ablate_switches_each_part_off(tmp_path):
    """--ablate gives one run for each part that an evaluation has, beside the one with all, and the table names
    each."""
    tiny, html = sentence_transformer(tmp_path / "tiny", "bert"), tmp_path / "report.html"
    done = CliRunner().invoke(app, ["eval", str(DATA), "--embedder", str(tiny), "--ablate", "--html", str(html)])
    rows = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("without ")]
    assert rows == [["without", part] for part in PARTS if part != "reranker"]
    assert done.stdout.splitlines()[-1] == f"The report is in {html}"


@pytest.mark.parametrize("arguments", [["--without", "nothing"], ["--html", "."], ["--html", "no/such/folder/x.html"]])
def test_what_cannot_be_is_told_before_the_run(arguments):
    """A part that is none and a report that cannot be written are one line, at once."""
    done = CliRunner().invoke(app, ["eval", str(DATA), *arguments])
    assert done.exit_code in (2, 5)
    assert done.stderr.startswith("memlayer: ")
    assert done.stderr.count("\n") == 1
