"""What gets out by another door: pickles, logs, messages, tracebacks."""

from __future__ import annotations

import base64
import copy
import logging
import os
import pickle
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlcipher3 import dbapi2

from memlayer import KeyFile, MemlayerError, MemoryStore, Passphrase, RawKey, RecoveryKey, Turn
from memlayer.envelope import Cipher
from memlayer.keys import StoreKeys, UserKeys
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CANARY = "Zq7canaryWm"
KEY = bytes(range(100, 132))
USER = f"user {CANARY}"
TEXT = f"I keep the {CANARY} under the mat"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    """A store whose user, texts, sessions and metadata all hold the canary."""
    with MemoryStore.open(tmp_path / "store.db", keys=RawKey(KEY), embedder=HashingEmbedder(32)) as opened:
        opened.user(USER).remember(TEXT, id=CANARY, session=CANARY, speaker=CANARY, metadata={CANARY: CANARY})
        yield opened


# --- Pickles ---


def test_nothing_that_holds_a_key_can_be_pickled(store: MemoryStore) -> None:
    """A store, a user's memory, every key source and every key refuse to be pickled or copied."""
    holders = [
        store,
        store.user(USER),
        RawKey(KEY),
        Passphrase("correct horse battery staple"),
        RecoveryKey(RecoveryKey.generate()),
        Cipher(KEY),
        StoreKeys(KEY, store_id=bytes(16), epoch=1, sealed_index_key=None),
        UserKeys(KEY, epoch=1),
    ]
    for holder in holders:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises((TypeError, pickle.PicklingError)):
                pickle.dumps(holder, protocol=protocol)
        with pytest.raises(TypeError):
            copy.deepcopy(holder)


def test_nothing_shows_a_secret(store: MemoryStore) -> None:
    """Neither `repr`, `str` nor `vars` of what an application holds shows a key, a text or a user id."""
    user = store.user(USER)
    shown = [
        store,
        user,
        user.history(),
        user.history()[0],
        user.recall(TEXT),
        user.recall(TEXT)[0],
        Turn(text=TEXT),
        RawKey(KEY),
        Passphrase(CANARY * 2),
        Cipher(KEY),
        UserKeys(KEY, epoch=1),
        KeyFile(),
    ]
    for value in shown:
        for text in (repr(value), str(value), f"{value}"):
            assert _secrets_in(text) == [], type(value).__name__


def _secrets_in(text: str) -> list[str]:
    """Which of what must not be in a message, a log record or a traceback is in this text."""
    secrets = {
        "canary": CANARY,
        "key": repr(KEY)[2:-1],
        "key in hex": KEY.hex(),
        "key in base64": base64.b64encode(KEY).decode(),
    }
    return [name for name, secret in secrets.items() if secret in text]


# --- Errors ---


def _misuses(store: MemoryStore, folder: Path) -> list[Callable[[], object]]:
    """Calls that fail, each with the canary somewhere in its arguments or in what it finds."""
    user = store.user(USER)
    other = store.user(f"{CANARY} other")
    embedder = HashingEmbedder(32)
    not_text: Any = [CANARY]
    (folder / "export").write_bytes(b"memlayer export\n" + CANARY.encode() * 40)

    class Failing(HashingEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            raise RuntimeError(f"the texts were {texts}")

        def split(self, text: str) -> list[str]:
            raise KeyError(text)

    return [
        lambda: user.remember(TEXT + "!", id=CANARY),
        lambda: user.remember(not_text),
        lambda: user.remember(CANARY * 40_000),
        lambda: user.remember(TEXT + "\ud800"),
        lambda: user.remember(TEXT, metadata={CANARY: float("nan")}),
        lambda: user.remember(TEXT, metadata={CANARY: {CANARY}}),
        lambda: user.remember(TEXT, metadata={"k": CANARY * 2_000}),
        lambda: user.remember(TEXT, role=CANARY),  # type: ignore[arg-type]
        lambda: user.remember(TEXT, source=CANARY),  # type: ignore[arg-type]
        lambda: user.remember(TEXT, at=datetime(2026, 1, 1)),  # noqa: DTZ001  it is refused
        lambda: user.remember(TEXT, at=CANARY),  # type: ignore[arg-type]
        lambda: user.remember(TEXT, session=CANARY * 60),
        lambda: user.remember_many([Turn(text=TEXT), CANARY]),  # type: ignore[list-item]
        lambda: user.remember_many([Turn(text=TEXT)], embeddings=np.full((1, 32), np.nan, np.float32)),
        lambda: user.remember_many([Turn(text=TEXT, id="a"), Turn(text=TEXT + "!", id="a")]),
        lambda: Turn(text=TEXT, nonsense=CANARY),  # type: ignore[call-arg]
        lambda: user.recall(TEXT, where={CANARY: {"$near": CANARY}}),
        lambda: user.recall(TEXT, where={CANARY: {"$in": CANARY}}),
        lambda: user.recall(TEXT, where=CANARY),  # type: ignore[arg-type]
        lambda: user.recall(TEXT, k=CANARY),  # type: ignore[arg-type]
        lambda: user.recall(np.zeros(32, np.float32)),
        lambda: user.get(f"{CANARY} is not there"),
        lambda: other.get(CANARY),
        lambda: user.update(f"{CANARY} is not there", text=TEXT),
        lambda: user.forget(CANARY, session=CANARY),
        lambda: user.history(before=CANARY),
        lambda: store.user(f"{CANARY}\ud800"),
        lambda: store.user(CANARY * 60),
        lambda: user.import_(folder / "export", passphrase=CANARY),
        lambda: store.add_key(RawKey(CANARY.encode())),
        lambda: RecoveryKey(CANARY),
        lambda: MemoryStore.open(store.path, keys=Passphrase(CANARY), embedder=embedder),
        lambda: MemoryStore.open(store.path, keys=RawKey(KEY[::-1]), embedder=embedder),
        lambda: MemoryStore.open(store.path, keys=RawKey(KEY), embedder=Failing(32)).user(USER).remember(TEXT),
        lambda: MemoryStore.open(store.path, keys=RawKey(KEY), embedder=HashingEmbedder(8)),
    ]


def _errors(store: MemoryStore, folder: Path) -> list[MemlayerError]:
    errors = []
    for number, misuse in enumerate(_misuses(store, folder)):
        try:
            misuse()
        except MemlayerError as error:
            errors.append(error)
        else:
            pytest.fail(f"misuse {number} is none")
    return errors


def test_no_error_repeats_what_it_was_given(store: MemoryStore, tmp_path: Path) -> None:
    """The message, `repr`, evidence and printed traceback of an error hold no text, key, id, session or metadata."""
    for number, error in enumerate(_errors(store, tmp_path)):
        for shown in (str(error), repr(error), repr(error.evidence), repr(error.args), repr(vars(error))):
            assert _secrets_in(shown) == [], (number, type(error).__name__)
        # Only what the exceptions say: the lines of this file that raised them hold the name of the canary, not it.
        said = "".join(
            f"{type(link).__name__}: {link}" for link in _chain(error) if not isinstance(link, pytest.fail.Exception)
        )
        assert _secrets_in(said) == [], (number, said)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what is printed with it as its cause or context."""
    yield error
    if error.__cause__ is not None:
        yield from _chain(error.__cause__)
    elif error.__context__ is not None and not error.__suppress_context__:
        yield from _chain(error.__context__)


def test_damage_repeats_nothing(store: MemoryStore, tmp_path: Path) -> None:
    """The error for a row that was changed under an open store holds nothing of the row and of its user."""
    connection = dbapi2.connect(str(store.path), isolation_level=None)
    connection.execute("UPDATE users SET manifest = randomblob(106)")
    connection.close()
    user = store.user(USER)
    with pytest.raises(MemlayerError) as raised:
        user.recall(TEXT)
    assert _secrets_in("".join(traceback.format_exception(raised.value)).replace("CANARY", "")) == []
    assert _secrets_in(repr(raised.value.evidence)) == []


def _locals(error: BaseException) -> Iterator[Any]:
    """Every local variable of every frame of memlayer's that an error and its context passed through."""
    seen: BaseException | None = error
    while seen is not None:
        for frame, _ in traceback.walk_tb(seen.__traceback__):
            if f"{os.sep}memlayer{os.sep}" in frame.f_code.co_filename:
                yield from frame.f_locals.values()
        seen = seen.__cause__ or seen.__context__


def test_a_reporter_that_captures_locals_gets_no_key(store: MemoryStore, tmp_path: Path, record_property: Any) -> None:
    """No local variable of any frame that an error passed through shows a key, whatever else a reporter would send.

    A text is one: it is an argument of the caller's own call, and of memlayer's functions below. How many of these
    errors show one is in the report.
    """
    errors = _errors(store, tmp_path)
    texts = 0
    for error in errors:
        found = {name for value in _locals(error) for name in _secrets_in(_shown(value))}
        texts += "canary" in found
        assert found <= {"canary"}, error
    record_property("errors whose locals show a text", f"{texts} of {len(errors)}")
    # Otherwise nothing was looked at.
    assert texts


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  the next test is about this
        return ""


def test_a_reporter_that_captures_locals_is_not_stopped(store: MemoryStore, tmp_path: Path) -> None:
    """Every local variable of such a frame can be shown, one that is only half made too."""
    for error in _errors(store, tmp_path):
        for value in _locals(error):
            repr(value)


# --- Logs ---


def test_no_log_record_holds_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, SQLAlchemy's loggers included, no record of a whole workflow holds a text, vector, key or user id."""
    loggers = ["", "memlayer", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "sqlalchemy.dialects"]
    for name in loggers:
        caplog.set_level(logging.DEBUG, logger=name)
    with MemoryStore.open(tmp_path / "store.db", keys=RawKey(KEY), embedder=HashingEmbedder(32)) as store:
        user = store.user(USER)
        user.remember(TEXT, id=CANARY, session=CANARY, speaker=CANARY, metadata={CANARY: CANARY})
        user.recall(TEXT, where={CANARY: CANARY})
        user.update(CANARY, text=f"{TEXT} again")
        user.export(tmp_path / "export", passphrase=CANARY)
        user.forget(session=CANARY)
        user.import_(tmp_path / "export", passphrase=CANARY)
        store.backup(tmp_path / "backup.db")
        store.verify()
        _errors(store, tmp_path / "..")
        user.erase()
    os.unlink(tmp_path / ".." / "export")
    text = "\n".join(
        f"{record.name} {record.getMessage()} {record.exc_info} {record.args}" for record in caplog.records
    )
    assert _secrets_in(text) == []
    # The loggers were on: SQLAlchemy told every statement.
    assert "INSERT INTO records" in text
    assert "memlayer" in {record.name for record in caplog.records}
