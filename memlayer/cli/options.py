"""The options that commands share, each in one place so that they are called the same everywhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

__all__ = [
    "DEFAULT_STORE",
    "Confirmed",
    "EmbedderName",
    "EmbedderUnused",
    "Json",
    "KeyFilePath",
    "Object",
    "PassphraseAsked",
    "RecoveryKeyAsked",
    "SessionName",
    "Since",
    "Store",
    "Until",
    "User",
    "Where",
    "parse_object",
    "parse_time",
]

DEFAULT_STORE = Path("memories.db")


def parse_time(text: str) -> datetime:
    """A time in ISO 8601, UTC where it names no zone, as all times are printed."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("not a time in ISO 8601, such as 2026-03-01 or 2026-03-01T18:30:00+01:00") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise typer.BadParameter('not JSON; quote it for the shell, as in \'{"channel": "web"}\'') from None
    if not isinstance(value, dict):
        raise typer.BadParameter("not a JSON object, which is written in braces")
    return value


Store: TypeAlias = Annotated[
    Path, typer.Option("--store", envvar="MEMLAYER_STORE", metavar="PATH", help="The store's file.")
]
User: TypeAlias = Annotated[
    str, typer.Option("--user", "-u", metavar="ID", help="Whose memory; taken exactly. There is no default user.")
]
EmbedderName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        envvar="MEMLAYER_EMBEDDER",
        metavar="NAME",
        help="The embedder that the store is written with; onnx, static, litellm/PROVIDER/MODEL, a model or a folder.",
    ),
]
# Taken by commands that embed nothing, so that all can be called alike: these open every store, whatever it is
# written with.
EmbedderUnused: TypeAlias = Annotated[str | None, typer.Option("--embedder", metavar="NAME", hidden=True)]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PassphraseAsked: TypeAlias = Annotated[
    bool,
    typer.Option("--passphrase", help="Ask for the passphrase; without a terminal, take MEMLAYER_PASSPHRASE."),
]
KeyFilePath: TypeAlias = Annotated[
    Path | None, typer.Option("--key-file", metavar="PATH", help="Take the key from this file.")
]
RecoveryKeyAsked: TypeAlias = Annotated[
    bool,
    typer.Option("--recovery-key", help="Ask for the recovery key; without a terminal, take MEMLAYER_RECOVERY_KEY."),
]
SessionName: TypeAlias = Annotated[
    str | None, typer.Option("--session", "-s", metavar="NAME", help="Only this conversation.")
]
Since: TypeAlias = Annotated[
    datetime | None,
    typer.Option("--since", parser=parse_time, metavar="ISO", help="Only what was said then or later (UTC)."),
]
Until: TypeAlias = Annotated[
    datetime | None, typer.Option("--until", parser=parse_time, metavar="ISO", help="Only what was said before (UTC).")
]
Object: TypeAlias = dict[str, Any]
Where: TypeAlias = Annotated[
    Object | None,
    typer.Option("--where", parser=parse_object, metavar="JSON", help="Only what has this metadata."),
]
Confirmed: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
