"""The `memlayer` command.

    app.py         the commands by name, and what an error becomes: one line and an exit code
    options.py     the options that commands share, and how times and JSON are read
    opening.py     from `--store` and the key options to an open store; prompts
    output.py      what is printed: tables, JSON, and texts that cannot act on the terminal
    stores.py      init, info, verify
    memories.py    remember, recall, history, forget, erase
    exports.py     export, import
    evaluate.py    eval
    chat.py        chat
    mcp.py         mcp; tokens.py is who may use it over HTTP
    demo.py        demo; script.py is what is said in it, scan.py the proof that nothing of it can be read
    child.py       the processes that the demo starts

It needs the extra `cli`. Importing this package does not; `main` says what to install where it is missing.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["main"]

_INTERRUPTED = 130
_MISSING_EXTRA = 6  # as for every missing extra; see `memlayer.cli.output`


def main() -> None:
    """Runs the command that the process was started with, and exits."""
    try:
        _run()
    except KeyboardInterrupt:  # While the libraries were being loaded; afterwards the app says so itself.
        print("memlayer: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _run() -> None:
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print('the memlayer command needs typer and rich: pip install "memlayer-sdk[cli]"', file=sys.stderr)
        sys.exit(_MISSING_EXTRA)
    from memlayer.cli.app import app
    from memlayer.cli.output import Warnings

    logging.getLogger("memlayer").addHandler(Warnings(logging.WARNING))
    # What a terminal of a small character set cannot show comes out as an escape, not as a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="memlayer")
