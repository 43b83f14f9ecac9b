"""The command distil: has a model write facts from a user's turns."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memlayer.cli.opening import open_existing
from memlayer.cli.options import (
    DEFAULT_STORE,
    EmbedderName,
    Json,
    KeyFilePath,
    PassphraseAsked,
    RecoveryKeyAsked,
    Store,
    User,
)
from memlayer.cli.output import console, print_json, print_table, say, time
from memlayer.distiller import Distiller

__all__ = ["distil"]


def distil(
    user: User,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Who writes them, as <provider>/<model> of LiteLLM.")
    ],
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", metavar="URL", help="Where the provider is; else its public address.")
    ] = None,
    calls: Annotated[
        int | None, typer.Option("--calls", metavar="N", help="Ask the model at most so often; the rest stays due.")
    ] = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Have a model write short facts from what was said.

    The texts that no model has read yet go to MODEL's provider, in clear. The turns stay as they are; each fact is one
    more memory, linked with the turns that it is from and forgotten with them. When this is interrupted, the same
    command goes on where it was. The provider's key is taken from the environment, as LiteLLM takes it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        memory = opened.user(user)
        distiller = Distiller(memory, model=model, api_base=api_base)
        before = {fact.id for fact in memory.facts()}
        if due := distiller.due:
            say(f"The texts of up to {due} turns go to {model}, in clear.", stderr=True)
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
            task = progress.add_task("turns", total=None)
            report = distiller.run(
                calls=calls, progress=lambda done, total: progress.update(task, completed=done, total=total)
            )
        new = [fact for fact in memory.facts() if fact.id not in before]
    if json:
        print_json({**report.model_dump(mode="json"), "new": [fact.model_dump(mode="json") for fact in new]})
        return
    if new:
        rows = [[time(fact.at), str(len(fact.sources)), fact.text] for fact in new]
        print_table(["time (UTC)", "sources", "fact"], rows, right=["sources"], wrapped=["fact"], least=60)
    say(f"Turns read: {report.turns}, requests: {report.calls}")
    say(f"New facts: {report.facts}, older ones superseded by them: {report.superseded}")
    if report.due:
        say(f"Turns still due: {report.due}, of which {report.unusable} got no usable answer")
