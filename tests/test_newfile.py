"""`memlayer.newfile`: a new file appears whole or not at all, and nothing is ever overwritten."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from memlayer.errors import InvalidInputError, ReadOnlyStoreError, StorageError, StorageFullError, StoreMissingError
from memlayer.newfile import new_file, storage_error

ROOT = Path(__file__).parent.parent


def make(path, content="content"):
    with new_file(path) as draft:
        draft.write_text(content)


def names(folder):
    return {file.name for file in folder.iterdir()}


def test_the_file_appears_when_the_block_ends(tmp_path):
    """Until then there is only the draft, beside it; afterwards only the file, with what was written."""
    with new_file(tmp_path / "file") as draft:
        draft.write_text("content")
        assert draft.parent == tmp_path
        assert names(tmp_path) == {draft.name}
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_file_is_the_owners_only(tmp_path):
    """Mode 0600 from the first moment on, whatever the umask."""
    before = os.umask(0)
    try:
        with new_file(tmp_path / "file") as draft:
            assert stat.S_IMODE(draft.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(tmp_path, error):
    """Whatever ends the block, neither the file nor the draft nor what SQLite puts beside it stays."""

    def interrupted():
        with new_file(tmp_path / "file") as draft:
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{draft}{suffix}").write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(tmp_path) == set()


def test_an_existing_file_is_never_overwritten(tmp_path):
    """A file, an empty one, a link that leads nowhere, a folder: each stays as it is, and no draft stays."""
    (tmp_path / "full").write_text("before")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    for name in before:
        with pytest.raises(FileExistsError):
            make(tmp_path / name)
    assert names(tmp_path) == before
    assert (tmp_path / "full").read_text() == "before"
    assert (tmp_path / "empty").read_text() == ""
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    """Of two that make the same file at once the first to finish wins, and the other is told."""

    def beaten():
        with new_file(tmp_path / "file") as draft:
            draft.write_text("second")
            make(tmp_path / "file", "first")

    with pytest.raises(FileExistsError):
        beaten()
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "first"


RACER = """
import sys
from pathlib import Path
from memlayer.newfile import new_file
print("ready", flush=True)
for line in sys.stdin:
    try:
        with new_file(Path(line.strip())) as draft:
            draft.write_text(sys.argv[1] * 10_000)
        print("won", flush=True)
    except FileExistsError:
        print("lost", flush=True)
"""


def test_of_two_processes_one_wins(tmp_path):
    """Two processes that make the same files at the same time: each file is whole, of one of them, and one was told."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True) for name in "ab"
    ]  # fmt: skip
    files = [tmp_path / str(number) for number in range(100)]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 2
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("".join(f"{file}\n" for file in files))
        racer.stdin.flush()
    answers = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [sorted(pair) for pair in zip(*answers, strict=True)] == [["lost", "won"]] * 100
    for file, (first, _) in zip(files, zip(*answers, strict=True), strict=True):
        assert file.read_text() == ("a" if first == "won" else "b") * 10_000
    assert names(tmp_path) == {file.name for file in files}


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    """The caller decides about folders; the error is Python's own, to be named by `storage_error`."""
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "missing" / "file")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make(tmp_path / "file" / "file")
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("name", ["x" * 255, "\u8a18" * 70, "a b?%'"])
def test_any_name_that_fits_is_taken(tmp_path, name):
    """Long names and names in any script, as long as the file system takes them."""
    make(tmp_path / name)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", ["x" * 255, "\u8a18" * 85])
def test_the_drafts_name_fits_where_the_files_does(tmp_path, name):
    """A name of 255 bytes, the limit of most file systems, gets a draft whose name is not longer."""
    with new_file(tmp_path / name) as draft:
        assert len(os.fsencode(draft.name)) <= 255


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_links_does_as_well(tmp_path, monkeypatch, code):
    """Where no hard link can be made, the file is renamed to its name; an existing one still stays as it is."""

    def no_links(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)  # no such file system can be had in a test
    make(tmp_path / "file", "first")
    with pytest.raises(FileExistsError):
        make(tmp_path / "file", "second")
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "first"


def test_another_failure_of_the_link_is_told(tmp_path, monkeypatch):
    """Only what says that there are no links means that; a full disk is a full disk."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="no space"):
        make(tmp_path / "file")
    assert names(tmp_path) == set()


def test_the_content_and_the_name_are_synced(tmp_path, monkeypatch):
    """First the draft, then the folder: after a power cut there is no name without its content."""
    synced = []
    fsync = os.fsync

    def record(handle):
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    make(tmp_path / "file")
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_a_folder_is_not_synced_where_that_cannot_be(tmp_path, monkeypatch):
    """On Windows a folder cannot be opened; the file's own content is synced there too."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "name", "nt")
    try:
        make(tmp_path / "file")
    finally:
        monkeypatch.undo()
    assert len(synced) == 1
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EEXIST, InvalidInputError),
        (errno.ENOENT, StoreMissingError),
        (errno.ENOTDIR, StoreMissingError),
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EFBIG, StorageFullError),
        (errno.EACCES, ReadOnlyStoreError),
        (errno.EPERM, ReadOnlyStoreError),
        (errno.EROFS, ReadOnlyStoreError),
        (errno.EIO, StorageError),
        (errno.ENAMETOOLONG, StorageError),
    ],
    ids=errno.errorcode.get,
)
def test_failures_have_names(code, kind):
    """Each failure to make a file is an error of ours that names the path."""
    error = storage_error(OSError(code, os.strerror(code)), Path("/folder/file"))
    assert type(error) is kind
    assert error.evidence == {"path": "/folder/file"}
    assert "/folder" in str(error)
