"""What the processes of `test_refusals` and `test_places` do: die with a store open, try one as somebody else, fill a
disk."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayer import MemlayerError, MemoryStore, Passphrase, RawKey, RecoveryKey
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.children import Link

KEY = bytes(range(32))
PASSPHRASE = "correct horse battery staple"
NOBODY = 65_534
TEXT = "the peanuts are on the table"

_NEW_MOUNT_NAMESPACE = 0x00020000


def open_store(path: str | Path) -> MemoryStore:
    """The store under test."""
    return MemoryStore.open(path, keys=RawKey(KEY), embedder=HashingEmbedder(64))


def make_store(path: str | Path) -> str:
    """A store with a memory and a slot of every kind; the text of its recovery key."""
    with open_store(path) as store:
        store.user("alice").remember(TEXT)
        store.add_key(Passphrase(PASSPHRASE, cost=FAST_FOR_TESTS))
        recovery = RecoveryKey.generate()
        store.add_key(RecoveryKey(recovery))
        return recovery


def crash(link: Link, *, path: str) -> None:
    """Writes to a store and dies with it open, so that its log stays."""
    store = open_store(path)
    store.user("alice").remember(f"{TEXT} again")
    link.send("written")
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(call: Callable[[], Any]) -> str:
    """What came of a call: the name of the error, or "done"."""
    try:
        call()
    except MemlayerError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001  the test is told, and fails
        return f"RAW {type(error).__name__}: {error}"
    return "done"


def open_it(link: Link, *, path: str) -> None:
    """Opens what may be a pipe or a device: in a process that can be stopped if it waits for ever."""
    link.send(attempt(lambda: open_store(path)))


def as_nobody(link: Link, *, paths: list[str], warm: str, state: str) -> None:
    """Recalls from and remembers in each store as a user who owns none of them.

    Args:
        paths: of the stores.
        warm: for a store of this process's own, made first: what is imported on the way is not readable to nobody.
        state: the folder for the guards, from then on.
    """
    make_store(warm)
    with open_store(warm) as store:
        store.user("alice").recall(TEXT)
    os.environ["XDG_STATE_HOME"] = state
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    for path in paths:
        link.send(_used(path))


def _used(path: str) -> dict[str, Any]:
    try:
        store = open_store(path)
    except MemlayerError as error:
        return {"open": type(error).__name__}
    except Exception as error:  # noqa: BLE001  the test is told, and fails
        return {"open": f"RAW {type(error).__name__}: {error}"}
    with store:
        user = store.user("alice")
        return {
            "open": "done",
            "read only": store.read_only,
            "recalled": [hit.text for hit in user.recall(TEXT)],
            "remember": attempt(lambda: user.remember("more")),
            "forget": attempt(lambda: user.forget(user.history()[0].id)),
            "erase": attempt(user.erase),
            "add_key": attempt(lambda: store.add_key(RawKey(bytes(32)))),
            "verify": attempt(store.verify),
            "left": [turn.text for turn in user.history()],
        }


# --- A full disk ---


def fill_disk(link: Link, *, folder: str, size_kib: int) -> None:
    """Writes to a store on a file system of its own until that is full, and beyond."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNT_NAMESPACE) != 0:
        link.send(f"this process may not have a mount namespace: {os.strerror(ctypes.get_errno())}")
        return
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            link.send(f"this process may not mount: {done.stderr.strip()}")
            return
    link.send(None)
    _fill(link, Path(folder))


def fill_quota(link: Link, *, folder: str, size_kib: int) -> None:
    """The same with a limit on the size of a file, which needs no privilege."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_kib * 1024, resource.RLIM_INFINITY))
    link.send(None)
    _fill(link, Path(folder))


def _fill(link: Link, folder: Path) -> None:
    report: dict[str, Any] = {}
    path = folder / "store.db"
    stored: list[str] = []
    errors: list[str] = []
    with open_store(path) as store:
        user = store.user("alice")
        for number in range(120):
            outcome = attempt(lambda number=number: user.remember(f"turn {number}"))  # type: ignore[misc]
            if outcome == "done":
                stored.append(f"turn {number}")
            else:
                errors.append(outcome)
        report["after the first error"] = [turn.text for turn in user.history(limit=1_000)] == stored
        report["recall"] = [hit.text for hit in user.recall(stored[0], k=1)] == stored[:1]
        report["forget"] = attempt(lambda: user.forget(user.history(limit=1_000)[0].id))
        kept = [turn.text for turn in user.history(limit=1_000)]
        report["forgotten"] = kept == stored[1:]
        report["forgotten or not"] = kept in (stored, stored[1:])
        before = set(folder.iterdir())
        report["backup"] = attempt(lambda: store.backup(folder / "backup"))
        report["export"] = attempt(lambda: user.export(folder / "export", passphrase=PASSPHRASE))
        made = {folder / name for name in ("backup", "export") if report[name] == "done"}
        report["nothing half-made"] = set(folder.iterdir()) == before | made
        report["verify"] = attempt(store.verify)
    report |= {"stored": len(stored), "errors": sorted(set(errors)), "refused": len(errors)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with open_store(path) as store:
        report["after opening again"] = [turn.text for turn in store.user("alice").history(limit=1_000)] == kept
        report["verify again"] = attempt(store.verify)
    link.send(report)
