"""The command doctor: what is wrong with retrieval in a user's own store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from memlayer.cli.output import print_json, say
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.doctor import Diagnosis

__all__ = ["doctor"]

_FOUND = 1


def doctor(
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="Ask these, one a line; by default the user's own latest questions.",
        ),
    ] = None,
    show_texts: Annotated[bool, typer.Option("--show-texts", help="Show the questions that find nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where anything was found.")] = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Say what is wrong with retrieval in a user's memory.

    Looks for truncated texts, a collapsed vector space, an embedder in the wrong role, copies, turns that say nothing,
    languages that the embedder does not know, and questions that find nothing. Writes nothing, and asks no LLM.
    """
    from memlayer.doctor import diagnose

    asked = None if questions is None else _lines(questions)
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        diagnosis = diagnose(opened.user(user), questions=asked, show_texts=show_texts)
    if json:
        print_json(diagnosis.model_dump(mode="json"))
    else:
        _print(diagnosis)
    if strict and diagnosis.findings:
        raise typer.Exit(_FOUND)


def _print(diagnosis: Diagnosis) -> None:
    if not diagnosis.memories:
        say("Nothing is remembered, so there is nothing to examine.")
        return
    say(f"{diagnosis.memories} memories, embedded by {diagnosis.embedder} ({diagnosis.dimensions} dimensions).")
    if (shape := diagnosis.shape) is not None:
        say(
            f"Two different texts have a cosine of {shape.mean_cosine:.2f} on average; "
            f"they spread in {shape.effective_rank:.0f} directions."
        )
    if diagnosis.asked:
        say(f"{diagnosis.asked} questions were asked; {len(diagnosis.unanswered)} found nothing.")
        for each in diagnosis.unanswered:
            if each.text is not None:
                say(f"  {each.where}: {each.text}")
    say()
    if not diagnosis.findings:
        say("Nothing wrong was found.")
    for finding in diagnosis.findings:
        say(f"{finding.kind.replace('_', ' ')}: {finding.what}")
        say(f"  {finding.advice}")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise InvalidInputError(f"{path} cannot be read: {reason}") from None
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise InvalidInputError(f"{path} holds no question; write one a line")
    return questions
