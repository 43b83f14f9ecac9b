"""The command demo: a chatbot that remembers, over two days and two processes, and a proof of what is on the disk.

The first process holds the first day, ends its chat, and starts a second process that holds the second day and knows of
the first only what is in the encrypted file. In each, the files are scanned while the store is open and after it was
closed. The same scanner then has to find all of it in a plain SQLite file, or its silence would prove nothing.
"""

from __future__ import annotations

import base64
import logging
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from memlayer.cli import script
from memlayer.cli.child import run_child
from memlayer.cli.output import console, print_table, say, shown, time
from memlayer.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.cli.scan import Needle
    from memlayer.evaluation import KeptEmbedder
    from memlayer.memory import UserMemory
    from memlayer.records import Recall
    from memlayer.store import MemoryStore

__all__ = ["demo"]

_FAILED = 1
# Few enough to be read here. A chat gives more; what does not fit the question, the model passes over.
_RECALLED = 2


def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Make the files in this new folder and keep them.")
    ] = None,
    second_day: Annotated[Path | None, typer.Option("--second-day", hidden=True)] = None,
) -> None:
    """Watch a chatbot remember.

    It talks with one user over two days, in two processes, out of an encrypted file on this machine and without a
    network; then every byte of the files is searched for what was said. The store, its key file and everything else
    are made in a temporary folder, which is removed at the end.
    """
    log = logging.getLogger("memlayer")
    level = log.level
    # The library warns about key files in temporary folders. This one is meant to go.
    log.setLevel(logging.ERROR)
    try:
        if second_day is not None:
            proven = _second_day(_Place(second_day))
        else:
            with _folder(keep) as folder:
                proven = _first_day(_Place(folder), keep=keep is not None)
    finally:
        log.setLevel(level)
    if not proven:
        say("The demo failed: see above.", stderr=True)
        raise typer.Exit(_FAILED)


class _Place:
    """Where the demo keeps its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.store = self.folder / "memories.db"
        self.key = self.folder / "keys" / "demo.key"
        self.plain = self.folder / "control" / "plain.db"

    @contextmanager
    def opened(self) -> Iterator[tuple[MemoryStore, KeptEmbedder]]:
        """The store, and an embedder that keeps its vectors, so that they can be searched for."""
        from memlayer.embedders.resolve import resolve
        from memlayer.evaluation import KeptEmbedder
        from memlayer.sources import KeyFile
        from memlayer.store import MemoryStore

        embedder = KeptEmbedder(resolve(None))
        with MemoryStore.open(self.store, keys=KeyFile(self.key), embedder=embedder) as store:
            yield store, embedder


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="memlayer-demo-")).resolve()
    else:
        folder = keep
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise InvalidInputError(f"{folder} is there already; name a new folder", path=str(folder)) from None
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error.strerror}", path=str(folder)) from None
    try:
        yield folder
    finally:
        if keep is None:
            _remove(folder)


def _remove(folder: Path) -> None:
    """The folder, and what the rollback guard noted of its store."""
    from memlayer.guard import forget_path, state_folder

    forget_path(state_folder(), _Place(folder).store)
    shutil.rmtree(folder, ignore_errors=True)


# --- The two days ---


def _first_day(place: _Place, *, keep: bool) -> bool:
    _title("Day one: a chat, in this process")
    with place.opened() as (store, embedder):
        say(f"Store     {place.store}, encrypted")
        say(f"Key file  {place.key}, for this demo only; yours would be in your settings folder")
        say(f"User      {script.USER_ID}")
        say("Replies   an offline stand-in: no model, no API key, no network")
        memory = store.user(script.USER_ID)
        _chat(memory, script.DAY_ONE, session="day one")
        _title("What was stored")
        rows = [[time(turn.at), turn.role, turn.text] for turn in memory.history()]
        print_table(["date (UTC)", "who", "text"], rows, wrapped=["text"])
        content = _Content.of(memory, embedder)
        _title("Is any of it in the files? Another process, without the key, searches every byte")
        say("for every text, every word of six letters or more and the user id, as UTF-8, UTF-16, hex and base64,")
        say("and for every vector, as float32, float16 and int8, in runs of 16 bytes.")
        proven = _nothing_found("while it is open", place, content)

    # Really another process: what it knows, it has from the file.
    second, _ = run_child("memlayer", "demo", "--second-day", str(place.folder))
    _title("The first process again, after both days")
    proven &= second == 0
    proven &= _nothing_found("after it was closed", place, content)
    proven &= _everything_found(place, content)
    say()
    if proven:
        say("So: every question was given the memory that answers it, and nothing of them can be read in the files.")
    if keep:
        say(f"The files are in {place.folder}")
    return proven


def _second_day(place: _Place) -> bool:
    _title("Day two: another process, which knows only the file")
    with place.opened() as (store, embedder):
        memory = store.user(script.USER_ID)
        answered = _chat(memory, script.DAY_TWO, session="day two")
        content = _Content.of(memory, embedder)
        _title("The files on day two, searched for what was said on both")
        silent = _nothing_found("while it is open", place, content)
    return _nothing_found("after it was closed", place, content) and silent and answered


def _chat(memory: UserMemory, lines: Sequence[script.Line], *, session: str) -> bool:
    """The chat loop; whether every question was given the memory that answers it."""
    answered = True
    for line in lines:
        # What the user said, not what the assistant made of it: the stand-in's replies are quotes.
        hits = memory.recall(line.text, k=_RECALLED, sources=["user"])
        block = hits.as_prompt(max_tokens=400)
        reply = script.stand_in(line.text, block)
        memory.remember(line.text, role="user", session=session, at=line.at)
        memory.remember(reply, role="assistant", session=session, at=line.at)
        _print_exchange(line, hits, block, reply)
        found = any(line.needs in hit.text for hit in hits)
        if line.needs and not found:
            say(f"Not recalled: what was said of {line.needs}")
        answered &= found or not line.needs
    return answered


def _print_exchange(line: script.Line, hits: Recall, block: str, reply: str) -> None:
    say()
    _indented(f"{time(line.at)}  user       ", line.text)
    if line.needs:
        for hit in hits:
            _indented(f"      recalled, score {hit.score:.3f}  ", f"{time(hit.at)}  {hit.text}")
        say("      the model gets:")
        for row in block.splitlines():
            _indented("        ", row)
    _indented(f"{' ' * len(time(line.at))}  assistant  ", reply)


# --- The proof ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """All that must not stand in the files: every text in the store, and every vector that this process computed."""

    texts: list[str]
    vectors: list[NDArray[np.float32]]

    @classmethod
    def of(cls, memory: UserMemory, embedder: KeptEmbedder) -> _Content:
        return cls(texts=[turn.text for turn in memory.history()], vectors=list(embedder.vectors.values()))

    def needles(self) -> list[Needle]:
        from memlayer.cli.scan import needles

        return needles(self.texts, vectors=self.vectors, user_id=script.USER_ID)


def _nothing_found(when: str, place: _Place, content: _Content) -> bool:
    """Scans the store's files and prints what was found; whether that is nothing, of something, in files with bytes."""
    from memlayer.cli.scan import scan

    report = scan(place.store, wanted=content.needles(), also=[place.key])
    files = ", ".join(f"{name} {size:,}" for name, size in report.files.items())
    _indented(f"{when:<24}", f"{files} bytes")
    _indented(" " * 24, f"found: {_counts(report.found, report.total)}")
    return not any(report.found.values()) and all(report.total.values()) and all(report.files.values())


def _everything_found(place: _Place, content: _Content) -> bool:
    """The control: the same scanner on the same content in an SQLite file without encryption; whether it finds all of
    it, in every form."""
    from memlayer.cli.scan import scan

    _write_plain(place.plain, content)
    report = scan(place.plain, wanted=content.needles())
    say()
    say("The control, or that silence would prove nothing: the same scan of the same content without encryption")
    _indented(f"{'in a plain SQLite file':<24}", f"found: {_counts(report.complete, report.total)}, each in every form")
    return report.complete == report.total


def _write_plain(path: Path, content: _Content) -> None:
    from memlayer.cli.scan import vector_forms

    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("PRAGMA page_size=8192")  # A row that does not fit its page would be cut in two.
        plain.execute("CREATE TABLE plain (content BLOB)")
        for text in [*content.texts, script.USER_ID]:
            encoded = text.encode()
            forms = [encoded, text.encode("utf-16-le"), base64.b64encode(encoded), encoded.hex().encode()]
            plain.executemany("INSERT INTO plain VALUES (?)", [(form,) for form in forms])
        for vector in content.vectors:
            forms = [form for alike in vector_forms(vector).values() for form in alike]
            plain.executemany("INSERT INTO plain VALUES (?)", [(form,) for form in forms])


def _counts(found: dict[str, int], total: dict[str, int]) -> str:
    return ", ".join(f"{found[kind]} of {total[kind]} {kind}" for kind in total)


# --- Printing ---


def _title(title: str) -> None:
    say()
    console().print(Text(f"== {title} =="), style="bold")


def _indented(label: str, text: str) -> None:
    """A text behind a label, its further lines under the first."""
    out = console()
    room = max(out.width - len(label), 20)
    for number, row in enumerate(Text(shown(text)).wrap(out, room)):
        out.print(Text(label if number == 0 else " " * len(label)) + row)
