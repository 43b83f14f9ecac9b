"""`memlayer.envelope`: an envelope opens as it was sealed, in the place that it was sealed for, or not at all."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from memlayer.envelope import OVERHEAD, Cipher, Field, Place, pad, tag, unpad
from memlayer.errors import FormatTooNewError, StoreDamagedError

KEY = bytes(range(32))
PLACE = Place(
    field=Field.TEXT,
    store_id=b"s" * 16,
    uref=b"u" * 16,
    record=b"r" * 16,
    epoch=0x0102,
    version=0x0304050607080910,
    binding=b"b" * 32,
)
MAGIC, FORMAT, SUITE, FLAGS = range(4)


def changed(envelope, position, value):
    return envelope[:position] + bytes([value]) + envelope[position + 1 :]


# --- Sealing and opening ---


@given(st.binary(max_size=600))
def test_what_was_sealed_comes_back(content):
    """An envelope opens to its plaintext and is 34 bytes longer."""
    envelope = Cipher(KEY).seal(content, place=PLACE)
    assert len(envelope) == len(content) + OVERHEAD == len(content) + 34
    assert Cipher(KEY).open(envelope, place=PLACE) == content


def test_the_layout_is_the_one_described():
    """Magic, format, suite, flags, epoch, nonce, ciphertext, tag: AES-256-GCM over the place."""
    envelope = Cipher(KEY).seal(b"content", place=PLACE)
    assert envelope[:6] == bytes([0x4D, 1, 1, 0, 1, 2])
    assert AESGCM(KEY).decrypt(envelope[6:18], envelope[18:], PLACE.associated_data()) == b"content"


def test_every_envelope_has_a_nonce_of_its_own():
    """Ten thousand envelopes of one content have ten thousand nonces."""
    cipher = Cipher(KEY)
    assert len({cipher.seal(b"same", place=PLACE)[6:18] for _ in range(10_000)}) == 10_000


def test_the_tag_is_the_last_16_bytes():
    """`tag` gives what AES-GCM put at the end."""
    envelope = Cipher(KEY).seal(b"content", place=PLACE)
    assert tag(envelope) == envelope[-16:]
    assert len(tag(envelope)) == 16


# --- What does not open ---


def test_every_flipped_bit_is_refused():
    """Of a small envelope, no single bit can be changed: header, nonce, ciphertext or tag."""
    cipher = Cipher(KEY)
    envelope = cipher.seal(b"two words", place=PLACE)
    for position in range(len(envelope)):
        for bit in range(8):
            with pytest.raises((StoreDamagedError, FormatTooNewError)):
                cipher.open(changed(envelope, position, envelope[position] ^ 1 << bit), place=PLACE)


def test_every_cut_and_every_tail_is_refused():
    """An envelope with bytes missing from its end, or more behind it, does not open."""
    cipher = Cipher(KEY)
    envelope = cipher.seal(b"two words", place=PLACE)
    for end in range(len(envelope)):
        with pytest.raises(StoreDamagedError):
            cipher.open(envelope[:end], place=PLACE)
    for tail in (b"\0", envelope):
        with pytest.raises(StoreDamagedError):
            cipher.open(envelope + tail, place=PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        *({"field": field} for field in Field if field is not Field.TEXT),
        {"store_id": b"S" + b"s" * 15},
        {"uref": b"u" * 15 + b"U"},
        {"record": bytes(16)},
        {"epoch": 0x0103},
        {"version": PLACE.version + 1},
        {"version": PLACE.version ^ 1 << 63},
        {"binding": b"b" * 31 + b"B"},
    ],
    ids=lambda elsewhere: ",".join(f"{name}={getattr(value, 'name', '')}" for name, value in elsewhere.items()),
)
def test_another_place_is_refused(elsewhere):
    """An envelope opens in no place that differs in a single attribute, and the error names the field only."""
    envelope = Cipher(KEY).seal(b"content", place=PLACE)
    with pytest.raises(StoreDamagedError) as caught:
        Cipher(KEY).open(envelope, place=replace(PLACE, **elsewhere))
    assert caught.value.evidence == {"field": elsewhere.get("field", Field.TEXT).name}


def test_a_moved_epoch_in_the_header_is_refused():
    """The header's epoch cannot be rewritten to fit another key epoch's place."""
    envelope = Cipher(KEY).seal(b"content", place=PLACE)
    with pytest.raises(StoreDamagedError):
        Cipher(KEY).open(changed(envelope, 5, 3), place=replace(PLACE, epoch=0x0103))


def test_another_key_is_refused():
    """An envelope does not open under another key, and the error has no cause that could hold one."""
    envelope = Cipher(KEY).seal(b"content", place=PLACE)
    with pytest.raises(StoreDamagedError) as caught:
        Cipher(bytes(32)).open(envelope, place=PLACE)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(("position", "value"), [(FORMAT, 2), (FORMAT, 0), (SUITE, 2), (SUITE, 0), (SUITE, 255)])
def test_a_format_or_suite_of_later_is_named(position, value):
    """What the code does not know is refused before the cipher is asked, and the evidence says what it is."""
    envelope = changed(Cipher(KEY).seal(b"content", place=PLACE), position, value)
    with pytest.raises(FormatTooNewError) as caught:
        Cipher(KEY).open(envelope, place=PLACE)
    assert caught.value.evidence == {"format": envelope[FORMAT], "suite": envelope[SUITE]}


@pytest.mark.parametrize(("position", "value"), [(MAGIC, 0x4E), (MAGIC, 0), (FLAGS, 1), (FLAGS, 0x80)])
def test_a_damaged_header_is_refused(position, value):
    """Magic and flags have one value each."""
    envelope = changed(Cipher(KEY).seal(b"content", place=PLACE), position, value)
    with pytest.raises(StoreDamagedError):
        Cipher(KEY).open(envelope, place=PLACE)


# --- The place ---


def test_the_associated_data_has_a_fixed_width():
    """102 bytes, whatever the attributes: no two places can run into each other."""
    for place in (PLACE, Place(field=Field.STORE, store_id=bytes(16)), replace(PLACE, epoch=65_535, version=2**64 - 1)):
        assert len(place.associated_data()) == 9 + 3 + 48 + 2 + 8 + 32


@given(
    st.lists(
        st.builds(
            Place,
            field=st.sampled_from(Field),
            store_id=st.sampled_from([bytes(16), b"\1" + bytes(15), bytes(15) + b"\1"]),
            uref=st.sampled_from([bytes(16), b"\1" + bytes(15), bytes(15) + b"\1"]),
            record=st.sampled_from([bytes(16), b"\1" + bytes(15), bytes(15) + b"\1"]),
            epoch=st.sampled_from([0, 1, 256]),
            version=st.sampled_from([0, 1, 2**56]),
            binding=st.sampled_from([bytes(32), b"\1" + bytes(31)]),
        ),
        min_size=2,
        max_size=2,
    )
)
def test_two_places_share_no_associated_data(places):
    """Equal associated data means equal places."""
    first, second = places
    assert (first.associated_data() == second.associated_data()) == (first == second)


@pytest.mark.parametrize("name", ["store_id", "uref", "record", "binding"])
@pytest.mark.parametrize("size", [-1, 1])
def test_an_attribute_of_another_width_has_no_place(name, size):
    """A value that is a byte too short or too long is refused, not cut to the associated data of another place."""
    value = getattr(PLACE, name)
    with pytest.raises((StoreDamagedError, ValueError)):
        replace(PLACE, **{name: value[:size] if size < 0 else value + b"\0"}).associated_data()


@pytest.mark.parametrize("changes", [{"epoch": 65_536}, {"epoch": -1}, {"version": 2**64}, {"version": -1}], ids=str)
def test_a_number_out_of_range_has_no_place(changes):
    """What a damaged row can name, and no store ever wrote, is damage."""
    with pytest.raises(StoreDamagedError):
        replace(PLACE, **changes).associated_data()


def test_the_fields_keep_their_numbers():
    """The numbers are part of the format, and none is used twice."""
    assert {field.name: field.value for field in Field} == {
        "TEXT": 1, "VECTOR": 2, "MANIFEST": 3, "PROFILE": 4, "DATA_KEY": 5, "BUCKET": 6, "INDEX_KEY": 7, "EMBEDDER": 8,
        "STORE_KEY": 9, "STORE": 10, "ITEM": 11,
    }  # fmt: skip


def test_a_place_cannot_be_changed():
    """Places are frozen, and their attributes have names."""
    with pytest.raises(FrozenInstanceError):
        PLACE.epoch = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        Place(Field.TEXT, bytes(16))  # type: ignore[call-arg]


# --- The key stays inside ---


def test_a_cipher_does_not_show_its_key():
    """Neither `repr` nor `str` holds the key, in bytes or hex, and there is no attribute that does."""
    cipher = Cipher(KEY)
    assert repr(cipher) == str(cipher) == "Cipher(AES-256-GCM)"
    assert not hasattr(cipher, "__dict__")
    assert not any(isinstance(getattr(cipher, name), bytes) for name in Cipher.__slots__)


def test_a_cipher_cannot_be_pickled_or_copied():
    """A key does not leave the process in a pickle, of any protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(Cipher(KEY), protocol)
    with pytest.raises(TypeError, match="pickled"):
        copy.deepcopy(Cipher(KEY))


def test_a_key_of_another_size_is_no_key():
    """A key of a size that AES does not have is refused when the cipher is made."""
    for size in (0, 31, 33):
        with pytest.raises(ValueError):
            Cipher(bytes(size))


# --- Padding ---


@given(st.binary(max_size=9_000) | st.binary(max_size=300))
def test_padding_comes_off_again(content):
    """What was padded comes back, the zeros at its end included."""
    assert unpad(pad(content)) == content
    assert unpad(pad(content + bytes(7))) == content + bytes(7)


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (0, 256), (1, 256), (252, 256), (253, 512), (508, 512), (509, 768), (4_092, 4_096),
        # Padmé, by hand. 4,097 bytes with the length: exponent 12, which takes 4 bits, so 12 - 4 = 8 low bits are 0.
        (4_093, 4_352), (4_348, 4_352), (4_349, 4_608), (8_188, 8_192),
        # 8,193: exponent 13 (4 bits), 9 low bits. 65,537: exponent 16 (5 bits), 11 low bits. 10^6: 19 (5), 14.
        (8_189, 8_704), (65_532, 65_536), (65_533, 67_584), (1_000_000 - 4, 62 * 16_384), (2**24 - 4, 2**24),
    ],
)  # fmt: skip
def test_padded_sizes(size, padded):
    """Multiples of 256 up to 4 KiB, Padmé above; the four bytes of the length count."""
    assert len(pad(bytes(size))) == padded


@given(st.integers(0, 3_000_000))
def test_padding_is_at_most_12_percent_above_4_kib(size):
    """Padding never cuts, adds less than 256 bytes to a small content, and at most 12 % to a large one."""
    padded = len(pad(bytes(size)))
    assert padded >= size + 4
    assert padded - (size + 4) < (256 if size + 4 <= 4_096 else 0.12 * (size + 4))


@given(st.binary(max_size=700), st.integers(0, 10**6), st.integers(0, 255))
def test_only_what_pad_makes_is_unpadded(content, position, value):
    """A padding with any other byte, length or size is refused."""
    padded = bytearray(pad(content))
    position %= len(padded)
    padded[position] = value
    if bytes(padded) == pad(content):
        return
    try:
        assert pad(unpad(bytes(padded))) == padded
    except StoreDamagedError:
        # A changed content byte is a content; a changed length or filling byte is none.
        assert not 4 <= position < 4 + len(content)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0\0\0",
        bytes(4),  # no filling
        bytes(255),
        bytes(257),
        bytes(512),  # one block too many
        b"\0\0\0\1".ljust(512, b"\0"),
        b"\0\0\0\1ab".ljust(256, b"\0"),  # more than the length says
        b"\0\0\1\0".ljust(256, b"\0"),  # the length says more than there is
        b"\xff\xff\xff\xff".ljust(256, b"\0"),
        bytes(255) + b"\1",
    ],
    ids=range(11),
)
def test_bad_padding_is_refused(bad):
    """Too short, too long, a wrong length, or filled with something else than zeros."""
    with pytest.raises(StoreDamagedError):
        unpad(bad)
