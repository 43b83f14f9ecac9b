"""One user's memories as a sealed file: export and import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from memlayer.cli.opening import ask_secret, open_existing
from memlayer.cli.options import (
    DEFAULT_STORE,
    EmbedderName,
    EmbedderUnused,
    Json,
    KeyFilePath,
    PassphraseAsked,
    RecoveryKeyAsked,
    Store,
    User,
)
from memlayer.cli.output import print_json, say

__all__ = ["export", "import_"]

_VARIABLE = "MEMLAYER_EXPORT_PASSPHRASE"


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Write a user's memories to a sealed file.

    The file has a passphrase of its own, which is asked for, or MEMLAYER_EXPORT_PASSPHRASE where that is set.
    """
    with open_existing(
        store, embeds=False, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        exported = opened.user(user).export(path, passphrase=_export_passphrase(twice=True))
    if json:
        print_json({"exported": exported, "file": os.path.abspath(path)})
    else:
        say(f"Exported {exported} memories to {path}")


def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote.")],
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Add what an export holds to a user.

    All or nothing; what is there already is kept. The export's passphrase is asked for, or it is
    MEMLAYER_EXPORT_PASSPHRASE where that is set.
    """
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        report = opened.user(user).import_(path, passphrase=_export_passphrase(twice=False))
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        say(f"Added {report.added} memories; {report.kept} were there already.")


def _export_passphrase(*, twice: bool) -> str:
    given = os.environ.get(_VARIABLE)
    return given if given is not None else ask_secret("Passphrase of the export", variable=_VARIABLE, twice=twice)
