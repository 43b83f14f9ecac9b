"""The `memlayer` command: its sub-commands by name, and what becomes of an error."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from memlayer.cli import (
    calibrate,
    chat,
    demo,
    distil,
    distil_embedder,
    doctor,
    evaluate,
    exports,
    mcp,
    memories,
    reembed,
    stores,
)
from memlayer.cli.output import EXIT_CODES, exit_code, print_error, told
from memlayer.errors import MemlayerError

__all__ = ["app"]

_INTERRUPTED = 130
# The class of all wrong options and arguments has no public name in the older versions of typer that will do.
_USAGE_ERROR: Any = typer.BadParameter.__base__
_CODES = "\n".join(
    ["0 done, even if nothing was found", "1 not done, or a proof failed"]
    + [f"{code} {meaning}" for code, _, meaning in sorted(EXIT_CODES)]
    + ["130 interrupted"]
)


class _Commands(TyperGroup):
    """All commands. Whatever fails in one ends here: one line, an exit code, and never a traceback, which could hold
    what somebody said."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Known from here on, so that an error in the other arguments is JSON too.
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MemlayerError as error:
            print_error(told(error), code=error.code, as_json=ctx.obj)
            raise typer.Exit(exit_code(error)) from None
        except (KeyboardInterrupt, typer.Abort):
            print_error("interrupted", code="interrupted", as_json=ctx.obj)
            raise typer.Exit(_INTERRUPTED) from None
        except (typer.Exit, BrokenPipeError):
            raise  # Typer's own: an exit, and a pipe whose reader has gone.
        except _USAGE_ERROR as error:
            if not ctx.obj:
                raise  # Typer shows it, with the command's usage.
            print_error(error.format_message(), code="usage", as_json=True)
            raise typer.Exit(2) from None
        except Exception as error:
            if os.environ.get("MEMLAYER_DEBUG"):
                raise
            message = f"this should not happen ({type(error).__name__}); MEMLAYER_DEBUG=1 shows where"
            print_error(message, code="unforeseen", as_json=ctx.obj)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="A memory layer for LLM chatbots: encrypted per user, in one SQLite file.",
    epilog="Exit codes:\n\n\b\n" + _CODES,
    no_args_is_help=True,
    add_completion=False,
    # Plain text: help and errors read the same in a terminal, a pipe and a log.
    rich_markup_mode=None,
    # A traceback of typer's would show local variables.
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(stores.package_version())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _name, _command in (
    ("init", stores.init),
    ("demo", demo.demo),
    ("remember", memories.remember),
    ("recall", memories.recall),
    ("history", memories.history),
    ("forget", memories.forget),
    ("erase", memories.erase),
    ("export", exports.export),
    ("import", exports.import_),
    ("info", stores.info),
    ("verify", stores.verify),
    ("eval", evaluate.evaluate),
    ("doctor", doctor.doctor),
    ("calibrate", calibrate.calibrate),
    ("distil-embedder", distil_embedder.distil_embedder),
    ("reembed", reembed.reembed),
    ("distil", distil.distil),
    ("chat", chat.chat),
    ("mcp", mcp.mcp),
):
    app.command(_name)(_command)
