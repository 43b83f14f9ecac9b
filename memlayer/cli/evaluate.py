"""The command eval: how well recall finds what it should."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memlayer.cli.options import Json
from memlayer.cli.output import console, print_json, print_table, say
from memlayer.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from memlayer.evaluation_report import Comparison, EvaluationReport
    from memlayer.ranking import Part

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
    embedder: Annotated[
        list[str] | None,
        typer.Option("--embedder", metavar="NAME", help="An embedder; repeat it to compare several in one run."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="PART", help="One more run without this part of the score; may be repeated."),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="One more run for each part of the score, with it switched off.")
    ] = False,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard",
            help="Every run again on the conversations joined, cut, renamed and without names: what helps on this file "
            "alone shows there.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots, as one HTML file.")
    ] = None,
    show_texts: Annotated[
        bool, typer.Option("--show-texts", help="Put the words of missed questions into the report and the JSON.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure recall on a file of questions.

    Every conversation in the file is remembered as a user of its own, in a temporary encrypted store, and every
    question that has evidence is asked. recall@k is the share of the evidence among the first k turns that come back.
    Beside it stands exact cosine over the very same vectors. Each conversation is also asked the questions of another
    one, which it should not answer. docs/evaluation.md says how to read the report.
    """
    from memlayer import evaluation
    from memlayer.evaluation_file import read_conversations
    from memlayer.evaluation_page import page
    from memlayer.guards import GUARDS

    conversations = read_conversations(path)
    if html is not None:
        _check_writable(html)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("turns and questions", total=None)
        reports = evaluation.compare(
            conversations,
            embedders=embedder or [os.environ.get("MEMLAYER_EMBEDDER") or None],
            settings=_settings(without or [], ablate=ablate),
            guards=GUARDS if guard else (),
            skip_categories=() if all_categories else evaluation.UNANSWERABLE,
            show_texts=show_texts,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if html is not None:
        try:
            html.write_text(page(reports), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{html} cannot be written: {error.strerror}", path=str(html)) from None
    main, *others = reports
    if json:
        compared = {"compared": [report.model_dump(mode="json") for report in others]} if others else {}
        print_json(main.model_dump(mode="json") | compared)
        return
    _print_report(main)
    if others:
        say()
        _print_comparison(reports)
    if html is not None:
        say(f"The report is in {html}")


def _settings(without: Sequence[str], *, ablate: bool) -> list[list[Part]]:
    """What is switched off in each run; nothing in the first one."""
    from memlayer.ranking import PARTS, checked_parts

    off = checked_parts(without)
    # There is no reranker in an evaluation.
    each: list[list[Part]] = [[part] for part in PARTS if ablate and part != "reranker"]
    given = [[], [part for part in PARTS if part in off], *each]
    return [own for number, own in enumerate(given) if own not in given[:number]]


def _check_writable(path: Path) -> None:
    """Before a run that may take minutes."""
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise StorageError(
            f"{path} cannot be written: it is a folder, or not in one that may be written", path=str(path)
        )


def _print_report(report: EvaluationReport) -> None:
    metrics = [name.replace("recall", "R") for name in report.overall.recall]
    print_table(["", "asked", "by", *metrics], _rows(report), right=["asked", *metrics])
    say()
    left_out = f"{report.skipped} of category 5 and {report.without_evidence} without evidence were not asked"
    say(f"{report.turns} turns, {report.vectors} vectors; {report.overall.questions} questions asked, {left_out}.")
    _print_abstention(report)
    times = report.times
    say(
        f"Turns: embedding {times.embed_s:.1f} s, remembering {times.remember_s:.2f} s, "
        f"reading back {times.open_s:.2f} s; loading the model {times.load_s:.1f} s."
    )
    say(
        f"A question: embedding {times.query_p50_ms:.1f} ms (p95 {times.query_p95_ms:.1f}), "
        f"recall of 50 {times.recall_p50_ms:.2f} ms (p95 {times.recall_p95_ms:.2f})."
    )


def _print_abstention(report: EvaluationReport) -> None:
    own, plain = report.abstention.recall, report.abstention.cosine
    if own.default is None:
        return
    say(f"At the default floor of {own.default.floor:.2f}: {own.default.lost:.1%} of the questions lose a right hit.")
    if own.default.silent is not None and plain.accepted.silent is not None:
        say(
            f"Of {own.foreign} foreign questions, {own.default.silent:.1%} get nothing there; "
            f"by plain cosine {plain.accepted.silent:.1%}, with a floor that costs {plain.accepted.lost:.1%}."
        )


def _print_comparison(reports: Sequence[EvaluationReport]) -> None:
    from memlayer.evaluation_report import run_names

    shown = {"recall@10": "R@10", "recall@50": "R@50", "mrr": "mrr"}
    headers = ["run", *shown.values(), "cosine R@10", "lost", "silent"]
    rows = []
    for name, report in zip(run_names(reports), reports, strict=True):
        floor = report.abstention.recall.default
        rows.append(
            [
                name,
                *(f"{report.overall.recall[name]:.3f}" for name in shown),
                f"{report.overall.cosine['recall@10']:.3f}",
                "" if floor is None else f"{floor.lost:.1%}",
                "" if floor is None or floor.silent is None else f"{floor.silent:.1%}",
            ]
        )
    print_table(headers, rows, right=headers[1:], wrapped=["run"], least=80)


def _rows(report: EvaluationReport) -> Iterator[list[str]]:
    yield from _pair("all", report.overall)
    groups: dict[str, Mapping[str, Comparison]] = {
        "category ": report.by_category,
        "": report.by_question_length,
        "said: ": report.by_evidence_age,
        "in ": report.by_language,
        "conversation ": report.by_conversation,
    }
    for kind, comparisons in groups.items():
        if len(comparisons) > 1:
            for name, comparison in comparisons.items():
                yield from _pair(f"{kind}{name}", comparison)


def _pair(name: str, comparison: Comparison) -> Iterator[list[str]]:
    yield [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
        str(comparison.questions),
        "recall",
        *(f"{value:.3f}" for value in comparison.recall.values()),
    ]
    yield ["", "", "cosine", *(f"{value:.3f}" for value in comparison.cosine.values())]
