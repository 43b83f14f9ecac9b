"""The demo as a newcomer runs it, and its scanner, which must be able to find what the demo does not."""

from __future__ import annotations

import base64
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import typer

from memlayer import KeyFile, MemoryStore, RawKey
from memlayer.cli import demo, script
from memlayer.cli.scan import ScanReport, needles, scan, vector_forms
from memlayer.guard import state_folder
from memlayer.testing import HashingEmbedder

# Child processes are out of reach of conftest's guard; Python runs this in each of them at its start.
NO_NETWORK = """
import sys

def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        print("NETWORK", event, file=sys.stderr)
        raise OSError("no network")

sys.addaudithook(guard)
"""


def dense_vector() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """As a model gives them: 384 numbers, none of them 0."""
    vector = np.random.default_rng(3).normal(size=384)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


# --- The whole of it, once ---


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A demo that keeps its files, without a network: the folder, and what became of the process."""
    work = tmp_path_factory.mktemp("demo")
    (work / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join(filter(None, [str(work), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "memlayer", "demo", "--keep", str(work / "kept")],
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )
    return work / "kept", done


def test_the_demo_proves_what_it_says(played):
    """It ends with 0, warns of nothing, reaches for no network, and prints no colours into a pipe."""
    _, done = played
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


def test_the_second_process_is_given_what_answers_each_question(played):
    """Every question of day two has a recalled memory with a score, a block, and a reply that says it is no model's;
    what answers none of them stays below the floor."""
    _, done = played
    second_day = done.stdout.partition("== Day two")[2]
    recalled = len(re.findall(r"recalled, score 0\.\d{3}  2026-03-0", second_day))
    assert len(script.DAY_TWO) <= recalled < 2 * len(script.DAY_TWO)
    for line in script.DAY_TWO:
        assert line.text in second_day
        assert line.needs in second_day
    assert second_day.count("<memory-") == len(script.DAY_TWO)
    assert done.stdout.count("assistant  [offline stand-in, no model]") >= len(script.DAY_ONE + script.DAY_TWO)


def test_the_files_are_searched_open_and_closed_and_the_control_finds_everything(played):
    """Four scans find nothing, of which those of an open store see its log; the control finds all, in every form."""
    _, done = played
    found = [
        dict(re.findall(r"(?:(\d+ of \d+) ([a-z ]+))", line)) for line in done.stdout.splitlines() if "found:" in line
    ]
    assert [all(count.startswith("0 of ") for count in scanned) for scanned in found] == [True] * 4 + [False]
    assert all(count.split(" of ")[0] == count.split(" of ")[1] for count in found[-1])
    assert len(re.findall(r"while it is open .*memories\.db-wal [1-9]", done.stdout)) == 2


def test_the_store_that_the_demo_leaves_is_a_real_one(played, home):
    """With `--keep` the store opens with the demo's key file and holds both sides of both days."""
    folder, _ = played
    with MemoryStore.open(folder / "memories.db", keys=KeyFile(folder / "keys" / "demo.key")) as store:
        assert store.verify().users == 1
        turns = store.user(script.USER_ID).history()
    said = [turn.text for turn in turns if turn.role == "user"]
    assert said == [line.text for line in script.DAY_ONE + script.DAY_TWO]
    assert {turn.session for turn in turns} == {"day one", "day two"}


# --- Its edges ---


def test_the_temporary_folder_goes_and_the_guards_note_too(home, tmp_path, monkeypatch):
    """At the end nothing is left of the folder, nor of the store's note in the rollback guard."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with demo._folder(None) as folder:
        MemoryStore.open(demo._Place(folder).store, keys=RawKey.generate(), embedder=HashingEmbedder()).close()
        assert list(state_folder().iterdir())
    assert list(state_folder().iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_proof_that_fails_is_an_exit_code(monkeypatch):
    """When a proof fails, the demo's exit code is 1."""
    monkeypatch.setattr(demo, "_first_day", lambda place, keep: False)
    with pytest.raises(typer.Exit) as caught:
        demo.demo()
    assert caught.value.exit_code == 1


def test_a_store_that_leaks_fails_the_proof(tmp_path, capsys):
    """The check that finds nothing in the demo's store finds one text, its words and its vector in a plain file."""
    place = demo._Place(tmp_path)
    place.key.parent.mkdir()
    place.key.write_text("no key")
    vector = dense_vector()
    content = demo._Content(texts=["She adores octopuses."], vectors=[vector])
    place.store.write_bytes(random.Random(1).randbytes(50_000))
    assert demo._nothing_found("now", place, content)
    place.store.write_bytes(place.store.read_bytes() + b"She adores OCTOPUSES.")
    assert not demo._nothing_found("now", place, content)
    place.store.write_bytes(random.Random(1).randbytes(50_000) + vector.astype(np.float16).tobytes())
    assert not demo._nothing_found("now", place, content)
    assert "0 of 1 whole texts, 2 of 2 words, 0 of 1 vectors" in capsys.readouterr().out


def test_no_files_and_nothing_to_look_for_are_no_proof(tmp_path):
    """Finding nothing proves nothing when there was nothing to find, or nothing to find it in."""
    place = demo._Place(tmp_path)
    place.key.parent.mkdir()
    place.key.write_text("no key")
    place.store.write_bytes(b"something")
    assert not demo._nothing_found("now", place, demo._Content(texts=["adores"], vectors=[]))
    place.store.write_bytes(b"")
    assert not demo._nothing_found("now", place, demo._Content(texts=["adores"], vectors=[dense_vector()]))


def test_the_stand_in_quotes_and_never_pretends():
    """Every reply says that no model made it; a question is answered with what the block holds, and with no more."""
    block = 'x\n{"at": "2026", "role": "user", "text": "I play the cello"}\n</x>'
    for message, given in (("Hello.", ""), ("Hello?", ""), ("Hello.", block), ("What do I play?", block)):
        assert script.stand_in(message, given).startswith("[offline stand-in, no model] ")
    assert script.stand_in("What do I play?", block).endswith(": I play the cello")


# --- The scanner ---

TEXT = "My Umbrella is ultramarine, Zoë."


def scanned(folder: Path, content: bytes, **wanted: object) -> ScanReport:
    file = folder / "plain.db"
    file.write_bytes(random.Random(7).randbytes(10_000) + content + random.Random(8).randbytes(10_000))
    texts, vectors = wanted.get("texts", [TEXT]), wanted.get("vectors", [])
    return scan(file, wanted=needles(texts, vectors=vectors, user_id="user-4711@mail.example"))  # type: ignore[arg-type]


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: text.upper().encode(),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode().hex().encode(),
        lambda text: text.encode().hex().upper().encode(),
        lambda text: base64.b64encode(text.encode()),
    ],
    ids=["utf-8", "upper", "utf-16-le", "utf-16-be", "hex", "HEX", "base64"],
)
def test_words_are_found_in_every_form_at_every_place(tmp_path, encode, before):
    """A word inside of a longer text is found in each encoding, at each alignment, and in other letters."""
    report = scanned(tmp_path, encode("-" * before + "the umbrella, the ULTRAMARINE" + "-" * before))
    assert (report.total["words"], report.found["words"], report.found["whole texts"]) == (2, 2, 0)


@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_vectors_are_found_in_every_form_though_cut(tmp_path, form):
    """Any 31 bytes of a vector are enough, wherever they begin, in each type of number."""
    vector = dense_vector()
    for encoded in vector_forms(vector)[form]:
        assert scanned(tmp_path, encoded[101:132], vectors=[vector]).found["vectors"] == 1


def test_the_user_and_the_whole_text_are_found(tmp_path):
    """What stands there whole is counted as whole."""
    report = scanned(tmp_path, f"{TEXT}|user-4711@mail.example".encode())
    assert (report.found["whole texts"], report.found["user id"], report.complete["user id"]) == (1, 1, 0)


def test_random_bytes_and_zeros_hold_nothing(tmp_path):
    """Half a megabyte of random bytes and a page of zeros give no finding, sparse vectors included."""
    sparse = np.zeros(384, dtype=np.float32)
    sparse[200:240] = 1 / 40**0.5
    report = scanned(tmp_path, random.Random(9).randbytes(500_000) + bytes(8192), vectors=[sparse])
    assert set(report.found.values()) == {0}


def test_the_current_folder_has_no_say(tmp_path, monkeypatch):
    """A file in the current folder that is called like a module is not what the scanner imports."""
    (tmp_path / "json.py").write_text("raise SystemExit('taken for the real one')")
    monkeypatch.chdir(tmp_path)
    assert scanned(tmp_path, TEXT.encode()).found["whole texts"] == 1


def test_the_log_and_the_guard_are_searched_but_for_the_path(home, tmp_path):
    """Files beside the database and the store's own guard are read; the path in the guard is no finding, what stands
    behind it is."""
    store = tmp_path / "umbrella.db"
    store.write_bytes(b"nothing")
    (tmp_path / "umbrella.db-wal").write_bytes(b"nothing either")
    state_folder().mkdir(parents=True)
    guard = state_folder() / "0-1.guard"
    guard.write_bytes(os.fsencode(store) + bytes(100))
    (state_folder() / "0-2.guard").write_bytes(b"/elsewhere/memories.db umbrella")
    wanted = needles([TEXT], vectors=[], user_id="nobody-at-all")
    report = scan(store, wanted=wanted)
    assert sorted(report.files) == ["rollback guard", "umbrella.db", "umbrella.db-wal"]
    assert report.found["words"] == 0
    guard.write_bytes(os.fsencode(store) + b"umbrella")
    assert scan(store, wanted=wanted).found["words"] == 1
