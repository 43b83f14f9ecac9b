"""The command reembed: another embedder for a store."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memlayer.cli.opening import chosen_key
from memlayer.cli.options import DEFAULT_STORE, Json, KeyFilePath, PassphraseAsked, RecoveryKeyAsked, Store
from memlayer.cli.output import console, print_json, say
from memlayer.embedders.resolve import resolve
from memlayer.errors import StoreMissingError
from memlayer.store import open_to_reembed

__all__ = ["reembed"]


def reembed(
    embedder: Annotated[
        str, typer.Argument(metavar="EMBEDDER", help="The new embedder, by a name that MemoryStore.open takes.")
    ],
    store: Store = DEFAULT_STORE,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Change a store's embedder: embed every text anew.

    The store can be read meanwhile. When this is interrupted, the same command goes on where it was. The old embedder
    is not needed. Afterwards the store opens with the new one only: --embedder, or MEMLAYER_EMBEDDER.
    """
    if not os.path.lexists(store):
        raise StoreMissingError(f"there is no store at {store}; name it with --store PATH", path=str(store))
    new = resolve(embedder)
    keys = chosen_key(passphrase=passphrase, key_file=key_file, recovery_key=recovery_key)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = console(stderr=True)
    with open_to_reembed(store, keys=keys, embedder=new) as opened:
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
            task = progress.add_task("memories", total=None)
            report = opened.reembed(
                new, progress=lambda done, total: progress.update(task, completed=done, total=total)
            )
        identity = opened.embedder
    if json:
        print_json({"embedder": identity.model_dump(), **report.model_dump(mode="json")})
        return
    say(f"Moved {report.memories} memories of {report.users} users; {report.embedded} texts were embedded.")
    say(f"The store's embedder is {identity.model}, {identity.dimensions} dimensions.")
    if identity != resolve(None).identity:
        say(f"From now on name it to the other commands: --embedder {shlex.quote(embedder)}, or MEMLAYER_EMBEDDER.")
