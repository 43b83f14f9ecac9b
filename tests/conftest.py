"""What every test gets, asked or not: its own home folder, a clean environment, and no network."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from memlayer import MemoryStore, RawKey
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memlayer.memory import UserMemory

# No deadline: two cores, shared, say nothing about one example's time. In CI the examples are the same in every run.
settings.register_profile("memlayer", deadline=None, max_examples=100, derandomize="CI" in os.environ)
settings.load_profile("memlayer")

# The hub's cache stays where it is: weights that are in it are meant to be found.
os.environ.setdefault("HF_HOME", str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"))


# --- Folders and environment ---


def _at_home(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Every place that a key file, a guard or a store could get to by default is inside `home`."""
    for name in [name for name in os.environ if name.startswith("MEMLAYER_")]:
        patch.delenv(name)
    for name in ("HOME", "USERPROFILE"):
        patch.setenv(name, str(home))
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        patch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that live longer than one test."""
    with pytest.MonkeyPatch.context() as patch:
        _at_home(tmp_path_factory.mktemp("home"), patch)
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, _session_home: None) -> Iterator[Path]:
    """This test's home folder, empty at first. Child processes that inherit the environment share it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _at_home(home, patch)
        yield home


@pytest.fixture(autouse=True)
def every_question_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No question is answered from the last ones: tests count embedded questions to count recalls."""
    monkeypatch.setattr("memlayer.query_cache._QUESTIONS", 0)


# --- The network ---


class NetworkBlockedError(OSError):
    """The suite runs without a network."""


_attempts: list[str] = []
_LOOKUPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_ADDRESSED = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"})


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _network_guard(event: str, args: tuple[Any, ...]) -> None:
    """Refuses what leaves this machine: names, and addresses other than loopback, for connecting as for listening."""
    if event in _LOOKUPS:
        host = args[0][0] if isinstance(args[0], tuple) else args[0]
    elif event in _ADDRESSED:
        family, address = args[0].family, args[1]
        # None: a message on a socket that is connected already.
        if family == getattr(socket, "AF_UNIX", None) or address is None:
            return
        host = address[0] if family in (socket.AF_INET, socket.AF_INET6) else f"a socket of {family!r}"
    else:
        return
    if not _is_local(host):
        _attempts.append(f"{event} {host}")
        raise NetworkBlockedError(f"{event} {host}: tests run without a network (tests/conftest.py)")


# An audit hook sees every caller, C code included, and nothing imported later can undo it. It stays for the process.
sys.addaudithook(_network_guard)


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """What tried to reach the network in this test, which fails for it even where the error was swallowed.

    A test that expects an attempt asks for this list, looks at it and clears it.
    """
    _attempts.clear()
    yield _attempts
    assert not _attempts, f"the network was tried: {_attempts}"


# --- A store ---

KEY = RawKey(bytes(range(32)))


@pytest.fixture
def embedder() -> HashingEmbedder:
    """The embedder of `store`; it counts what it embeds."""
    return HashingEmbedder()


@pytest.fixture
def store(tmp_path: Path, embedder: HashingEmbedder) -> Iterator[MemoryStore]:
    """A new store at `tmp_path / "memories.db"`, closed after the test."""
    with MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=embedder) as opened:
        yield opened


@pytest.fixture
def alice(store: MemoryStore) -> UserMemory:
    """A user of `store` who has nothing yet."""
    return store.user("alice")
