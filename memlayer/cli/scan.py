"""The proof that nothing stands in the files in clear: every byte of them is searched, by another process.

By another process, because one that holds a connection must never open the store's files by itself: closing such a
handle drops SQLite's locks. So `scan` starts this module as a program, hands it what to look for on its standard input,
and gets counts back. It needs no key and loads no model; what it can find, anybody could who has the files.

What is looked for, each in several forms:

    whole texts, words, the user id     UTF-8, UTF-16, hexadecimal, base64 at each of its three alignments
    vectors                             float32, float16, int8: any run of 16 bytes, cut at every 16th

Words have six letters or more. Ciphertext is random, and in half a million random bytes any given word of four letters
stands by chance once in some thousand scans, one of six letters in four spellings once in a hundred million. For the
same reason a run of a vector must have a few different bytes: sixteen zeros prove nothing.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memlayer.cli.child import run_child
from memlayer.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Needle", "ScanReport", "needles", "scan", "vector_forms"]

KINDS = ("whole texts", "words", "vectors", "user id")

_WINDOW = 16
_DIFFERENT_BYTES = 6
_WORD = re.compile(r"[^\W\d_]{6,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """One thing to look for.

    Attributes:
        kind: one of `KINDS`.
        forms: by the name of the encoding, byte strings of which any shows that it stands there in this form.
    """

    kind: str
    forms: dict[str, frozenset[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What a scan found.

    Attributes:
        files: names and bytes of what was searched.
        total: how many needles there are, by kind.
        found: how many of them stand there in at least one form.
        complete: how many of them stand there in every form.
    """

    files: dict[str, int]
    total: dict[str, int]
    found: dict[str, int]
    complete: dict[str, int]


# --- What to look for ---


def needles(texts: Sequence[str], *, vectors: Iterable[NDArray[np.float32]], user_id: str) -> list[Needle]:
    """All that must not be found of these texts, their vectors and the user."""
    words = {word.casefold(): word for text in texts for word in _WORD.findall(text)}
    return [
        *(Needle(kind="whole texts", forms=_text_forms({text})) for text in dict.fromkeys(texts)),
        *(Needle(kind="words", forms=_text_forms(_spellings(word))) for word in words.values()),
        *(Needle(kind="vectors", forms=_vector_windows(vector)) for vector in vectors),
        Needle(kind="user id", forms=_text_forms({user_id})),
    ]


def vector_forms(vector: NDArray[np.float32]) -> dict[str, list[bytes]]:
    """The bytes of a vector in each form; int8 at both usual scales."""
    import numpy as np

    scales = (1.0, float(np.abs(vector).max()))
    return {
        "float32": [vector.astype("<f4").tobytes()],
        "float16": [vector.astype("<f2").tobytes()],
        "int8": [np.rint(vector / scale * 127).astype(np.int8).tobytes() for scale in scales],
    }


def _spellings(word: str) -> set[str]:
    return {word, word.lower(), word.upper(), word.capitalize()}


def _text_forms(spellings: set[str]) -> dict[str, frozenset[bytes]]:
    plain = [spelling.encode() for spelling in spellings]
    return {
        "UTF-8": frozenset(plain),
        "UTF-16": frozenset(text.encode(order) for text in spellings for order in ("utf-16-le", "utf-16-be")),
        "hex": frozenset(form for text in plain for form in (text.hex().encode(), text.hex().upper().encode())),
        "base64": frozenset(form for text in plain for form in _base64_forms(text)),
    }


def _base64_forms(text: bytes) -> Iterator[bytes]:
    """The text as it stands inside of some longer base64: without the letters at its ends, which it shares with what
    is around it."""
    for before in range(3):
        letters = base64.b64encode(bytes(before) + text)
        yield letters[-(-before * 8 // 6) : (before + len(text)) * 8 // 6]


def _vector_windows(vector: NDArray[np.float32]) -> dict[str, frozenset[bytes]]:
    return {
        name: frozenset(
            window
            for form in forms
            for window in (form[start : start + _WINDOW] for start in range(0, len(form), _WINDOW))
            if len(window) == _WINDOW and len(set(window)) >= _DIFFERENT_BYTES
        )
        for name, forms in vector_forms(vector).items()
    }


# --- Looking, in another process ---


def scan(store: Path, *, wanted: Sequence[Needle], also: Sequence[Path] = ()) -> ScanReport:
    """Searches every file of a database, with SQLite's own beside it and the rollback guard's, and the files `also`.

    Raises:
        StorageError: the other process failed.
    """
    request = {
        "store": str(store),
        "also": [str(path) for path in also],
        "needles": [
            {"kind": each.kind, "forms": [[form.hex() for form in forms] for forms in each.forms.values()]}
            for each in wanted
        ],
    }
    code, printed = run_child("memlayer.cli.scan", given=json.dumps(request), capture=True)
    if code != 0:
        raise StorageError("the process that scans the files failed", exit=code)
    return ScanReport(**json.loads(printed))


def _main() -> None:
    request = json.load(sys.stdin)
    files = dict(_files(request["store"], request["also"]))
    wanted = [(each["kind"], [list(map(bytes.fromhex, form)) for form in each["forms"]]) for each in request["needles"]]
    present = _present(files, {string for _, forms in wanted for form in forms for string in form})
    counts = {name: dict.fromkeys(KINDS, 0) for name in ("total", "found", "complete")}
    for kind, forms in wanted:
        there = [any(string in present for string in form) for form in forms]
        counts["total"][kind] += 1
        counts["found"][kind] += any(there)
        counts["complete"][kind] += all(there)
    json.dump({"files": {name: len(content) for name, content in files.items()}, **counts}, sys.stdout)


def _files(store: str, also: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents: the database, what SQLite keeps beside it, the rollback guard, and the others."""
    from memlayer.guard import state_folder

    path = Path(store)
    for file in sorted(path.parent.iterdir()):
        if file.name.startswith(path.name):
            yield file.name, file.read_bytes()
    for file in state_folder().glob("*.guard"):
        content = file.read_bytes()
        # Every store of this machine has one; the path at its head says whose it is. It stands there in clear, as
        # documented, and what somebody called their folder is no finding.
        if os.fsencode(store) in content:
            yield "rollback guard", content.replace(os.fsencode(store), b"")
    for name in also:
        yield Path(name).name, Path(name).read_bytes()


def _present(files: dict[str, bytes], wanted: set[bytes]) -> set[bytes]:
    """Those byte strings that stand in any of the files."""
    windows = {string for string in wanted if len(string) == _WINDOW}
    present = set()
    for content in files.values():
        present |= {string for string in wanted - windows if string in content}
        # Thousands of one length: looking up each place is faster than searching for each string.
        present |= windows.intersection(content[at : at + _WINDOW] for at in range(len(content) - _WINDOW + 1))
    return present


if __name__ == "__main__":
    _main()
