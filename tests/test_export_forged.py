"""`memlayer.export`: what stands under a valid seal may still be anybody's, and is read as such."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memlayer import MemoryStore, RawKey, export
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.envelope import pad
from memlayer.errors import ExportDamagedError, FormatTooNewError, MemlayerError, WrongKeyError
from memlayer.export import open_export, write_export
from memlayer.keys import derive, passphrase_key
from memlayer.payload import encode_vectors
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder

PHRASE = "an honest passphrase"
IDENTITY = EmbedderIdentity(model="m", dimensions=4)
HEADER = 77

hashed_once = functools.cache(passphrase_key)


@pytest.fixture(autouse=True)
def _one_argon2(monkeypatch):
    """Hashes each passphrase, salt and cost once: thousands of files are opened here with the same three."""
    monkeypatch.setattr(export, "passphrase_key", hashed_once)


def read(path, passphrase=PHRASE):
    with open_export(path, passphrase=passphrase) as exported:
        return [one for portion in exported.portions() for one in portion]


def error_of(path, content=None, passphrase=PHRASE):
    """The error of an export that does not open; the block behind it is never entered."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MemlayerError) as caught, open_export(path, passphrase=passphrase):
        pytest.fail("the export was opened")
    assert caught.value.__cause__ is None
    return caught.value


def forged(path, *frames, about=None):
    """An export with any content, sealed as a valid one is: whoever gave us a file may have written it."""
    known = json.dumps({"identity": IDENTITY.model_dump(), "version": 1}).encode()
    write_export(path, [], identity=IDENTITY, passphrase=PHRASE, cost=FAST_FOR_TESTS)
    whole = path.read_bytes()
    key = hashed_once(PHRASE.encode(), salt=whole[29:45], cost=FAST_FOR_TESTS)
    aead = AESGCM(derive(key, b"export"))
    content = [known if about is None else about, *frames]
    path.write_bytes(whole[:HEADER] + b"".join(export._sealed(content, aead=aead, header=whole[:HEADER])))
    return path


def frame(text=None, vectors=None, *, memory_id=b"m" * 16, sizes=None, **values):
    """One memory as a frame of an export, with anything in it."""
    turn = {"a": 0, "c": 0, "o": "u", "r": "u", "t": "hi"} | values
    text = pad(json.dumps(turn).encode()) if text is None else text
    one = encode_vectors(np.array([[1, 0, 0, 0]], np.float32)) if vectors is None else vectors
    lengths = (len(text), len(one)) if sizes is None else sizes
    return memory_id + lengths[0].to_bytes(4) + lengths[1].to_bytes(4) + text + one


def vectors_of(rows):
    return encode_vectors(np.array(rows, np.float32))


def test_a_forgery_with_nothing_wrong_is_accepted(tmp_path):
    """The way in which the files below are made gives a valid export."""
    found = read(forged(tmp_path / "it", frame(), frame(memory_id=b"n" * 16, i="own", m={"k": [1]}, x=5)))
    assert [(one.memory.text, one.own_id) for one in found] == [("hi", None), ("hi", "own")]


BAD_FRAMES: dict[str, list[bytes]] = {
    "no frame of a memory": [b""],
    "cut short": [frame()[:-1]],
    "longer than it says": [frame() + b"\0"],
    "sizes that are not its": [frame(sizes=(2**32 - 1, 2**32 - 1))],
    "text that is not padded": [frame(text=b"hi")],
    "an empty text": [frame(t="")],
    "a blank text": [frame(t=" \n")],
    "a text over the limit": [frame(text=pad(json.dumps({"a": 0, "c": 0, "o": "u", "r": "u",
                                                                 "t": "x" * 262_145}).encode()))],
    "a lone surrogate": [frame(t="\ud800")],
    "a text that is a number": [frame(t=5)],
    "an id over the limit": [frame(i="x" * 513)],
    "an empty id": [frame(i="")],
    "an id that is a number": [frame(i=5)],
    "a session over the limit": [frame(s="x" * 513)],
    "a speaker that is a list": [frame(w=["x"])],
    "metadata over the limit": [frame(m={"k": "x" * 16_384})],
    "metadata too deep": [frame(m=json.loads('{"k":' + "[" * 40 + "]" * 40 + "}"))],
    "metadata that is a list": [frame(m=[1])],
    "a number over 64 bits": [frame(m={"k": 2**64})],
    "NaN in the metadata": [frame(m={"k": float("nan")})],
    "a time out of range": [frame(a=10**20)],
    "an unknown role": [frame(r="root")],
    "vectors of other dimensions": [frame(vectors=vectors_of([[1, 0]]))],
    "a vector of zeros": [frame(vectors=vectors_of([[0, 0, 0, 0]]))],
    "a vector with NaN": [frame(vectors=vectors_of([[np.nan, 0, 0, 1]]))],
    "a vector with infinity": [frame(vectors=vectors_of([[np.inf, 0, 0, 1]]))],
    "a vector field that is cut short": [frame(vectors=b"\1\0\4")],
    "a good one before a bad one": [frame(), frame(memory_id=b"n" * 16, t="")],
    "one id twice": [frame(), frame()],
    "one own id twice": [frame(i="x"), frame(memory_id=b"n" * 16, i="x")],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_content_under_a_valid_seal_is_refused(tmp_path, name):
    """What could not be remembered cannot be imported either, and nothing of it is repeated."""
    error = error_of(forged(tmp_path / "it", *BAD_FRAMES[name]))
    assert type(error) is ExportDamagedError
    assert "xxx" not in str(error)


ESCAPING = {
    "a list for a turn": [frame(text=pad(b"[]"))],
    "a string for a turn": [frame(text=pad(b'"a"'))],
    "a turn nested beyond measure": [frame(text=pad(b"[" * 100_000))],
    "no vectors at all": [frame(vectors=b"\1\0\4\0\0")],
}


@pytest.mark.parametrize("name", ESCAPING)
def test_odd_content_under_a_valid_seal_is_refused(tmp_path, name):
    """What no export of ours holds is an error of ours."""
    error = error_of(forged(tmp_path / "it", *ESCAPING[name]))
    assert type(error) is ExportDamagedError


@pytest.mark.parametrize(
    "about",
    [b"", b"{", b"[]", b"{}", b"5", b'{"version": 1}', b'{"version": 1, "identity": {}}',
     b'{"version": 1, "identity": 5}',
     json.dumps({"version": 1, "identity": {"model": "m", "dimensions": 0}}).encode(),
     json.dumps({"version": 1, "identity": {"model": "m", "dimensions": 4, "more": 1}}).encode()],
)  # fmt: skip
def test_an_export_that_does_not_say_what_it_is_is_refused(tmp_path, about):
    """The first frame names the format and the embedder, or nothing is read."""
    assert type(error_of(forged(tmp_path / "it", frame(), about=about))) is ExportDamagedError


def sealed(path, content):
    """An export of one chunk with this content, frames or not."""
    whole = forged(path).read_bytes()
    key = hashed_once(PHRASE.encode(), salt=whole[29:45], cost=FAST_FOR_TESTS)
    aead = AESGCM(derive(key, b"export"))
    path.write_bytes(whole[:HEADER] + aead.encrypt(bytes(11) + b"\1", content, whole[:HEADER]))
    return path


def test_an_export_that_ends_in_a_frame_is_refused(tmp_path):
    """Nothing at all, half a length, or less than the last frame's length says: damaged, however well it is sealed."""
    about = json.dumps({"identity": IDENTITY.model_dump(), "version": 1}).encode()
    whole = b"".join(len(one).to_bytes(4) + one for one in (about, frame()))
    assert len(read(sealed(tmp_path / "good", whole))) == 1
    for content in (b"", b"\0\0", whole[:-1], whole + b"\0", whole + b"\0\0\1\0"):
        assert type(error_of(sealed(tmp_path / "it", content))) is ExportDamagedError
        (tmp_path / "it").unlink()


def test_a_frame_larger_than_any_can_be_is_refused(tmp_path):
    """A length of gigabytes is not waited for, and no memory is taken for it."""
    for length in (2**28 + 1, 2**32 - 1):
        error = error_of(sealed(tmp_path / f"{length}", length.to_bytes(4)))
        assert "larger than any can be" in str(error)


def test_two_own_ids_under_one_stored_id_are_refused(tmp_path):
    """No store gives two memories one id, so an export in which two share it is no export of ours."""
    assert type(error_of(forged(tmp_path / "it", frame(i="a"), frame(i="b")))) is ExportDamagedError


def test_an_identity_nested_beyond_measure_is_refused(tmp_path):
    """What no export of ours begins with is an error of ours."""
    assert type(error_of(forged(tmp_path / "it", about=b"[" * 100_000))) is ExportDamagedError


def test_content_of_a_later_version_is_named(tmp_path):
    """Fields and versions that this memlayer does not know are refused as such."""
    about = json.dumps({"identity": IDENTITY.model_dump(), "version": 2}).encode()
    assert type(error_of(forged(tmp_path / "a", about=about))) is FormatTooNewError
    assert type(error_of(forged(tmp_path / "b", frame(z=1)))) is FormatTooNewError
    later = b"\2" + vectors_of([[1, 0, 0, 0]])[1:]
    assert type(error_of(forged(tmp_path / "c", frame(vectors=later)))) is FormatTooNewError


def test_a_refused_export_writes_nothing(tmp_path):
    """A store that is asked to import a bad file, however far in it the fault is, stays byte for byte as it was."""
    frames = [frame(memory_id=number.to_bytes(16)) for number in range(600)]
    good, bad = forged(tmp_path / "good", *frames), forged(tmp_path / "bad", *frames, frame(t=""))
    path = tmp_path / "store.db"
    with MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=HashingEmbedder(4)) as store:
        alice = store.user("alice")
        alice.remember("before")
        for file, passphrase in ((bad, PHRASE), (good, "another passphrase")):
            with pytest.raises((ExportDamagedError, WrongKeyError)):
                alice.import_(file, passphrase=passphrase)
            assert [one.text for one in alice.history()] == ["before"]
        assert alice.import_(good, passphrase=PHRASE).added == 600
