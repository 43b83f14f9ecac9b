"""One user's memories: remember, recall, history, forget, erase."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memlayer.cli.opening import ask, confirm, open_existing
from memlayer.cli.options import (
    DEFAULT_STORE,
    Confirmed,
    EmbedderName,
    EmbedderUnused,
    Json,
    KeyFilePath,
    Object,
    PassphraseAsked,
    RecoveryKeyAsked,
    SessionName,
    Since,
    Store,
    Until,
    User,
    Where,
    parse_object,
    parse_time,
)
from memlayer.cli.output import print_json, print_table, say, shown, time
from memlayer.errors import InvalidInputError
from memlayer.records import MAX_TEXT_BYTES, Role

if TYPE_CHECKING:
    from memlayer.ranking import Part
    from memlayer.records import Memory, Recall

__all__ = ["erase", "forget", "history", "recall", "remember"]

_NOT_DONE = 1
_LONGEST_NAME = 24
# Score, date, who, and some words of the text; what more columns take is added to it.
_LEAST = 70


def remember(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What was said; - reads it from standard input.")],
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    role: Annotated[Role, typer.Option("--role", help="Who spoke.")] = "user",
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="The conversation it belongs to.")
    ] = None,
    speaker: Annotated[str | None, typer.Option("--speaker", metavar="NAME", help="The speaker's name.")] = None,
    at: Annotated[
        datetime | None,
        typer.Option("--at", parser=parse_time, metavar="ISO", help="When it was said (UTC); by default now."),
    ] = None,
    metadata: Annotated[
        Object | None, typer.Option("--metadata", parser=parse_object, metavar="JSON", help="An object to filter on.")
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Your own id: remembering it again changes nothing.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the memory that has this id.")] = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Remember one thing that was said."""
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        memory = opened.user(user).remember(
            _standard_input() if text == "-" else text,
            role=role,
            session=session,
            speaker=speaker,
            at=at,
            metadata=metadata,
            id=id,
            replace=replace,
        )
    if json:
        print_json(memory.model_dump(mode="json"))
    else:
        say(f"Remembered as {memory.id}")


def recall(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="At most how many.")] = 10,
    session: SessionName = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="0..1", help="Leave out what fits less.")
    ] = None,
    neighbours: Annotated[
        int, typer.Option("--neighbours", metavar="N", help="Show so many turns before and after each hit too.")
    ] = 0,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="PART", help="Switch off a part of the score.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is made of.")] = False,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the block that goes to the model instead.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Show the ids too.")] = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Find what fits a question, best first."""
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        hits = opened.user(user).recall(
            query,
            k=k,
            session=session,
            since=since,
            until=until,
            where=where,
            min_score=min_score,
            neighbours=neighbours,
            explain=explain,
            without=cast("list[Part]", without or []),
        )
    if json:
        block = {"prompt": hits.as_prompt()} if prompt else {}
        print_json({"hits": [hit.model_dump(mode="json") for hit in hits]} | block)
    elif prompt:
        # Rendered without anything that acts on a terminal, and printed as it is: it may be piped to a model.
        print(hits.as_prompt())
    elif not hits:
        say("Nothing found.")
    else:
        _print_hits(hits, explain=explain, ids=ids)


def _print_hits(hits: Recall, *, explain: bool, ids: bool) -> None:
    headers = ["score", "date (UTC)", "who"] + ["made of"] * explain + ["id"] * ids + ["text"]
    rows = []
    for hit in hits:
        # What is 0 says nothing.
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in (hit.parts or {}).items() if round(value, 3))
        fit = f"{hit.score:.3f}" if hit.beside is None else ""
        rows.append([fit, time(hit.at), _who(hit)] + [parts] * explain + [hit.id] * ids + [hit.text])
    least = _LEAST + 14 * explain + 34 * ids
    print_table(headers, rows, right=["score"], wrapped=["who", "text"], least=least)


def history(
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    session: SessionName = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="At most how many.")] = 50,
    before: Annotated[
        str | None, typer.Option("--before", metavar="CURSOR", help="The turns before these: an earlier cursor.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show the ids too.")] = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Show the last turns, oldest first."""
    with open_existing(
        store, embeds=False, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        memories = opened.user(user).history(session=session, limit=limit, before=before)
    if json:
        shown_turns = [memory.model_dump(mode="json") for memory in memories]
        print_json({"memories": shown_turns, "cursor": memories.cursor})
    elif not memories:
        say("Nothing is remembered.")
    else:
        print_table(
            ["date (UTC)", "who"] + ["id"] * ids + ["text"],
            [[time(memory.at), _who(memory)] + [memory.id] * ids + [memory.text] for memory in memories],
            wrapped=["who", "text"],
            least=_LEAST + 34 * ids,
        )
        if memories.cursor is not None:
            say(f"There are older ones: --before {memories.cursor}", stderr=True)


def forget(
    user: User,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="The memory; or use conditions.")] = None,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    session: SessionName = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    yes: Confirmed = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Forget one memory, or some.

    Either the one with this id, or all that meet every condition given. To forget everything: erase.
    """
    conditions: dict[str, Any] = {"session": session, "since": since, "until": until, "where": where}
    given = [name for name, value in conditions.items() if value is not None]
    if (id is None) == (not given):
        raise InvalidInputError("name one ID, or use --session, --since, --until or --where")
    what = "this memory" if id is not None else f"all memories that meet --{' and --'.join(given)}"
    with open_existing(
        store, embeds=False, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        if not yes and not confirm(f"Forget {what} of user {shown(user)}?"):
            say("Nothing was forgotten.", stderr=True)
            raise typer.Exit(_NOT_DONE)
        forgotten = opened.user(user).forget(id, **conditions)
    if json:
        print_json({"forgotten": forgotten})
    else:
        say(f"Forgotten: {forgotten}")


def erase(
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    yes: Confirmed = False,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Destroy all memories of a user.

    The key that they are sealed under is destroyed with them. Backups and older copies still hold both.
    """
    with open_existing(
        store, embeds=False, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        memory = opened.user(user)
        if not yes:
            say(f"This destroys all {memory.count()} memories of user {user}, for good.", stderr=True)
            if ask("Type the user's id to go on") != user:
                say("That is another id. Nothing was erased.", stderr=True)
                raise typer.Exit(_NOT_DONE)
        receipt = memory.erase()
    if json:
        print_json(receipt.model_dump(mode="json"))
        return
    say(f"Erased {receipt.memories} memories at {receipt.at:%Y-%m-%d %H:%M:%S} UTC")
    say(f"Store {receipt.store}, user reference {receipt.user}")
    if receipt.files_clean:
        say("No file of the store holds a byte of them.")
    else:
        say("Sealed bytes are still in the files, because another process is reading them; erase again later.")


def _standard_input() -> str:
    # One byte more than is allowed, so that a longer text is refused as such, and an endless one too.
    raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 2)
    try:
        # The last newline is the shell's.
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise InvalidInputError("standard input is not UTF-8") from None


def _who(memory: Memory) -> str:
    if memory.speaker is None:
        return memory.role
    # Names may be long, and the column must leave room for the text.
    short = memory.speaker if len(memory.speaker) <= _LONGEST_NAME else f"{memory.speaker[: _LONGEST_NAME - 1]}…"
    return f"{short} ({memory.role})"
