"""`memlayer.guard`: an older copy of a store is noticed, and the guard itself never stands in the way."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memlayer import guard as module
from memlayer.errors import RollbackDetectedError, StoreMissingError
from memlayer.guard import FileGuard, compare, forget_path, refuse_missing, state_folder
from memlayer.manifest import BUCKETS

ROOT = Path(__file__).parent.parent
STORE_ID, KEY = b"store-id-16bytes", bytes(range(32))
HEADER, SLOT = 8192, 32


@pytest.fixture
def store(tmp_path):
    """A path where a store is."""
    path = tmp_path / "store.db"
    path.touch()
    return path


@pytest.fixture
def make(tmp_path):
    """Makes a guard for a store at a path, as a process that opens it would."""
    made = []

    def make(path, **changes):
        values = {"store_id": STORE_ID, "path": path, "key": KEY, **changes}
        guard = FileGuard(tmp_path / "state" / "guard", **values)
        made.append(guard)
        return guard

    yield make
    for guard in made:
        guard.close()


def noted(guard, *, accept_rollback=False):
    if accept_rollback:
        forget_path(guard.file.parent, guard._path)
    return guard.noted()


def seal(number):
    return bytes([number]) * 8


def scribble(guard, bucket, slots, content=b"\xff"):
    """Overwrites the notes of a bucket behind the guard's back."""
    guard.close()
    with guard.file.open("r+b") as file:
        for slot in slots:
            file.seek(HEADER + (2 * bucket + slot) * SLOT)
            file.write(content * SLOT if len(content) == 1 else content)


# --- Notes ---


def test_a_new_guard_has_no_notes(make, store):
    """Before the first write nothing is known, and nothing is wrong."""
    assert noted(make(store)) == {}


def test_notes_survive(make, store):
    """What one process noted the next one reads: the newest generation of each bucket, with the end of its seal."""
    guard = make(store)
    for generation in range(1, 8):
        guard.note(7, (generation, b"sixteen bytes-" + bytes([generation, 0])))
    guard.note(0, (1, seal(1)))
    guard.note(BUCKETS - 1, (2**64 - 1, seal(2)))
    guard.note(BUCKETS, (3, seal(3)))
    guard.close()
    assert noted(make(store)) == {
        7: (7, b"bytes-\7\0"), 0: (1, seal(1)), BUCKETS - 1: (2**64 - 1, seal(2)), BUCKETS: (3, seal(3))
    }  # fmt: skip


def test_an_older_note_changes_nothing(make, store):
    """Another process may have noted a later write already; of one generation the first note stays."""
    guard = make(store)
    for generation, number in ((5, 1), (4, 2), (5, 3), (1, 4)):
        guard.note(7, (generation, seal(number)))
    assert noted(guard) == {7: (5, seal(1))}


def test_a_note_after_closing_opens_again(make, store):
    """Closing frees the handle, and no more."""
    guard = make(store)
    guard.note(1, (1, seal(1)))
    guard.close()
    guard.close()
    guard.note(1, (2, seal(2)))
    assert noted(guard) == {1: (2, seal(2))}


@pytest.mark.skipif(os.name != "posix", reason="modes and sparse files of POSIX")
def test_the_file_is_small_and_the_owners(make, store):
    """A store with few users takes few blocks, in a file and a folder that nobody else can read."""
    guard = make(store)
    guard.note(9, (1, seal(1)))
    status = guard.file.stat()
    assert status.st_size == HEADER + (BUCKETS + 1) * 2 * SLOT
    assert status.st_blocks * 512 < 100_000
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(guard.file.parent.stat().st_mode) == 0o700
    assert list(guard.file.parent.iterdir()) == [guard.file]


def test_the_file_holds_no_key(make, store):
    """Notes are generations, seals and codes."""
    guard = make(store)
    guard.note(9, (1, seal(1)))
    assert KEY not in guard.file.read_bytes()


# --- Damage ---


@pytest.mark.parametrize("last", [0, 1])
def test_one_torn_note_is_no_error(make, store, last):
    """Whichever of a bucket's two slots is damaged: the other one stands, and the next note mends it."""
    guard = make(store)
    for generation in range(1, 8 + last):
        guard.note(7, (generation, seal(generation)))
    before = noted(guard)[7][0]
    for slot in (0, 1):
        saved = guard.file.read_bytes()
        scribble(guard, 7, [slot])
        assert noted(guard)[7][0] in (before, before - 1)
        guard.note(7, (before + 1, seal(9)))
        assert noted(guard)[7] == (before + 1, seal(9))
        guard.close()
        guard.file.write_bytes(saved)


def test_a_half_written_note_is_no_error(make, store):
    """A note that was cut in the middle of its 32 bytes leaves the one before it."""
    guard = make(store)
    for generation in (1, 2, 3):
        guard.note(7, (generation, seal(generation)))
    for size in range(1, SLOT):
        saved = guard.file.read_bytes()
        scribble(guard, 7, [1], b"\xee" * size)
        assert noted(guard) == {7: (3, seal(3))}
        guard.close()
        guard.file.write_bytes(saved)


def test_two_bad_notes_are_an_error(make, store):
    """With both of a bucket's slots damaged something was altered, and the error names the override."""
    guard = make(store)
    for generation in (1, 2):
        guard.note(7, (generation, seal(generation)))
    scribble(guard, 7, [0, 1])
    with pytest.raises(RollbackDetectedError) as caught:
        noted(guard)
    assert caught.value.evidence == {"override": "accept_rollback=True"}
    assert noted(guard, accept_rollback=True) == {}
    assert noted(guard) == {}


def test_a_torn_first_note_is_no_error(make, store):
    """A bucket's very first note, torn, leaves what was before it: nothing."""
    guard = make(store)
    guard.note(7, (1, seal(1)))
    scribble(guard, 7, [0])
    assert noted(guard) == {}


@pytest.mark.parametrize("bit", [0, 63, 64, 127, 128, 255])
def test_a_raised_note_locks_nobody_out(make, store, bit):
    """Notes are authenticated: a bit that is changed in one of them only loses that note."""
    guard = make(store)
    for generation in (1, 2):
        guard.note(7, (generation, seal(generation)))
    position = HEADER + (2 * 7 + 1) * SLOT + bit // 8
    content = bytearray(guard.file.read_bytes())
    content[position] ^= 1 << bit % 8
    guard.file.write_bytes(content)
    assert noted(guard) == {7: (1, seal(1))}


def test_a_note_counts_in_its_place_only(make, store, tmp_path):
    """A note that was copied to another bucket or slot, or into another store's guard, is no note."""
    guard = make(store)
    for generation in (1, 2):
        guard.note(7, (generation, seal(generation)))
    content = guard.file.read_bytes()
    first, second = (content[HEADER + (14 + slot) * SLOT :][:SLOT] for slot in (0, 1))
    scribble(guard, 7, [0], second)
    scribble(guard, 7, [1], first)
    with pytest.raises(RollbackDetectedError):
        noted(guard)
    scribble(guard, 7, [0, 1], bytes(SLOT))
    scribble(guard, 8, [0], first)
    scribble(guard, 8, [1], second)
    with pytest.raises(RollbackDetectedError):
        noted(guard)
    for changes in ({"key": bytes(32)}, {"store_id": b"another-16-bytes"}, {"path": tmp_path / "elsewhere.db"}):
        other = make(changes.pop("path", store), **changes)
        other.file.write_bytes(content)
        with pytest.raises(RollbackDetectedError):
            noted(other)


@pytest.mark.parametrize("size", [0, 100, HEADER, HEADER + SLOT, HEADER + 15 * SLOT + 5])
def test_a_guard_that_was_cut_short_forgets(make, store, size):
    """What was cut off is not known any more; what is left counts, and new notes are kept."""
    guard = make(store)
    for generation in (1, 2):
        guard.note(0, (generation, seal(generation)))
        guard.note(7, (generation, seal(generation)))
    os.truncate(guard.file, size)
    found = noted(guard)
    assert found.keys() <= {0, 7}
    assert found.get(0, (1,))[0] in (1, 2)
    guard.note(7, (9, seal(9)))
    assert noted(guard)[7] == (9, seal(9))


# --- Comparing ---


def test_a_store_that_is_not_behind_passes():
    """The same notes, later ones, buckets that were never noted: all is well."""
    same = {7: (3, seal(3)), BUCKETS: (1, seal(1))}
    compare({}, same)
    compare(same, same)
    compare(same, {7: (4, seal(9)), BUCKETS: (1, seal(1)), 8: (1, seal(1))})
    compare({7: (3, seal(3))}, {7: (3, b"sixteen b" + seal(3)[:7] + seal(3)[:1])})


@pytest.mark.parametrize(
    ("present", "behind"),
    [
        ({7: (2, seal(2)), 8: (5, seal(5))}, 1),
        ({7: (2, seal(2)), 8: (4, seal(5))}, 2),
        ({8: (5, seal(5))}, 1),
        ({}, 2),
        ({7: (3, seal(4)), 8: (5, seal(5))}, 1),
        ({7: (3, b""), 8: (5, seal(5))}, 1),
    ],
    ids=["older", "two older", "gone", "all gone", "another state of the generation", "no seal"],
)
def test_a_store_that_is_behind_is_refused(present, behind):
    """A bucket that is older than its note, or another state of the same generation: the error says how many."""
    with pytest.raises(RollbackDetectedError) as caught:
        compare({7: (3, seal(3)), 8: (5, seal(5))}, present)
    assert caught.value.evidence == {"override": "accept_rollback=True", "buckets": behind}


# --- Copies, moves, losses ---


def test_a_copy_starts_its_own_guard(make, store, tmp_path):
    """A copy of a store beside the original knows nothing of the original's notes, nor changes them."""
    make(store).note(7, (5, seal(5)))
    copy = tmp_path / "copy.db"
    shutil.copy(store, copy)
    assert noted(make(copy)) == {}
    make(copy).note(7, (2, seal(2)))
    assert noted(make(copy)) == {7: (2, seal(2))}
    assert noted(make(store)) == {7: (5, seal(5))}


def test_a_moved_store_takes_its_notes_along(make, store, tmp_path):
    """Where the old path is empty the notes go with the store, and the old guard is gone."""
    old = make(store)
    old.note(7, (5, seal(5)))
    old.note(BUCKETS, (2, seal(2)))
    old.close()
    moved = store.rename(tmp_path / "moved.db")
    assert noted(make(moved)) == {7: (5, seal(5)), BUCKETS: (2, seal(2))}
    assert not old.file.exists()
    assert noted(make(store)) == {}


def test_another_stores_notes_are_not_taken(make, store, tmp_path):
    """A store that was put where another one is missing takes nothing of it; files of other make are passed over."""
    make(store).note(7, (5, seal(5)))
    moved, other = store.rename(tmp_path / "moved.db"), tmp_path / "other.db"
    other.touch()
    (make(store).file.parent / f"{STORE_ID.hex()}-{'0' * 32}.guard").write_bytes(b"something else")
    (make(store).file.parent / f"{STORE_ID.hex()}-{'1' * 32}.guard").mkdir()
    assert noted(make(other, store_id=b"another-16-bytes")) == {}
    assert noted(make(moved)) == {7: (5, seal(5))}


def test_altered_notes_of_a_moved_store_are_an_error(make, store, tmp_path):
    """A move does not wash damaged notes away."""
    old = make(store)
    for generation in (1, 2):
        old.note(7, (generation, seal(generation)))
    scribble(old, 7, [0, 1])
    moved = store.rename(tmp_path / "moved.db")
    with pytest.raises(RollbackDetectedError):
        noted(make(moved))


def test_a_copy_of_a_store_that_is_gone_takes_no_notes(make, store, tmp_path):
    """A copy is another file than the one that was noted, also when that one is gone: its guard begins anew."""
    make(store).note(7, (5, seal(5)))
    restored = tmp_path / "restored.db"
    restored.touch()
    store.unlink()
    guard = make(restored)
    assert noted(guard) == {}
    assert not guard.moved_here


def test_a_store_that_is_gone_is_not_replaced_silently(make, store):
    """Where a store was known and is missing, making a new one is refused; the override forgets the old one."""
    folder = make(store).file.parent
    refuse_missing(folder, store)
    make(store).note(7, (5, seal(5)))
    refuse_missing(folder, store)
    store.unlink()
    refuse_missing(folder, store.with_name("another.db"))
    with pytest.raises(StoreMissingError) as caught:
        refuse_missing(folder, store)
    assert caught.value.evidence == {"override": "accept_rollback=True"}
    forget_path(folder, store.with_name("another.db"))
    with pytest.raises(StoreMissingError):
        refuse_missing(folder, store)
    forget_path(folder, store)
    refuse_missing(folder, store)
    assert noted(make(store)) == {}


def test_guards_are_in_the_users_state_folder(home):
    """Outside of the database's folder, so that a copy of that folder does not bring its guard along."""
    assert state_folder().is_relative_to(home)
    assert state_folder().name == "guard"


# --- Where it cannot be kept ---


def test_a_folder_that_cannot_be_is_one_warning(tmp_path, store, caplog):
    """No exception from any call, an empty answer, and one line in the log however many notes follow."""
    (tmp_path / "file").touch()
    guard = FileGuard(tmp_path / "file" / "guard", store_id=STORE_ID, path=store, key=KEY)
    assert noted(guard) == {}
    for generation in range(1, 5):
        guard.note(7, (generation, seal(1)))
    guard.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(guard.file) in caplog.text


def test_a_note_that_cannot_be_made_is_one_warning(tmp_path, store, caplog):
    """The same where it is a note that fails first."""
    guard = FileGuard(tmp_path, store_id=STORE_ID, path=store, key=KEY)
    guard.file.mkdir()
    for generation in range(1, 5):
        guard.note(7, (generation, seal(1)))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# --- Threads, processes, forks ---


def test_threads_share_a_guard(make, store):
    """Many threads that note at once lose nothing."""
    guard = make(store)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda generation: guard.note(7, (generation, seal(generation))), range(1, 200)))
    assert noted(guard) == {7: (199, seal(199))}


def test_notes_are_kept_where_there_is_no_flock(make, store, monkeypatch):
    """On a system without `fcntl` a single process loses nothing."""
    monkeypatch.setattr(module, "fcntl", None)
    guard = make(store)
    guard.note(7, (1, seal(1)))
    assert noted(guard) == {7: (1, seal(1))}


NOTING = """
import sys
from pathlib import Path
from memlayer.guard import FileGuard
folder, store, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
guard = FileGuard(folder, store_id=b"store-id-16bytes", path=store, key=bytes(range(32)))
guard.noted()
print("ready", flush=True)
sys.stdin.readline()
for bucket in range(300):
    for generation in range(first, first + 6, 2):
        guard.note(bucket, (generation, bytes([generation]) * 8))
"""


def test_two_processes_never_lose_the_newest(make, store):
    """Two processes that note at once, generation by generation: the newest of each bucket is there at the end."""
    guard = make(store)
    children = [
        subprocess.Popen([sys.executable, "-c", NOTING, guard.file.parent, store, str(first)], cwd=ROOT, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE) for first in (1, 2)
    ]  # fmt: skip
    assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * 2
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    assert noted(guard) == {bucket: (6, seal(6)) for bucket in range(300)}


@pytest.mark.skipif(sys.platform == "win32", reason="no flock here")
def test_a_note_waits_for_another_process(make, store):
    """While another process holds the guard's file, a note is neither read nor written."""
    import fcntl

    guard = make(store)
    guard.note(7, (1, seal(1)))
    with guard.file.open("rb") as other, ThreadPoolExecutor(1) as thread:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = thread.submit(guard.note, 7, (2, seal(2)))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.1)
        fcntl.flock(other, fcntl.LOCK_UN)
        waiting.result(timeout=60)
    assert noted(guard) == {7: (2, seal(2))}


def test_a_forked_guard_opens_the_file_anew(make, store):
    """`forked` frees a lock that a thread of the parent held, and notes go on."""
    guard = make(store)
    guard.note(7, (1, seal(1)))
    guard._lock.acquire()
    guard.forked()
    guard.note(7, (2, seal(2)))
    assert noted(guard) == {7: (2, seal(2))}
