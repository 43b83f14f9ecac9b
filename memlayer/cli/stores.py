"""The store as a whole: init, info, verify."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from memlayer.cli.opening import chosen_key, open_existing
from memlayer.cli.options import (
    DEFAULT_STORE,
    EmbedderName,
    EmbedderUnused,
    Json,
    KeyFilePath,
    PassphraseAsked,
    RecoveryKeyAsked,
    Store,
)
from memlayer.cli.output import print_json, say
from memlayer.errors import InvalidInputError
from memlayer.sources import KeyFile, SlotKind, from_environment
from memlayer.store import MemoryStore, embedders_of

__all__ = ["info", "init", "package_version", "verify"]


def init(
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: Annotated[
        bool, typer.Option("--recovery-key/--no-recovery-key", help="Add a recovery key, and show it this once.")
    ] = True,
    accept_rollback: Annotated[
        bool, typer.Option("--accept-rollback", help="There was a store here, and it may be gone: start anew.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a new store.

    Its key comes from the environment (MEMLAYER_KEY, MEMLAYER_PASSPHRASE), else from a new key file in your
    settings folder; the options choose another one.
    """
    if os.path.lexists(store):
        raise InvalidInputError(f"there is a file at {store} already; init makes new stores only", path=str(store))
    source = chosen_key(passphrase=passphrase, key_file=key_file, new=True) or from_environment()
    noted = _NotedKeyFile(source) if isinstance(source, KeyFile) else None
    with MemoryStore.open(store, keys=noted or source, embedder=embedder, accept_rollback=accept_rollback) as opened:
        recovery = opened.new_recovery_key() if recovery_key else None
        path = str(opened.path)
    file = None if noted is None else str(noted.used)
    key = {"kind": source.kind.name.lower(), "file": file}
    if json:
        print_json({"store": path, "key": key, "recovery_key": recovery})
        return
    say(f"Made the store {path}")
    if file:
        say(f"Key file: {file}")
    else:
        say("Key: the passphrase" if source.kind is SlotKind.PASSPHRASE else "Key: the one in MEMLAYER_KEY")
    if recovery is None:
        say("Without this key the memories cannot be read, by anybody: keep a copy of it.")
    else:
        say("Without this key, or the recovery key, the memories cannot be read, by anybody: keep copies.")
        say("Recovery key, shown this once; write it on paper:")
        say(f"  {recovery}")


class _NotedKeyFile:
    """A key file that remembers where it was, which depends on the new store's id. A `KeySource`."""

    kind: ClassVar[SlotKind] = SlotKind.KEY

    def __init__(self, source: KeyFile) -> None:
        self._source = source
        self.used: Path | None = None

    def secret(self, *, store_id: bytes, create: bool) -> bytes:
        """The secret in the file."""
        self.used = self._source.path(store_id=store_id).absolute()
        return self._source.secret(store_id=store_id, create=create)


def info(
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    json: Json = False,
) -> None:
    """Show a store's size, users, embedder, keys."""
    from sqlcipher3.dbapi2 import sqlite_version

    from memlayer.migrations import FORMAT

    with open_existing(
        store, embeds=False, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        path, size, users = opened.path, _size(opened.path), opened.count_users()
        slots, written, read_only = opened.key_slots(), embedders_of(opened), opened.read_only
    if json:
        print_json(
            {
                "store": str(path),
                "bytes": size,
                "format": FORMAT,
                "users": users,
                "read_only": read_only,
                "embedder": written[0].model_dump(),
                "moving_from": [embedder.model_dump() for embedder in written[1:]],
                "key_slots": [slot.model_dump() for slot in slots],
                "sqlite": str(sqlite_version),
                "memlayer": package_version(),
            }
        )
        return
    say(f"Store     {path}, {size:,} bytes{', can only be read' if read_only else ''}")
    say(f"Format    {FORMAT}, read by memlayer {package_version()} with SQLite {sqlite_version}")
    say(f"Users     {users}")
    say(f"Embedder  {written[0].model}, {written[0].dimensions} dimensions")
    for former in written[1:]:
        say(f"          not finished: the change from {former.model}; `memlayer reembed` goes on")
    say("Keys      " + ", ".join(f"{slot.slot} {slot.kind}{' (used)' if slot.used else ''}" for slot in slots))


def verify(
    store: Store = DEFAULT_STORE,
    embedder: EmbedderUnused = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
    accept_rollback: Annotated[
        bool,
        typer.Option("--accept-rollback", help="The store was restored from a backup on purpose: take it as it is."),
    ] = False,
    json: Json = False,
) -> None:
    """Read everything in a store, and check it.

    That is the file's structure, every seal, every manifest and every memory.
    """
    with open_existing(
        store,
        embeds=False,
        passphrase=passphrase,
        key_file=key_file,
        recovery_key=recovery_key,
        accept_rollback=accept_rollback,
    ) as opened:
        report = opened.verify()
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        say(f"Intact. Memories: {report.memories}, users: {report.users}, pages: {report.pages}")


def package_version() -> str:
    """memlayer's version; a checkout that is not installed has none."""
    try:
        return version("memlayer-sdk")
    except PackageNotFoundError:
        return "not installed"


def _size(path: Path) -> int:
    """Bytes of the file and its log. Asked of the folder: no file may be opened here beside the connection."""
    return sum(os.stat(file).st_size for file in (path, f"{path}-wal") if os.path.exists(file))
