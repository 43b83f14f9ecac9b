"""Child processes of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import memlayer

__all__ = ["run_child"]


def run_child(module: str, *arguments: str, given: str | None = None, capture: bool = False) -> tuple[int, str]:
    """Runs a module of this memlayer in another process; its exit code, and what it printed.

    Args:
        module: its full name.
        arguments: for it.
        given: on its standard input, ASCII. Never an argument: other processes can read those.
        capture: take what it prints instead of letting it print.
    """
    # -P: without it Python would look for modules in the current folder first, and find whatever lies there. With it,
    # a checkout that is not installed has to be named.
    here = str(Path(memlayer.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    done = subprocess.run(  # noqa: S603  this very program
        [sys.executable, "-P", "-m", module, *arguments],
        input=given,
        stdout=subprocess.PIPE if capture else None,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
        check=False,
    )
    return done.returncode, done.stdout or ""
