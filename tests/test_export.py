"""`memlayer.export`: what was exported comes back, and a file of which one bit is another does not."""

from __future__ import annotations

import errno
import functools
import os
import stat
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memlayer import export
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import (
    ExportDamagedError,
    FormatTooNewError,
    InvalidInputError,
    MemlayerError,
    StorageError,
    StoreMissingError,
    WrongKeyError,
)
from memlayer.export import open_export, write_export
from memlayer.keys import passphrase_key
from memlayer.records import Memory
from memlayer.sources import FAST_FOR_TESTS

PHRASE = "an honest passphrase"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDENTITY = EmbedderIdentity(model="m", dimensions=4)
HEADER, CHUNK = 77, 65_536 + 16


hashed_once = functools.cache(passphrase_key)


@pytest.fixture(autouse=True)
def _one_argon2(monkeypatch):
    """Hashes each passphrase, salt and cost once: thousands of files are opened here with the same three."""
    monkeypatch.setattr(export, "passphrase_key", hashed_once)


def memory(number, **changes):
    values: dict[str, Any] = {
        "id": str(number), "text": f"text {number}", "role": "user", "speaker": None, "session": None,
        "at": NOON + timedelta(seconds=number), "metadata": {}, "source": "user", "expires": None, "written": NOON,
    }  # fmt: skip
    return Memory(**{**values, **changes})


def record(number, *, own_id=None, parts=1, **changes) -> Any:
    """A record as the vault gives it; its vectors are of length 1."""
    vectors = np.random.default_rng(number).standard_normal((parts, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return SimpleNamespace(
        memory_id=number.to_bytes(16), memory=memory(number, **changes), own_id=own_id, vectors=vectors, pictures=0
    )


def written(path, records, **changes):
    values: dict[str, Any] = {"identity": IDENTITY, "passphrase": PHRASE, "cost": FAST_FOR_TESTS, **changes}
    write_export(path, records, **values)
    return path


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


# --- There and back ---


def test_memories_come_back_as_they_were(tmp_path):
    """In their order, with ids, fields, times and every bit of their vectors; the identity beside them."""
    records = [
        record(1),
        record(2, own_id="mine", parts=3),
        record(3, text="שלום \0 \U0001f469\u200d\U0001f467 e\u0301", role="tool", source="document", speaker="Zoë",
               session="s", metadata={"n": [1, None, {"x": 0.1}]}, expires=NOON, written=NOON + timedelta(days=1)),
    ]  # fmt: skip
    path = tmp_path / "alice.memlayer"
    assert write_export(path, records, identity=IDENTITY, passphrase=PHRASE, cost=FAST_FOR_TESTS) == 3
    found = read(path)
    assert [one.own_id for one in found] == [None, "mine", None]
    for one, original in zip(found, records, strict=True):
        name = original.own_id or original.memory_id.hex()
        assert one.memory == original.memory.model_copy(update={"id": name})
        assert one.memory_id == original.memory_id
        assert one.vectors.tobytes() == original.vectors.tobytes()
    with open_export(path, passphrase=PHRASE) as exported:
        assert exported.identity == IDENTITY


def test_an_empty_user_has_an_export(tmp_path):
    """No memories is no error on either side."""
    assert read(written(tmp_path / "nobody", [])) == []


def test_portions_come_at_once_and_twice(tmp_path):
    """Many memories come some hundreds at a time, and can be gone through again."""
    path = written(tmp_path / "many", (record(number) for number in range(1, 1_002)))
    with open_export(path, passphrase=PHRASE) as exported:
        for _ in range(2):
            sizes = [len(portion) for portion in exported.portions()]
            assert sum(sizes) == 1_001
            assert max(sizes) <= 500


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 131_073])
def test_a_content_that_ends_at_a_chunk_comes_back(tmp_path, size):
    """Contents just under, at and over the size of a chunk, to the byte."""
    records = [record(1, text="x" * (size - 8_000)), record(2)]
    shorter = written(tmp_path / "shorter", records).stat().st_size - HEADER
    missing = size - (shorter - 16 * -(-shorter // CHUNK))
    identity = IDENTITY.model_copy(update={"document_role": "x" * missing})
    path = written(tmp_path / "it", records, identity=identity)
    assert path.stat().st_size == HEADER + size + 16 * -(-size // 65_536)
    assert [one.memory.text for one in read(path)] == [one.memory.text for one in records]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_an_export_is_the_owners_only(tmp_path):
    """Mode 0600, and nothing else in the folder."""
    path = written(tmp_path / "it", [record(1)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_two_exports_have_nothing_in_common(tmp_path):
    """The same memories under the same passphrase: no 16 bytes of one export stand in the other, but for the header's
    first 29."""
    first, second = (written(tmp_path / name, [record(1)]).read_bytes()[29:] for name in "ab")
    assert not {first[i : i + 16] for i in range(len(first) - 15)} & {
        second[i : i + 16] for i in range(len(second) - 15)
    }


def test_no_word_stands_in_the_file(tmp_path):
    """Neither texts, ids, sessions nor vectors can be found in an export."""
    original = record(1, own_id="my-own-id", text="peanut allergy", session="my-session")
    content = written(tmp_path / "it", [original]).read_bytes()
    for word in (b"peanut", b"my-own-id", b"my-session", b"identity", original.vectors.tobytes(), original.memory_id):
        assert word not in content


# --- What is not written ---


def test_an_existing_file_is_not_overwritten(tmp_path):
    """The name is taken: an error of ours, and the file is as it was."""
    (tmp_path / "it").write_text("before")
    with pytest.raises(InvalidInputError):
        written(tmp_path / "it", [record(1)])
    assert (tmp_path / "it").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_no_file(tmp_path):
    """A bad passphrase, records that fail on the way, a missing folder, a full disk: nothing stays behind."""

    def failing(error):
        yield record(1)
        raise error

    for passphrase in ("", " ", None, "\ud800"):
        with pytest.raises(InvalidInputError):
            written(tmp_path / "it", [record(1)], passphrase=passphrase)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "it", failing(KeyboardInterrupt()))
    with pytest.raises(StorageError):
        written(tmp_path / "it", failing(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StoreMissingError):
        written(tmp_path / "missing" / "it", [record(1)])
    assert list(tmp_path.iterdir()) == []


# --- Every bit counts ---


@pytest.fixture
def small(tmp_path):
    """A small export: its path, and its bytes."""
    path = written(tmp_path / "small", [record(1, own_id="x")])
    return path, path.read_bytes()


def test_a_flipped_bit_in_any_byte_is_refused(small):
    """Of a small export no byte can be changed: of the header the lowest bit is tried, behind it each in turn."""
    path, content = small
    for position in range(len(content)):
        changed = bytearray(content)
        # The higher bits of the cost would take a gigabyte.
        changed[position] ^= 1 if position < HEADER else 1 << position % 8
        error = error_of(path, changed)
        assert isinstance(error, ExportDamagedError | WrongKeyError | FormatTooNewError), position


def test_every_cut_is_refused(small):
    """An export that ends anywhere before its end is damaged, and so is one that goes on."""
    path, content = small
    for end in range(len(content)):
        assert type(error_of(path, content[:end])) is ExportDamagedError
    for tail in (b"\0", content[HEADER:], content):
        assert type(error_of(path, content + tail)) is ExportDamagedError


def test_chunks_cannot_be_moved(tmp_path):
    """Swapped, doubled, dropped, cut at a chunk, or one of another export under the same passphrase: refused."""
    texts = ["x" * 60_000, "y" * 60_000, "z" * 60_000]
    path, other = (
        written(tmp_path / name, [record(number, text=text) for number, text in enumerate(texts)]) for name in "ab"
    )
    content = path.read_bytes()
    head, chunks = content[:HEADER], [content[i : i + CHUNK] for i in range(HEADER, len(content), CHUNK)]
    others = [other.read_bytes()[i : i + CHUNK] for i in range(HEADER, len(content), CHUNK)]
    assert len(chunks) == 3
    a, b, c = chunks
    for order in ([b, a, c], [a, c, b], [c], [a, b], [a], [b, c], [a, c], [a, a, b, c], [a, b, b, c], [a, b, c, c], [],
                  [others[0], b, c], [a, others[1], c], [a, b, others[2]], others):  # fmt: skip
        assert type(error_of(path, head + b"".join(order))) is ExportDamagedError
    path.write_bytes(content)
    assert len(read(path)) == 3


def test_a_wrong_passphrase_is_told_from_damage(small):
    """Nothing is said about how near it was; an empty one is no passphrase at all."""
    path, content = small
    for passphrase in ("another passphrase", PHRASE + " ", PHRASE.upper()):
        error = error_of(path, passphrase=passphrase)
        assert type(error) is WrongKeyError
        assert dict(error.evidence) == {}
    assert type(error_of(path, passphrase="")) is InvalidInputError
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("position", "value"), [(17, 2**32 - 1), (17, 0), (17, 19_455), (21, 0), (21, 11), (25, 0), (25, 9)]
)
def test_a_cost_out_of_bounds_is_refused_unpaid(small, monkeypatch, position, value):
    """Whoever wrote the file chose the cost: outside of the bounds no memory is taken and no pass is made."""

    def refuse(**_):
        raise AssertionError("Argon2id was set up")

    path, content = small
    monkeypatch.setattr("memlayer.keys.Argon2id", refuse)
    changed = content[:position] + value.to_bytes(4) + content[position + 4 :]
    assert type(error_of(path, changed)) is ExportDamagedError


def test_what_is_no_export_is_told(tmp_path):
    """Another file, an empty one, a folder, nothing: an error of ours, and nothing is made."""
    for content in (b"", b"memlayer export\n", b"text " * 100, b"memlayer export\r" + bytes(200)):
        assert type(error_of(tmp_path / "it", content)) is ExportDamagedError
    (tmp_path / "it").unlink()
    assert type(error_of(tmp_path / "it")) is InvalidInputError
    assert type(error_of(tmp_path)) is InvalidInputError
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_names_no_file_is_refused(tmp_path):
    """A NUL in the path is an error of ours, for reading as for writing."""
    path: Any = f"{tmp_path}/a\0b"
    with pytest.raises(MemlayerError):
        written(path, [])
    error_of(path)


def test_a_later_format_is_named(small):
    """An export of format 2 says that it is one, without its passphrase."""
    path, content = small
    error = error_of(path, content[:16] + b"\2" + content[17:], passphrase="another")
    assert type(error) is FormatTooNewError
    assert error.evidence == {"format": 2}
