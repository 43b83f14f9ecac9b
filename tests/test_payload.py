"""`memlayer.payload`: a turn and its vectors come back as they went in, and nothing else is read as one."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from memlayer.envelope import pad, unpad
from memlayer.errors import FormatTooNewError, LimitExceededError, StoreDamagedError
from memlayer.payload import VectorKind, count_pictures, decode_turn, decode_vectors, encode_turn, encode_vectors
from memlayer.records import Memory

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MEMORY_ID = bytes(range(16))
LEAST: dict[str, Any] = {"a": 0, "c": 0, "o": "u", "r": "u", "t": "hi"}


def memory(**changes):
    values: dict[str, Any] = {
        "id": MEMORY_ID.hex(), "text": "hi", "role": "user", "speaker": None, "session": None, "at": NOON,
        "metadata": {}, "source": "user", "expires": None, "written": NOON,
    }  # fmt: skip
    return Memory(**{**values, **changes})


def written(values):
    return pad(json.dumps(values).encode())


def decoded(values):
    return decode_turn(written(values), memory_id=MEMORY_ID)


# --- Turns ---

times = st.datetimes(timezones=st.just(UTC))
names = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc\0é", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.builds(
        memory,
        text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        role=st.sampled_from(["user", "assistant", "system", "tool"]),
        source=st.sampled_from(["user", "assistant", "tool", "document", "import"]),
        speaker=names,
        session=names,
        at=times,
        written=times,
        expires=st.none() | times,
        metadata=st.dictionaries(st.text("abcé", max_size=3), json_values, max_size=3),
    ),
    names,
)
def test_a_turn_comes_back_as_it_went_in(turn, own_id):
    """Every field, in every script, at every time, with any metadata; the own id beside it."""
    again, found = decode_turn(encode_turn(turn, own_id=own_id), memory_id=MEMORY_ID)
    assert found == own_id
    assert again == turn.model_copy(update={"id": MEMORY_ID.hex() if own_id is None else own_id})
    assert type(again) is Memory
    assert again.at.tzinfo is UTC


def test_a_turn_is_compact_json_with_one_letter_keys():
    """What is None, or an empty object, takes no room; the rest is as the format says."""
    assert json.loads(unpad(encode_turn(memory(), own_id=None))) == {
        "a": 1_777_636_800_000_000, "c": 1_777_636_800_000_000, "o": "u", "r": "u", "t": "hi"
    }  # fmt: skip
    full = memory(metadata={"n": 1}, session="s", speaker="é", expires=NOON, role="assistant", source="import")
    assert unpad(encode_turn(full, own_id="i")) == (
        b'{"a":1777636800000000,"c":1777636800000000,"i":"i","m":{"n":1},"o":"i","r":"a","s":"s","t":"hi",'
        b'"w":"\xc3\xa9","x":1777636800000000}'
    )


def test_a_turn_is_padded():
    """Short turns of different lengths have one size."""
    assert {len(encode_turn(memory(text="x" * size), own_id=None)) for size in range(1, 100)} == {256}


def test_times_are_kept_to_the_microsecond():
    """The first and the last moment of the calendar, and one before 1970."""
    for at in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC),
               datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)):  # fmt: skip
        assert decode_turn(encode_turn(memory(at=at), own_id=None), memory_id=MEMORY_ID)[0].at == at
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert decode_turn(encode_turn(memory(at=east), own_id=None), memory_id=MEMORY_ID)[0].at.tzinfo is UTC


def test_the_least_that_is_a_turn():
    """Where an optional key is absent the field is None, or an empty object."""
    turn, own_id = decoded(LEAST)
    assert own_id is None
    assert turn == memory(at=datetime(1970, 1, 1, tzinfo=UTC), written=datetime(1970, 1, 1, tzinfo=UTC))


def test_the_own_id_is_the_visible_one():
    """A memory is called by the caller's id where there is one, else by the hex of its stored id."""
    assert decoded({**LEAST, "i": "m-1"})[0].id == "m-1"
    assert decoded(LEAST)[0].id == MEMORY_ID.hex()


@pytest.mark.parametrize("key", LEAST)
def test_a_turn_without_a_needed_key_is_refused(key):
    """Times, role, source and text are always there."""
    with pytest.raises(StoreDamagedError):
        decoded({name: value for name, value in LEAST.items() if name != key})


@pytest.mark.parametrize("key", ["b", "A", "text", "", "aa"])
def test_an_unknown_key_is_of_a_later_version(key):
    """A field that this version does not know is not dropped silently."""
    with pytest.raises(FormatTooNewError):
        decoded({**LEAST, key: 1})


@pytest.mark.parametrize(
    "changes",
    [{"r": "x"}, {"r": "user"}, {"r": None}, {"r": []}, {"o": "s"}, {"o": {}}, {"a": "now"}, {"a": None}, {"a": 10**30},
     {"a": float("nan")}, {"a": float("inf")}, {"a": []}, {"c": -(10**18)}, {"x": "never"}, {"x": 10**19}],
    ids=str,
)  # fmt: skip
def test_a_turn_with_an_unknown_code_or_a_bad_time_is_refused(changes):
    """Codes and times are read strictly."""
    with pytest.raises(StoreDamagedError):
        decoded({**LEAST, **changes})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"{}", b"1", b"true", b'{"a":0}', b"0" * 5000, b'{"a":"\xff"}',
     json.dumps(LEAST).encode()[:-1], json.dumps(LEAST).encode() + b"x"],
)  # fmt: skip
def test_what_is_no_turn_is_refused(content):
    """No JSON, JSON of another kind, bytes behind it, or no UTF-8: damage, and none of it in the error."""
    with pytest.raises(StoreDamagedError) as caught:
        decode_turn(pad(content), memory_id=MEMORY_ID)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [b"[]", b'["a"]', b'"a"', b'""', b"[" * 100_000])
def test_a_list_or_a_string_is_no_turn(content):
    """JSON that is a list, a string or nested beyond measure is damage like any other."""
    with pytest.raises(StoreDamagedError):
        decode_turn(pad(content), memory_id=MEMORY_ID)


@pytest.mark.parametrize("changes", [{"t": 5}, {"t": None}, {"w": 5}, {"s": []}, {"i": 5}, {"m": None}, {"m": [1]},
                                     {"a": 0.5}, {"a": True}], ids=str)  # fmt: skip
def test_a_value_of_another_type_is_refused(changes):
    """What `encode_turn` never writes is not read: a number for a text, a list for the metadata, half a microsecond."""
    with pytest.raises(StoreDamagedError):
        decoded({**LEAST, **changes})


def test_an_unpadded_turn_is_refused():
    """The padding is part of the field."""
    with pytest.raises(StoreDamagedError):
        decode_turn(json.dumps(LEAST).encode(), memory_id=MEMORY_ID)


# --- Vectors ---

HEAD, ENTRY = struct.Struct(">BHH"), struct.Struct(">BBH")


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=st.floats(width=32)))
def test_vectors_come_back_bit_by_bit(matrix):
    """Any number of parts, of any dimensions, whatever the floats are."""
    again = decode_vectors(encode_vectors(matrix))
    assert again.dtype == np.float32
    assert again.shape == matrix.shape
    assert again.tobytes() == matrix.tobytes()


def test_a_single_vector_is_the_turns_own():
    """One row is the turn's own vector; several are its parts, numbered."""
    one, two = encode_vectors(np.ones((1, 3), np.float32)), encode_vectors(np.ones((2, 3), np.float32))
    assert one[:9] == HEAD.pack(1, 3, 1) + ENTRY.pack(VectorKind.OWN, 1, 0)
    assert two[:13] == HEAD.pack(1, 3, 2) + ENTRY.pack(VectorKind.PART, 1, 0) + ENTRY.pack(VectorKind.PART, 1, 1)
    assert {kind.name: kind.value for kind in VectorKind} == {"OWN": 1, "PART": 2, "CONTEXT": 3, "IMAGE": 4}


@pytest.mark.parametrize("texts", [1, 2, 5])
def test_an_images_vector_stands_behind_those_of_the_text(texts):
    """The text's vectors are as they are without an image; the image's is one more, of its own kind."""
    matrix = np.arange(1, 3 * texts + 4, dtype=np.float32).reshape(-1, 3)
    encoded, without = encode_vectors(matrix, pictures=1), encode_vectors(matrix[:-1])
    entries = encoded[5 : 5 + 4 * (texts + 1)]
    assert entries == without[5 : 5 + 4 * texts] + ENTRY.pack(VectorKind.IMAGE, 1, 0)
    assert decode_vectors(encoded).tolist() == matrix.tolist()
    assert (count_pictures(encoded), count_pictures(without)) == (1, 0)


def test_vectors_are_little_endian_whatever_they_were():
    """The order of bytes in the file is fixed."""
    matrix = np.array([[1.0, -2.0]])
    for dtype in ("<f4", ">f4", "<f8"):
        assert encode_vectors(matrix.astype(dtype))[9:] == bytes.fromhex("0000803f000000c0")


def test_more_parts_than_the_format_counts_are_refused():
    """A text that an embedder splits into more than 65,535 parts cannot be remembered, and is told so."""
    with pytest.raises(LimitExceededError):
        encode_vectors(np.ones((65_536, 1), np.float32))


@pytest.mark.parametrize("end", range(9 + 8))
def test_vectors_that_are_cut_short_are_refused(end):
    """A vector field of any lesser length is damage, and so is a longer one."""
    whole = encode_vectors(np.ones((1, 2), np.float32))
    with pytest.raises(StoreDamagedError):
        decode_vectors(whole[:end])
    with pytest.raises(StoreDamagedError):
        decode_vectors(whole + bytes(end + 1))


@pytest.mark.parametrize(
    ("encoded", "evidence"),
    [
        (HEAD.pack(2, 1, 1) + ENTRY.pack(1, 1, 0) + bytes(4), {"layout": 2}),
        (HEAD.pack(0, 1, 1) + ENTRY.pack(1, 1, 0) + bytes(4), {"layout": 0}),
        (HEAD.pack(1, 1, 1) + ENTRY.pack(1, 2, 0) + bytes(4), {"kind": 1, "dtype": 2}),
        (HEAD.pack(1, 1, 1) + ENTRY.pack(3, 1, 0) + bytes(4), {"kind": 3, "dtype": 1}),
        (HEAD.pack(1, 1, 1) + ENTRY.pack(0, 1, 0) + bytes(4), {"kind": 0, "dtype": 1}),
        (HEAD.pack(1, 1, 2) + ENTRY.pack(2, 1, 0) + ENTRY.pack(5, 1, 1) + bytes(8), {"kind": 5, "dtype": 1}),
        (HEAD.pack(1, 1, 2) + ENTRY.pack(1, 1, 0) + ENTRY.pack(4, 2, 0) + bytes(8), {"kind": 4, "dtype": 2}),
    ],
)
def test_a_layout_kind_or_dtype_of_later_is_named(encoded, evidence):
    """What a later version may write is refused as such, not misread."""
    with pytest.raises(FormatTooNewError) as caught:
        decode_vectors(encoded)
    assert caught.value.evidence == evidence


@pytest.mark.parametrize(
    "encoded",
    [
        HEAD.pack(1, 4, 0),
        HEAD.pack(1, 0, 0),
        HEAD.pack(1, 0, 1) + ENTRY.pack(1, 1, 0),
        HEAD.pack(1, 1, 1) + ENTRY.pack(1, 1, 7) + bytes(4),
        HEAD.pack(1, 1, 1) + ENTRY.pack(2, 1, 0) + bytes(4),
        HEAD.pack(1, 1, 2) + ENTRY.pack(1, 1, 0) * 2 + bytes(8),
        HEAD.pack(1, 1, 2) + ENTRY.pack(2, 1, 1) + ENTRY.pack(2, 1, 0) + bytes(8),
        HEAD.pack(1, 1, 1) + ENTRY.pack(4, 1, 0) + bytes(4),
        HEAD.pack(1, 1, 2) + ENTRY.pack(4, 1, 0) + ENTRY.pack(1, 1, 0) + bytes(8),
        HEAD.pack(1, 1, 2) + ENTRY.pack(1, 1, 0) + ENTRY.pack(4, 1, 1) + bytes(8),
        HEAD.pack(1, 1, 2) + ENTRY.pack(2, 1, 0) + ENTRY.pack(4, 1, 0) + bytes(8),
        HEAD.pack(1, 1, 3) + ENTRY.pack(1, 1, 0) + ENTRY.pack(4, 1, 0) + ENTRY.pack(4, 1, 1) + bytes(12),
    ],
    ids=[
        "no vectors", "nothing", "no dimensions", "part 7 of 1", "one part", "two owns", "parts in another order",
        "an image alone", "an image first", "image 1 of 1", "one part and an image", "two images",
    ],
)  # fmt: skip
def test_other_parts_than_are_written_are_refused(encoded):
    """A turn has one vector of its own or parts from 0 on; anything else is not what was written."""
    with pytest.raises(StoreDamagedError):
        decode_vectors(encoded)
