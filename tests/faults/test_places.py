"""Where a store lies: read-only files and folders, full disks, links, and files that are removed or replaced."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memlayer import MemoryStore, RawKey, RollbackDetectedError, StoreMissingError
from memlayer.testing import HashingEmbedder
from tests.faults import refusing
from tests.faults.children import Child

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else, or mount"
)


# --- Read-only ---


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user of this machine can enter."""
    folder = Path(tempfile.mkdtemp(prefix="memlayer-public-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [
        pytest.param(0o444, 0o555, id="neither"),
        pytest.param(0o666, 0o555, id="the file alone"),
        pytest.param(0o444, 0o777, id="the folder alone"),
    ],
)
def test_a_store_that_may_only_be_read(public: Path, file_mode: int, folder_mode: int) -> None:
    """Whoever may write not both the file and its folder recalls, and every change is a `ReadOnlyStoreError`."""
    path = public / "store" / "store.db"
    path.parent.mkdir()
    refusing.make_store(path)
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    before = path.read_bytes()
    (report,) = _as_nobody(public, [str(path)])
    assert path.read_bytes() == before
    assert report["open"] == "done"
    assert report["recalled"] == [refusing.TEXT]
    changes = ("remember", "forget", "erase", "add_key")
    assert {change: report[change] for change in changes} == dict.fromkeys(changes, "ReadOnlyStoreError")
    assert report["verify"] == "done"
    assert report["left"] == [refusing.TEXT]
    assert report["read only"]


@needs_root
def test_a_store_that_may_be_written(public: Path) -> None:
    """The same user writes where it may: the refusals above are the permissions' doing."""
    folder = public / "both"
    folder.mkdir()
    refusing.make_store(folder / "store.db")
    for path in (*folder.iterdir(), folder):
        path.chmod(0o777)
    (report,) = _as_nobody(public, [str(folder / "store.db")])
    assert not report["read only"]
    assert {report[change] for change in ("remember", "forget", "erase", "add_key")} == {"done"}
    assert report["left"] == []


@needs_root
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "log"),
    [
        pytest.param(0o000, 0o755, False, id="the file"),
        pytest.param(
            0o644,
            0o700,
            False,
            id="the folder",
        ),
        pytest.param(0o444, 0o555, True, id="a log that must be replayed"),
    ],
)
def test_a_store_that_may_not_be_read(public: Path, file_mode: int, folder_mode: int, log: bool) -> None:
    """A file or folder without the right to read it is a typed error, as is a log that may not be replayed."""
    path = public / "store" / "store.db"
    path.parent.mkdir()
    refusing.make_store(path)
    if log:
        with Child(refusing.crash, path=str(path)) as child:
            assert child.receive() == "written"
            assert child.kill() == -9
        path.with_name("store.db-shm").unlink()
    for file in path.parent.iterdir():
        file.chmod(file_mode)
    path.parent.chmod(folder_mode)
    (report,) = _as_nobody(public, [str(path)])
    assert report in ({"open": "StorageError"}, {"open": "ReadOnlyStoreError"})


@needs_root
@pytest.mark.parametrize(
    "there",
    [
        True,
        False,
    ],
    ids=["an old store", "a new store"],
)
def test_a_guard_that_may_not_be_kept(public: Path, there: bool) -> None:
    """Where the folder of the guards may not be entered a store is used without a guard, and a new one can be made."""
    path = public / "store" / "store.db"
    path.parent.mkdir()
    if there:
        refusing.make_store(path)
        path.chmod(0o666)
    path.parent.chmod(0o777)
    (report,) = _as_nobody(public, [str(path)], mode=0o000)
    assert report["open"] == "done"
    assert report["remember"] == "done"


def _as_nobody(public: Path, paths: list[str], *, mode: int = 0o777) -> list[Any]:
    """What a user who owns nothing can do with each store; `mode` is of the folder where the guards would be kept."""
    (public / "state" / "memlayer").mkdir(parents=True)
    (public / "state" / "memlayer").chmod(mode)
    with Child(refusing.as_nobody, paths=paths, warm=str(public / "warm.db"), state=str(public / "state")) as child:
        return child.finish()


# --- Full ---


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@needs_root
def test_a_full_disk(tmp_path: Path) -> None:
    """On a full disk a write is a `StorageFullError`, all that was stored is there, and the store verifies."""
    with Child(refusing.fill_disk, folder=str(tmp_path), size_kib=2_048) as child:
        if (reason := child.receive()) is not None:
            pytest.skip(reason)
        (report,) = child.finish()
    assert report["errors"] == ["StorageFullError"]
    assert report["backup"] == report["export"] == "StorageFullError"
    _intact(report)


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of a file are POSIX's")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """With a limit on the size of a file a write beyond it is a typed error, and all that was stored is there."""
    with Child(refusing.fill_quota, folder=str(tmp_path), size_kib=512) as child:
        assert child.receive() is None
        (report,) = child.finish()
    assert set(report["errors"]) <= {"StorageFullError", "StorageError"}
    _intact(report)


def _intact(report: dict[str, Any]) -> None:
    assert report["stored"] > 5
    assert report["refused"] > 3
    assert report["forget"] in ("done", "StorageFullError", "StorageError")
    for fact in (
        "after the first error",
        "recall",
        "forgotten or not",
        "nothing half-made",
        "after opening again",
    ):
        assert report[fact] is True, (fact, report)
    assert report["verify again"] == "done"


# --- Gone, replaced, linked ---


def test_a_file_that_is_removed_while_open(tmp_path: Path) -> None:
    """A write to a store whose file was removed is a `StoreMissingError`, and no new store comes in its place."""
    path = tmp_path / "store.db"
    refusing.make_store(path)
    with refusing.open_store(path) as store:
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            (tmp_path / name).unlink()
        for change in (lambda: store.user("alice").remember("lost"), lambda: store.user("alice").erase()):
            with pytest.raises(StoreMissingError):
                change()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreMissingError, match="accept_rollback"):
        refusing.open_store(path)
    assert list(tmp_path.iterdir()) == []
    MemoryStore.open(path, keys=RawKey(refusing.KEY), embedder=HashingEmbedder(64), accept_rollback=True).close()


def test_a_file_that_is_replaced_while_open(tmp_path: Path) -> None:
    """A write to a store in whose place an older copy was put is refused, as is the copy when it is opened."""
    path = tmp_path / "store.db"
    refusing.make_store(path)
    shutil.copyfile(path, tmp_path / "older.db")
    with refusing.open_store(path) as store:
        store.user("alice").remember("newer")
        os.replace(tmp_path / "older.db", path)
        with pytest.raises(StoreMissingError):
            store.user("alice").remember("into the void")
        assert [turn.text for turn in store.user("alice").history()] == [refusing.TEXT, "newer"]
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(RollbackDetectedError):
        refusing.open_store(path)
    with MemoryStore.open(path, keys=RawKey(refusing.KEY), embedder=HashingEmbedder(64), accept_rollback=True) as store:
        assert [turn.text for turn in store.user("alice").history()] == [refusing.TEXT]


def test_a_link_and_its_file_are_one_store(tmp_path: Path) -> None:
    """A store that is opened through a link, or a folder that is one, has its log and its guard where the file is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "link.db").symlink_to(tmp_path / "folder" / "store.db")
    (tmp_path / "link to link.db").symlink_to("link.db")
    path = tmp_path / "real" / "store.db"
    with refusing.open_store(path) as store:
        for number, name in enumerate(["link.db", "folder/store.db", "link to link.db"]):
            with refusing.open_store(tmp_path / name) as linked:
                assert linked.path == path
                linked.user("alice").remember(f"turn {number}")
                assert store.user("alice").count() == number + 1
        assert sorted(file.name for file in (tmp_path / "real").iterdir()) == [
            "store.db", "store.db-shm", "store.db-wal"
        ]  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "link to link.db", "link.db", "real"]
