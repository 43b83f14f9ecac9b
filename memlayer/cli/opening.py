"""From the options to an open store; and the questions that are asked at the terminal.

No secret is taken as an argument: other processes can read those, and shells keep them. Without a terminal nothing is
asked, and a variable of the environment stands in.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import typer

from memlayer.cli.options import DEFAULT_STORE
from memlayer.errors import InvalidInputError, KeyUnavailableError, StoreMissingError
from memlayer.sources import KeyFile, Passphrase, RecoveryKey
from memlayer.store import MemoryStore, open_without_embedder

if TYPE_CHECKING:
    from pathlib import Path

    from memlayer.sources import KeySource

__all__ = ["ask", "ask_secret", "at_terminal", "chosen_key", "confirm", "open_existing"]


def open_existing(
    path: Path,
    *,
    embedder: str | None = None,
    embeds: bool = True,
    passphrase: bool = False,
    key_file: Path | None = None,
    recovery_key: bool = False,
    accept_rollback: bool = False,
) -> MemoryStore:
    """The store at `path`, which must be there: a mistyped path is an error and not a new store.

    Args:
        path: the file.
        embedder: what the store is written with, as `MemoryStore.open` takes it.
        embeds: whether something will be embedded; if not, no embedder is needed, and `embedder` does not count.
        passphrase, key_file, recovery_key: as for `chosen_key`.
        accept_rollback: as for `MemoryStore.open`.

    Raises:
        StoreMissingError: nothing is there.
        MemlayerError: as `MemoryStore.open`.
    """
    # Before any question is asked.
    if not os.path.lexists(path):
        option = "" if path == DEFAULT_STORE else f" --store {shlex.quote(str(path))}"
        raise StoreMissingError(f"there is no store at {path}; make one with: memlayer init{option}", path=str(path))
    keys = chosen_key(passphrase=passphrase, key_file=key_file, recovery_key=recovery_key)
    if not embeds:
        return open_without_embedder(path, keys=keys, accept_rollback=accept_rollback)
    return MemoryStore.open(path, keys=keys, embedder=embedder, accept_rollback=accept_rollback)


def chosen_key(
    *, passphrase: bool = False, key_file: Path | None = None, recovery_key: bool = False, new: bool = False
) -> KeySource | None:
    """The key that the options name; None where they name none, and the environment or the default key file decides.

    Args:
        passphrase, key_file, recovery_key: the options, of which at most one may be used.
        new: a passphrase is being chosen, so it is asked for twice.
    """
    if sum((passphrase, key_file is not None, recovery_key)) > 1:
        raise InvalidInputError("use one of --passphrase, --key-file and --recovery-key")
    if passphrase:
        return Passphrase(ask_secret("Passphrase", variable="MEMLAYER_PASSPHRASE", twice=new))
    if recovery_key:
        # Shown as it is typed: nobody copies 56 characters from paper blind, and its checksum finds what was mistyped.
        return RecoveryKey(ask_secret("Recovery key", variable="MEMLAYER_RECOVERY_KEY", hide=False))
    return None if key_file is None else KeyFile(key_file)


def ask_secret(question: str, *, variable: str, twice: bool = False, hide: bool = True) -> str:
    """A secret: asked for at a terminal, else out of the environment.

    Raises:
        KeyUnavailableError: there is neither.
    """
    if at_terminal():
        answer: str = typer.prompt(question, hide_input=hide, confirmation_prompt=twice, err=True)
        return answer
    secret = os.environ.get(variable)
    if secret is None:
        raise KeyUnavailableError(f"without a terminal, the {question.lower()} must be in {variable}", name=variable)
    return secret


def confirm(question: str) -> bool:
    """Whether somebody at the terminal says yes.

    Raises:
        InvalidInputError: nobody is there who could.
    """
    _someone_there()
    return typer.confirm(question, err=True)


def ask(question: str) -> str:
    """What somebody at the terminal answers. Raises as `confirm` does."""
    _someone_there()
    answer: str = typer.prompt(question, default="", show_default=False, err=True)
    return answer


def at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def _someone_there() -> None:
    if not at_terminal():
        raise InvalidInputError("without a terminal nobody can be asked; pass --yes")
