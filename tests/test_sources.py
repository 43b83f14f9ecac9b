"""`memlayer.sources`: where a key comes from, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import base64
import copy
import logging
import os
import pickle
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer.errors import InvalidInputError, KeyUnavailableError
from memlayer.sources import KeyFile, Passphrase, RawKey, RecoveryKey, SlotKind, config_folder, from_environment

STORE_ID = bytes(range(16))
KEY = bytes(range(32, 64))
BASE64 = base64.b64encode(KEY).decode()
RECOVERY = "4YKQ-P6YT-YWKE-XSC4-6C23-P3WA-X25S-HNGP-MCYW-24PV-ASV7-7LA6-ZQXW-HDGR"
posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


def secret_of(source, *, create=False):
    return source.secret(store_id=STORE_ID, create=create)


def written(path, content=BASE64 + "\n", mode=0o600):
    path.write_text(content)
    path.chmod(mode)
    return path


def refused(source, *, create=False):
    """The error of a source that does not give its secret; it has no cause, for that could hold the file's content."""
    with pytest.raises(KeyUnavailableError) as caught:
        secret_of(source, create=create)
    assert caught.value.__cause__ is None
    return caught.value


# --- Passphrases ---


def test_a_passphrase_is_taken_exactly():
    """Neither blanks nor Unicode forms are touched: the secret is the UTF-8 of what was written."""
    for text in (" two  words\n", "\u00e4", "a\u0308", "\U0001f95c", "a\0b"):
        assert secret_of(Passphrase(text)) == text.encode()
    assert Passphrase("x").kind is SlotKind.PASSPHRASE


@pytest.mark.parametrize("bad", ["", " ", "\n\t ", None, b"bytes", 5, "lone \ud800 surrogate"])
def test_what_is_no_passphrase_is_refused(bad):
    """Empty, blank, no str, or no Unicode; and the error does not repeat it."""
    with pytest.raises(InvalidInputError) as caught:
        Passphrase(bad)
    assert "lone \ud800" not in str(caught.value)


def test_a_short_passphrase_is_warned_about_when_it_is_set(caplog):
    """Under 12 bytes, when a slot is made with it; never when a store is opened, and the log does not hold it."""
    for text, create, warnings in (("tulips", True, 1), ("tulips", False, 0), ("twelve bytes", True, 0)):
        caplog.clear()
        secret_of(Passphrase(text), create=create)
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
        assert text not in caplog.text


# --- Raw keys ---


def test_a_raw_key_is_its_32_bytes():
    """Bytes and bytearrays of 32; a later change of the bytearray changes nothing."""
    array: Any = bytearray(KEY)
    source = RawKey(array)
    array[0] = 0
    assert secret_of(source) == secret_of(RawKey(KEY)) == KEY
    assert source.kind is SlotKind.KEY


@pytest.mark.parametrize("bad", [b"", KEY[:31], KEY + b"\0", BASE64, None, 32, list(KEY)], ids=repr)
def test_what_is_no_raw_key_is_refused(bad):
    """Exactly 32 bytes, and no text."""
    with pytest.raises(InvalidInputError) as caught:
        RawKey(bad)
    assert caught.value.evidence == {"limit": 32}


def test_generated_keys_differ():
    """Each generated key is a new one."""
    assert len({secret_of(RawKey.generate()) for _ in range(100)}) == 100


@pytest.mark.parametrize("text", [BASE64, f"  {BASE64}\n", BASE64 + "\r\n"])
def test_base64_may_stand_between_blanks(text):
    """An editor's line end does no harm."""
    assert secret_of(RawKey.from_base64(text, name="it")) == KEY


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        BASE64[:-1],
        BASE64[:-4],
        BASE64 + BASE64,
        BASE64.replace("/", "_").replace("=", "") + "!",
        f"{BASE64[:10]} {BASE64[10:]}",
        f"{BASE64[:10]}\n{BASE64[10:]}",
        KEY.hex(),
        "\u00e9" * 44,
        "\ud800" * 44,
    ],
    ids=ascii,
)
def test_what_is_no_base64_of_a_key_is_refused(bad):
    """Cut, doubled, hex, of another alphabet, or no base64: refused by name, and without its content."""
    with pytest.raises(KeyUnavailableError) as caught:
        RawKey.from_base64(bad, name="MEMLAYER_KEY")
    assert str(caught.value) == "MEMLAYER_KEY must be the base64 of 32 bytes"
    assert caught.value.evidence == {"name": "MEMLAYER_KEY"}
    assert caught.value.__cause__ is None


# --- Recovery keys ---


def test_a_recovery_key_comes_back_from_paper():
    """Lower case, blanks, line ends or no dashes at all: however it is copied, it is the same key."""
    text = RecoveryKey.generate()
    assert [len(group) for group in text.split("-")] == [4] * 14
    secret = secret_of(RecoveryKey(text))
    assert len(secret) == 32
    for copied in (text.lower(), text.replace("-", ""), text.replace("-", " "), f"\n{text[:35]}\n {text[35:]}\t"):
        assert secret_of(RecoveryKey(copied)) == secret
    assert RecoveryKey(text).kind is SlotKind.RECOVERY
    assert RecoveryKey.generate() != text


@given(st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_a_mistyped_letter_is_found(position, letter):
    """Any one letter that is another makes it no recovery key."""
    valid = RECOVERY.replace("-", "")
    mistyped = valid[:position] + letter + valid[position + 1 :]
    if mistyped == valid:
        return
    with pytest.raises(InvalidInputError) as caught:
        RecoveryKey(mistyped)
    assert mistyped not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text + "-AAAA",
        lambda text: text[5:],
        lambda text: text[5:] + "-" + text[:4],
        lambda text: text.replace(text[0], "1", 1),
        lambda text: text + "=",
        lambda text: "\u00e9" + text[1:],
        lambda text: "A" * 56,
    ],
)
def test_letters_missing_too_many_or_swapped_are_found(change):
    """A group left out, added or in another place, a digit that base32 has not: no recovery key."""
    with pytest.raises(InvalidInputError):
        RecoveryKey(change(RECOVERY))


@pytest.mark.parametrize("bad", [None, b"bytes", 5])
def test_what_is_no_text_is_no_recovery_key(bad):
    """Another type than str is refused as by the other sources."""
    with pytest.raises(InvalidInputError):
        RecoveryKey(bad)


# --- Key files ---


def test_a_key_file_is_made_for_a_new_store(tmp_path, caplog):
    """It gets 32 random bytes as base64, mode 0600, in a folder of mode 0700, and the log says where it is."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "new" / "folder" / "it.key"
    secret = secret_of(KeyFile(path), create=True)
    assert len(secret) == 32
    assert base64.b64decode(path.read_bytes(), validate=False) == secret
    assert secret_of(KeyFile(path)) == secret
    assert list(path.parent.iterdir()) == [path]
    assert str(path) in caplog.text
    assert base64.b64encode(secret).decode() not in caplog.text
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@posix
def test_every_folder_that_is_made_is_the_owners(tmp_path):
    """All the folders that were made for a key file have mode 0700, not only the last."""
    secret_of(KeyFile(tmp_path / "new" / "folder" / "it.key"), create=True)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_an_existing_key_file_is_never_overwritten(tmp_path):
    """A new store takes the key that is there."""
    path = written(tmp_path / "it.key")
    assert secret_of(KeyFile(path), create=True) == KEY
    assert path.read_text() == BASE64 + "\n"


def test_a_missing_key_file_is_never_made_for_a_store_that_exists(tmp_path):
    """The error names the file and the ways out, and nothing is made."""
    error = refused(KeyFile(tmp_path / "a" / "it.key"))
    assert error.evidence == {"path": str(tmp_path / "a" / "it.key")}
    assert "recovery key" in str(error)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o666, 0o777])
def test_a_key_file_that_others_can_read_is_refused(tmp_path, mode):
    """Whatever a group or others may do with it, the error says how to mend it."""
    path = written(tmp_path / "it.key", mode=mode)
    for create in (False, True):
        assert f"chmod 600 {path}" in str(refused(KeyFile(path), create=create))


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_the_owners_is_read(tmp_path, mode):
    """The owner's own rights are the owner's business."""
    assert secret_of(KeyFile(written(tmp_path / "it.key", mode=mode))) == KEY


@posix
def test_a_link_is_not_followed(tmp_path):
    """A link to a key, or to nothing, is no key file; nothing is made behind it."""
    target = written(tmp_path / "real.key")
    for name, aim in (("link.key", target), ("dangling.key", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(aim)
        for create in (False, True):
            refused(KeyFile(tmp_path / name), create=create)
    assert not (tmp_path / "nowhere").exists()


@posix
def test_a_pipe_is_no_key_file(tmp_path):
    """A FIFO is refused at once, and not waited for."""
    os.mkfifo(tmp_path / "it.key", 0o600)
    assert "no plain file" in str(refused(KeyFile(tmp_path / "it.key")))


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_is_no_key_file(tmp_path, create):
    """A folder is refused like anything else that is no plain file."""
    refused(KeyFile(tmp_path), create=create)


def test_a_path_that_names_no_file_is_refused(tmp_path):
    """A NUL in the path is an error of ours."""
    refused(KeyFile(f"{tmp_path}/a\0b"))


def test_a_key_file_below_a_file_cannot_be_made(tmp_path):
    """Where no folder can be, the error says so, and what is in the way stays as it is."""
    blocker = written(tmp_path / "file", "content")
    assert "cannot be made" in str(refused(KeyFile(blocker / "folder" / "it.key"), create=True))
    refused(KeyFile(blocker / "it.key"), create=True)
    assert blocker.read_text() == "content"


@pytest.mark.parametrize("content", ["", "\n", BASE64[:-2], "x" * 100_000, KEY.hex(), "\u00e9" * 22], ids=len)
def test_a_key_file_with_something_else_in_it_is_refused(tmp_path, content):
    """The error names the file and does not repeat what is in it."""
    path = written(tmp_path / "it.key", content)
    error = refused(KeyFile(path))
    assert str(error) == f"the key file {path} must be the base64 of 32 bytes"


def test_the_default_key_file_is_in_the_config_folder(home):
    """One for each store, named by its id, and never beside the database."""
    path = KeyFile().path(store_id=STORE_ID)
    assert path == config_folder() / "keys" / f"{STORE_ID.hex()}.key"
    assert path.is_relative_to(home)
    assert secret_of(KeyFile(), create=True) == secret_of(KeyFile())
    assert path.exists()
    assert KeyFile("elsewhere.key").path(store_id=STORE_ID) == Path("elsewhere.key")
    assert KeyFile().kind is SlotKind.KEY


@pytest.mark.parametrize(
    ("folder", "marker", "warnings"), [("temp", "", 1), ("home", "", 0), ("home", "/.dockerenv", 1),
                                       ("home", "/run/.containerenv", 1)]
)  # fmt: skip
def test_a_key_where_it_may_be_swept_away_is_warned_about(tmp_path, caplog, monkeypatch, folder, marker, warnings):
    """A key file that is made in a temporary folder or in a container gets a warning; one elsewhere does not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    exists, markers = Path.exists, {Path("/.dockerenv"), Path("/run/.containerenv")}
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == marker if path in markers else exists(path))
    secret_of(KeyFile(tmp_path / folder / "it.key"), create=True)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == warnings


def test_a_key_file_that_another_made_meanwhile_is_taken(tmp_path, monkeypatch):
    """Of two makers one wins, and the other reads the winner's key."""
    path = tmp_path / "it.key"
    link = os.link

    def late(draft, target):
        written(path)
        link(draft, target)

    monkeypatch.setattr(os, "link", late)
    assert secret_of(KeyFile(path), create=True) == KEY
    assert [entry.name for entry in tmp_path.iterdir()] == ["it.key"]


# --- The environment ---


def test_the_environment_names_the_key(monkeypatch):
    """A key, a passphrase, or else the key file; by default of the process's own environment."""
    key = from_environment({"MEMLAYER_KEY": BASE64})
    phrase = from_environment({"MEMLAYER_PASSPHRASE": " a passphrase "})
    assert (type(key), secret_of(key)) == (RawKey, KEY)
    assert (type(phrase), secret_of(phrase)) == (Passphrase, b" a passphrase ")
    assert type(from_environment({})) is KeyFile
    assert type(from_environment()) is KeyFile
    monkeypatch.setenv("MEMLAYER_KEY", BASE64)
    assert secret_of(from_environment()) == KEY


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"MEMLAYER_KEY": BASE64, "MEMLAYER_PASSPHRASE": "a passphrase"}, ["MEMLAYER_KEY", "MEMLAYER_PASSPHRASE"]),
        ({"MEMLAYER_KEY": BASE64, "MEMLAYER_PASSPHRASE": ""}, ["MEMLAYER_KEY", "MEMLAYER_PASSPHRASE"]),
        ({"MEMLAYER_KEY": ""}, ["MEMLAYER_KEY"]),
        ({"MEMLAYER_KEY": "no base64"}, ["MEMLAYER_KEY"]),
        ({"MEMLAYER_KEY": BASE64[:-4]}, ["MEMLAYER_KEY"]),
        ({"MEMLAYER_PASSPHRASE": ""}, ["MEMLAYER_PASSPHRASE"]),
        ({"MEMLAYER_PASSPHRASE": " \n"}, ["MEMLAYER_PASSPHRASE"]),
        pytest.param(
            {"MEMLAYER_PASSPHRASE": "not utf-8 \udcff"}, ["MEMLAYER_PASSPHRASE"],
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_bad_environment_falls_back_to_nothing(environment, names, home):
    """Both, empty, or unusable: an error that names the variable, no key file, and no value of it."""
    with pytest.raises(KeyUnavailableError) as caught:
        from_environment(environment)
    assert all(name in str(caught.value) for name in names)
    assert not any(value in str(caught.value) for value in environment.values() if value.strip())
    assert list(home.rglob("*.key")) == []


# --- No secret is shown ---

SHOWN = {
    "Passphrase(...)": Passphrase("hunter2 hunter2"),
    "RawKey(...)": RawKey(KEY),
    "RecoveryKey(...)": RecoveryKey(RecoveryKey.generate()),
    "KeyFile('it.key')": KeyFile("it.key"),
    "KeyFile()": KeyFile(),
}


@pytest.mark.parametrize(("shown", "source"), SHOWN.items(), ids=list(SHOWN))
def test_a_source_does_not_show_its_secret(shown, source):
    """`repr`, `str` and formatting name the source; only a key file's path is told."""
    assert repr(source) == str(source) == f"{source}" == shown


@pytest.mark.parametrize("source", SHOWN.values(), ids=list(SHOWN))
def test_a_source_cannot_be_pickled_or_copied(source):
    """A secret does not leave the process in a pickle, of any protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(source, protocol)
    for attempt in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            attempt(source)


def test_the_kinds_keep_their_numbers():
    """The numbers are part of the format, and none is used twice."""
    assert {kind.name: kind.value for kind in SlotKind} == {"PASSPHRASE": 1, "KEY": 2, "RECOVERY": 3}
