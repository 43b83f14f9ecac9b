"""The command eval: how well recall finds what it should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memlayer.cli.options import Json
from memlayer.cli.output import console, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memlayer.evaluation import Comparison, EvaluationReport

__all__ = ["evaluate"]

_LONGEST_NAME = 24  # The table then fits a terminal of 80 characters.


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one conversation with its questions each.")],
    all_categories: Annotated[
        bool,
        typer.Option(
            "--all-categories",
            help="Ask category 5 too. In LoCoMo those questions are adversarial: nothing in the conversation answers "
            "them, so that by default they do not count.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure recall on a file of questions.

    Every conversation in the file is remembered as a user of its own, in a temporary encrypted store, and every
    question that has evidence is asked. recall@k is the share of the evidence among the first k turns that come back.
    Beside it stands exact cosine over the very same vectors.
    """
    from memlayer import evaluation
    from memlayer.evaluation_file import read_conversations

    conversations = read_conversations(path)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("turns and questions", total=None)
        report = evaluation.evaluate(
            conversations,
            skip_categories=() if all_categories else evaluation.UNANSWERABLE,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        _print_report(report)


def _print_report(report: EvaluationReport) -> None:
    metrics = [name.replace("recall", "R") for name in report.overall.recall]
    print_table(["", "asked", "by", *metrics], _rows(report), right=["asked", *metrics])
    say()
    left_out = f"{report.skipped} of category 5 and {report.without_evidence} without evidence were not asked"
    say(f"{report.turns} turns, {report.vectors} vectors; {report.overall.questions} questions asked, {left_out}.")
    times = report.times
    say(
        f"Turns: embedding {times.embed_s:.1f} s, remembering {times.remember_s:.2f} s, "
        f"reading back {times.open_s:.2f} s; loading the model {times.load_s:.1f} s."
    )
    say(
        f"A question: embedding {times.query_p50_ms:.1f} ms (p95 {times.query_p95_ms:.1f}), "
        f"recall of 50 {times.recall_p50_ms:.2f} ms (p95 {times.recall_p95_ms:.2f})."
    )


def _rows(report: EvaluationReport) -> Iterator[list[str]]:
    yield from _pair("all", report.overall)
    if len(report.by_category) > 1:
        for name, comparison in report.by_category.items():
            yield from _pair(f"category {name}", comparison)
    if len(report.by_conversation) > 1:
        for name, comparison in report.by_conversation.items():
            yield from _pair(name, comparison)


def _pair(name: str, comparison: Comparison) -> Iterator[list[str]]:
    yield [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
        str(comparison.questions),
        "recall",
        *(f"{value:.3f}" for value in comparison.recall.values()),
    ]
    yield ["", "", "cosine", *(f"{value:.3f}" for value in comparison.cosine.values())]
