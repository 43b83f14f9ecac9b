"""What the commands print. Results go to stdout; errors, warnings, prompts and progress to stderr.

A memory is somebody's words, and a terminal obeys some of them: control characters move the cursor, set the window's
title or the clipboard, and bidirectional marks show text in another order than it has. `shown` escapes all of that, and
every text passes it; nothing is ever printed as rich's markup. With `--json` everything beyond ASCII is escaped, which
keeps it exact and leaves nothing for a terminal to act on.
"""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memlayer.errors import (
    ConflictError,
    DistilError,
    EmbedderError,
    EmbedderMismatchError,
    ExportDamagedError,
    FormatTooNewError,
    InvalidInputError,
    KeyUnavailableError,
    MemlayerError,
    MissingExtraError,
    NotAStoreError,
    NotFoundError,
    RecallTimeoutError,
    RollbackDetectedError,
    StorageError,
    StoreDamagedError,
    StoreMissingError,
    WrongKeyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

__all__ = [
    "EXIT_CODES",
    "Warnings",
    "console",
    "exit_code",
    "print_error",
    "print_json",
    "print_table",
    "say",
    "shown",
    "time",
    "told",
]

EXIT_CODES: tuple[tuple[int, tuple[type[MemlayerError], ...], str], ...] = (
    (2, (InvalidInputError,), "wrong usage or input"),
    (3, (KeyUnavailableError, WrongKeyError), "no key, or the wrong one"),
    (
        4,
        (StoreDamagedError, NotAStoreError, FormatTooNewError, ExportDamagedError),
        "the file is damaged, older than it was, or not memlayer's",
    ),
    (7, (NotFoundError, StoreMissingError), "there is no such store, memory or folder"),
    (5, (StorageError, RecallTimeoutError), "the store is busy, full or read-only, or takes too long"),
    (6, (EmbedderError, DistilError, MissingExtraError), "a model failed, is another one, or an extra is missing"),
    (8, (ConflictError,), "the id is taken by other content"),
)
"""Exit codes by kind of error; the first that fits counts. Beside them: 0 done (which includes that nothing was found),
1 not done (a question was answered with no, a proof of the demo failed, or something unforeseen), 130 interrupted."""

# What an error's message advises in Python, and how the command line says it.
_HINTS: tuple[tuple[type[MemlayerError], str, str], ...] = (
    (StoreMissingError, "accept_rollback=True", "memlayer init --accept-rollback"),
    (RollbackDetectedError, "accept_rollback=True", "memlayer verify --accept-rollback"),
    (WrongKeyError, "keys=", "--passphrase, --key-file or --recovery-key"),
    (KeyUnavailableError, "keys=", "--passphrase, --key-file or --recovery-key"),
    (EmbedderMismatchError, "Open it with", "--embedder NAME or MEMLAYER_EMBEDDER"),
    (ConflictError, "replace=True", "--replace"),
)

# Without a terminal there is no width; this one leaves a text room beside its date and score.
_WIDTH = 120

# Of the invisible characters these two only join or part letters, and emoji and Persian need them.
_JOINERS = "\u200c\u200d"
_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def shown(text: str) -> str:
    """The text on one line, with every character that could act on a terminal written as an escape."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ACTING and character not in _JOINERS
        else character
        for character in text
    )


def time(at: datetime) -> str:
    """A time in UTC, to the minute."""
    return f"{at:%Y-%m-%d %H:%M}"


def console(*, stderr: bool = False) -> Console:
    """A console on what stdout or stderr is now."""
    found = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not found.is_terminal:
        found.width = _WIDTH
    return found


def say(line: str = "", *, stderr: bool = False) -> None:
    """One line, escaped, never wrapped: what stands in it may be copied."""
    console(stderr=stderr).print(Text(shown(line)), soft_wrap=True)


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    wrapped: Sequence[str] = (),
    least: int = 0,
) -> None:
    """A table.

    Args:
        headers: of the columns.
        rows: cells, escaped here.
        right: the headers of the columns that are set to the right.
        wrapped: the headers of the columns that give way where there is no room; the others are never cut.
        least: how many characters a line has room for, however narrow the terminal; it then breaks the lines itself.
    """
    # Many columns stand closer together.
    table = Table(box=None, pad_edge=False, collapse_padding=len(headers) > 6, header_style="bold")
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in right else "left"
        table.add_column(header, justify=justify, no_wrap=header not in wrapped, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    out = console()
    out.width = max(out.width, least)
    out.print(table)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(_json(value))


def exit_code(error: MemlayerError) -> int:
    """The process's exit code for an error."""
    return next((code for code, kinds, _ in EXIT_CODES if isinstance(error, kinds)), 1)


def print_error(message: str, *, code: str, as_json: bool) -> None:
    """One line on stderr."""
    if as_json:
        print(_json({"error": code, "message": message}), file=sys.stderr)
    else:
        say(f"memlayer: {message}", stderr=True)


def told(error: MemlayerError) -> str:
    """An error's message, with what it advises in Python said in options."""
    message = str(error)
    hints = (option for kind, advice, option in _HINTS if isinstance(error, kind) and advice in message)
    return "".join([message, *(f" (here: {option})" for option in hints)])


class Warnings(logging.Handler):
    """The library's warnings, one line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"memlayer: {record.levelname.lower()}: {record.getMessage()}", stderr=True)


def _json(value: Any) -> str:
    # ASCII alone, and DEL, which JSON does not escape, as an escape too.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
