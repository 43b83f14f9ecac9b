"""The command calibrate: what the scores of an embedder mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memlayer.cli.options import EmbedderName, Json
from memlayer.cli.output import console, print_json, say

__all__ = ["calibrate"]


def calibrate(
    embedder: EmbedderName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the numbers there; else where recalls look for them."),
    ] = None,
    json: Json = False,
) -> None:
    """Find out what the scores of an embedder mean.

    The embedder is tried on chats that memlayer brings along, with questions that these answer and questions that they
    do not. The result says what makes a score of a value and below which score a recall returns nothing. It is kept in
    your configuration folder, for every store with this embedder; a process that runs already takes it after a
    restart. The embedders that memlayer brings along have their numbers.
    """
    from memlayer.calibrating import calibrate as find
    from memlayer.calibration import calibration_path, write_calibration
    from memlayer.embedders.resolve import resolve
    from memlayer.newfile import named

    chosen = resolve(embedder)
    path = calibration_path(chosen.identity) if out is None else named(out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("texts and questions", total=None)
        figures = find(chosen, progress=lambda done, total: progress.update(task, completed=done, total=total))
    write_calibration(figures.calibration, identity=chosen.identity, path=path)
    numbers = figures.calibration
    if json:
        print_json({
            "file": str(path),
            "embedder": chosen.identity.model_dump(),
            "calibration": numbers.model_dump(),
            "evidence": figures.evidence,
            "other": figures.other,
            "questions": figures.questions,
            "lost": figures.lost,
            "foreign": figures.foreign,
            "silent": figures.silent,
        })  # fmt: skip
        return
    say(f"Wrote {path}")
    say(f"Cosines: {figures.evidence:.3f} with what answers a question, {figures.other:.3f} with other texts.")
    say(
        f"At the floor, a score of {numbers.floor:.3f}: of {figures.foreign} questions without an answer "
        f"{figures.silent:.0%} get nothing, of {figures.questions} with one {figures.lost:.0%} lose a correct turn."
    )
