"""The command distil-embedder: static vectors out of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memlayer.cli.options import Json
from memlayer.cli.output import console, print_json, say
from memlayer.embedders import distilling

__all__ = ["distil_embedder"]


def distil_embedder(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The new folder for the vectors.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FOLDER", help="A sentence-transformers model on this machine; else all-MiniLM-L6-v2."
        ),
    ] = None,
    dimensions: Annotated[
        int, typer.Option("--dimensions", min=1, help="Of a vector; fewer are smaller and find less.")
    ] = distilling.DIMENSIONS,
    json: Json = False,
) -> None:
    """Make static vectors from a model.

    They embed a text in a tenth of a millisecond, without torch, and find less than the model itself where word order
    matters. A store that was written with the model cannot be searched with them. In Python: StaticEmbedder(FOLDER).
    """
    from memlayer.embedders.static import StaticEmbedder
    from memlayer.newfile import named

    folder = named(out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("word pieces", total=None)
        distilling.distil(
            folder,
            model=None if model is None else named(model),
            dimensions=dimensions,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    embedder = StaticEmbedder(folder)
    embedder.load()
    size = sum((folder / name).stat().st_size for name in distilling.FILES)
    if json:
        print_json({"folder": str(folder), "bytes": size, "embedder": embedder.identity.model_dump()})
        return
    say(f"Made {folder}, {size:,} bytes, {embedder.identity.dimensions} dimensions")
