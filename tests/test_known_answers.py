"""The format, pinned: published answers of its primitives, and the frozen files of `tests/vectors/`.

The files were made by `tests/vectors/make.py`, which shares nothing with memlayer; so one that fails says that the code
is wrong, not the file.
"""

from __future__ import annotations

import json
import runpy
import sqlite3
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from memlayer import Passphrase, RawKey, RecoveryKey
from memlayer.envelope import Cipher, Field, Place, pad, unpad
from memlayer.items import ItemKind, named, put
from memlayer.keys import KeySlot, StoreKeys, UserKeys, derive, make_slot, open_slot
from memlayer.ledger import Entry
from memlayer.manifest import BucketManifest, StoreManifest, UserManifest, bucket_of, record_element, user_element
from memlayer.migrations import statements
from memlayer.payload import decode_turn, decode_vectors, encode_turn, encode_vectors
from memlayer.records import Memory
from memlayer.rows import ItemRow, UserRow
from memlayer.sealer import Sealer, UnlockedUser
from memlayer.sources import Argon2Cost, SlotKind

FILES = Path(__file__).parent / "vectors"
FROZEN = {
    "envelope-1.json": "d64837712e7bfa6ba07d1506b61cedab254a60b0d7c060327546e2fc65a59863",
    "export-1.memlayer": "e60f25d89b8365de17f07421b4835f73ec17110e94766b1fba7245f103dafe17",
    "items-1.json": "70c009c6a7d45d699d0947ad8a2cb604c68551b1bfc516d72db61b68b578f024",
    "keys-1.json": "e257503ef93c5f545c2a1ff082ee661c8a2871aa2dc2186881f46c6fadebfa6a",
    "make.py": "ed4c152e4b9837599a4125debbdebc5c23b5791ced8b0cdc5d69cfe2e9abed21",
    "make_items.py": "8ddfafa1a4862d9d72d6cca22fc3262d3d322171c802b90918e16f5d2815d1de",
    "manifest-1.json": "45213b9b957e1b4f91a51ad3109e42b41b88303433aca29799bb580163aef895",
    "payload-1.json": "448fe7ef2a4be9e7df7aa3567e7af9334fa4f800feb0c4ba1ad690b0ca4f6b9c",
    "schema-1.sql": "0e43a6c4d99da1eae436646c8724f4b724540bf61c31b12943fe75897dc222c0",
    "store-1.db": "1b85446e8224177a6b3fe9976c5c2ab6f6cecc91e7a0c575b438861788cb19aa",
    "store-1.json": "d72695bc72e0411df097eb8870f32412764990194d9e6b7a315ca31aa2100e8c",
    "turns-1.json": "6331728a764eb68614a4c6b88a2dbef54dba8ece1de30da17558dc5eef0ed876",
}


def loaded(name):
    return json.loads((FILES / f"{name}-1.json").read_text(encoding="utf-8"))


second: Any = SimpleNamespace(**runpy.run_path(str(FILES / "make.py")))
"""The second implementation of the format."""
second_items: Any = SimpleNamespace(**runpy.run_path(str(FILES / "make_items.py")))
"""Its part for items, which came later."""

ENVELOPES, KEYS, MANIFESTS, PAYLOADS = map(loaded, ("envelope", "keys", "manifest", "payload"))
TURNS, STORE, ITEMS = loaded("turns"), loaded("store"), loaded("items")
OF_STORE, OF_USER = KEYS["store"], KEYS["user"]
raw = bytes.fromhex


@pytest.fixture
def drawn(monkeypatch):
    """What `os.urandom` gives next, so that something can be made with the random bytes of a frozen answer."""
    queue: list[bytes] = []

    def draw(size):
        value = queue.pop(0)
        assert len(value) == size
        return value

    monkeypatch.setattr("os.urandom", draw)
    return queue


# --- The files themselves ---


def test_the_files_are_frozen():
    """Not a byte of a known answer was changed, and none was added without a digest here."""
    found = {file.name: sha256(file.read_bytes()).hexdigest() for file in FILES.iterdir() if file.is_file()}
    del found[".gitattributes"]
    assert found == FROZEN


def test_the_files_are_what_the_script_makes(tmp_path):
    """The second implementation gives the same answers today: to the byte, and for the database row by row."""
    second.main(tmp_path)
    for file in tmp_path.iterdir():
        if file.suffix != ".db":
            assert file.read_bytes() == (FILES / file.name).read_bytes()
    made, frozen = (rows_of(folder / "store-1.db") for folder in (tmp_path, FILES))
    assert made == frozen
    second_items.main(tmp_path)
    assert (tmp_path / "items-1.json").read_bytes() == (FILES / "items-1.json").read_bytes()


def test_the_script_does_not_overwrite(tmp_path):
    """Into a folder that has known answers it writes nothing."""
    for name, made in (("store-1.db", second), ("items-1.json", second_items)):
        (tmp_path / name).write_text("known")
        with pytest.raises(SystemExit):
            made.main(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "known"
        (tmp_path / name).unlink()


def rows_of(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    tables = ("meta", "key_slots", "embedders", "directory", "users", "records", "items")
    rows = {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
    connection.close()
    return rows


# --- Published answers ---


@pytest.mark.parametrize(
    ("secret", "salt", "info", "size", "output"),
    [
        ("0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", 42,
         "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"),
        (bytes(range(0x50)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(), 82,
         "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
         "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"),
        ("0b" * 22, "", "", 42,
         "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
    ids=["test case 1", "test case 2", "test case 3"],
)  # fmt: skip
def test_hkdf_is_the_rfcs(secret, salt, info, size, output):
    """RFC 5869, appendix A, SHA-256: the HKDF of the second implementation, and the library's that memlayer uses."""
    assert second.hkdf(raw(secret), salt=raw(salt), info=raw(info), size=size).hex() == output
    library = HKDF(SHA256(), size, raw(salt), raw(info))
    assert library.derive(raw(secret)).hex() == output


def test_argon2id_is_the_rfcs():
    """RFC 9106, section 5.3: the library's Argon2id gives the published tag."""
    tag = Argon2id(salt=b"\2" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\4" * 12, secret=b"\3" * 8)
    assert tag.derive(b"\1" * 32).hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


GCM_KEY = "feffe9928665731c6d6a8f9467308308" * 2
GCM_TEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)


@pytest.mark.parametrize(
    ("key", "nonce", "data", "plaintext", "sealed"),
    [
        ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        ("00" * 32, "00" * 12, "", "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
        (GCM_KEY, "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2", GCM_TEXT,
         "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
         "c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"),
    ],
    ids=["test case 13", "test case 14", "test case 16"],
)  # fmt: skip
def test_aes_256_gcm_is_the_published_one(key, nonce, data, plaintext, sealed):
    """McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, as submitted to NIST."""
    assert AESGCM(raw(key)).encrypt(raw(nonce), raw(plaintext), raw(data)).hex() == sealed


# --- Envelopes ---


def place_of(field, values):
    names = {"store": "store_id", "user": "uref"}
    own: dict[str, Any] = {
        names.get(name, name): raw(value) if isinstance(value, str) else value for name, value in values.items()
    }
    return Place(field=Field[field], **own)


@pytest.mark.parametrize("field", ENVELOPES["associated_data"])
def test_associated_data(field):
    """Of each field: 102 bytes, in this order, at these widths."""
    place = ENVELOPES["place"]
    encoded = place_of(field, place).associated_data()
    assert encoded.hex() == ENVELOPES["associated_data"][field]
    assert encoded == (
        b"memlayer\0\1\1" + bytes([Field[field]]) + raw(place["store"]) + raw(place["user"]) + raw(place["record"])
        + b"\1\2" + raw("0304050607080910") + raw(place["binding"])
    )  # fmt: skip
    assert ENVELOPES["associated_data"].keys() == Field.__members__.keys()


def test_associated_data_of_what_belongs_to_the_store():
    """Without a user, a record, an epoch, a version and a binding there are zeros."""
    place = Place(field=Field.STORE, store_id=raw(ENVELOPES["place"]["store"]))
    assert place.associated_data().hex() == ENVELOPES["associated_data_of_the_store_alone"]


@pytest.mark.parametrize("case", ENVELOPES["envelopes"], ids=lambda case: case["field"])
def test_envelopes(case, drawn):
    """They open, AES-GCM by hand opens them too, and sealing with their nonce gives them again."""
    sealed, content = raw(case["envelope"]), raw(case["plaintext"])
    values = {name: case[name] for name in ("store", "user", "record", "epoch", "version", "binding") if name in case}
    place = place_of(case["field"], values)
    cipher = Cipher(raw(case["key"]))
    assert cipher.open(sealed, place=place) == content
    assert AESGCM(raw(case["key"])).decrypt(sealed[6:18], sealed[18:], place.associated_data()) == content
    assert sealed[:6] == b"M\1\1\0" + place.epoch.to_bytes(2)
    drawn.append(sealed[6:18])
    assert cipher.seal(content, place=place) == sealed


# --- Keys ---


@pytest.mark.parametrize("case", KEYS["derived"], ids=lambda case: case["label"])
def test_derived_keys(case):
    """HKDF-Expand with the label of version 1."""
    assert derive(raw(case["key"]), case["label"].encode(), length=case["size"]).hex() == case["output"]


@pytest.fixture
def unlocked():
    return StoreKeys.unlock(
        raw(OF_STORE["store_key"]), store_id=raw(OF_STORE["store_id"]), epoch=OF_STORE["epoch"],
        commitment=raw(OF_STORE["commitment"]), sealed_index_key=raw(OF_STORE["sealed_index_key"]),
    )  # fmt: skip


def test_keys_of_the_store(unlocked):
    """Commitment, set key, guard key and user references, and what the directory's and the store's keys sealed."""
    assert unlocked.commitment.hex() == OF_STORE["commitment"]
    assert unlocked.set_key.hex() == OF_STORE["set_key"]
    assert unlocked.guard_key().hex() == OF_STORE["guard_key"]
    assert {user: unlocked.uref(user).hex() for user in OF_STORE["urefs"]} == OF_STORE["urefs"]
    for cipher, field, name, content in (
        (unlocked.directory, Field.BUCKET, "directory", b"a bucket"),
        (unlocked.meta, Field.EMBEDDER, "meta", b"an embedder"),
    ):
        place = Place(field=field, store_id=raw(OF_STORE["store_id"]), epoch=OF_STORE["epoch"])
        assert cipher.open(raw(OF_STORE[name]), place=place) == content


def test_a_new_stores_index_key(drawn):
    """Sealed under these random bytes it is the frozen one."""
    sealed = raw(OF_STORE["sealed_index_key"])
    drawn += [raw(OF_STORE["index_key"]), sealed[6:18]]
    made = StoreKeys(
        raw(OF_STORE["store_key"]), store_id=raw(OF_STORE["store_id"]), epoch=OF_STORE["epoch"], sealed_index_key=None
    )
    assert made.sealed_index_key == sealed


def test_keys_of_a_user(unlocked, drawn):
    """The sealed data key opens and is sealed again; commitment, set key, ids, and what each field's key sealed."""
    sealed, uref = raw(OF_USER["sealed"]), raw(OF_USER["uref"])
    user = unlocked.open_user(sealed, uref=uref, epoch=2, commitment=raw(OF_USER["commitment"]))
    assert user.commitment.hex() == OF_USER["commitment"]
    assert user.set_key.hex() == OF_USER["set_key"]
    assert {own: user.memory_id(own).hex() for own in OF_USER["memory_ids"]} == OF_USER["memory_ids"]
    for name, envelope_of in OF_USER["sealed_fields"].items():
        place = place_of(name.upper(), OF_USER["place"])
        assert getattr(user, name).open(raw(envelope_of), place=place) == f"a {name}".encode()
    drawn += [raw(OF_USER["data_key"]), sealed[6:18]]
    assert unlocked.new_user(uref=uref, epoch=2)[1] == sealed
    assert UserKeys(raw(OF_USER["data_key"]), epoch=2).commitment == user.commitment


def slot_of(row):
    number, epoch, kind, memory, passes, lanes, salt, commitment, sealed = row
    cost = Argon2Cost(memory_kib=memory, iterations=passes, lanes=lanes)
    return KeySlot(slot_id=number, epoch=epoch, kind=SlotKind(kind), cost=cost, salt=raw(salt),
                   commitment=raw(commitment), sealed=raw(sealed))  # fmt: skip


@pytest.mark.parametrize("case", KEYS["slots"], ids=["fast passphrase", "RFC passphrase", "key", "recovery"])
def test_key_slots(case, drawn):
    """A passphrase at two costs, a raw key, a recovery key: each opens its slot, and makes it again."""
    slot, secret, store_id = slot_of(case["row"]), raw(case["secret"]), raw(OF_STORE["store_id"])
    assert open_slot([slot], kind=slot.kind, secret=secret, store_id=store_id) == (slot, raw(case["store_key"]))
    source: Any = RecoveryKey(KEYS["recovery"]["text"])
    if slot.kind is not SlotKind.RECOVERY:
        source = RawKey(secret) if slot.kind is SlotKind.KEY else Passphrase(STORE["passphrase"], cost=slot.cost)
    assert source.secret(store_id=store_id, create=False) == secret
    drawn += [slot.salt, slot.sealed[6:18]]
    made = make_slot(source, secret=secret, store_key=raw(case["store_key"]), store_id=store_id, slot_id=slot.slot_id,
                     epoch=slot.epoch)  # fmt: skip
    assert made == slot


def test_a_recovery_key(monkeypatch):
    """Its text is base32 of the key and three bytes of checksum, in groups of four."""
    key = raw(KEYS["recovery"]["key"])
    monkeypatch.setattr("secrets.token_bytes", lambda size: key[:size])
    assert RecoveryKey.generate() == KEYS["recovery"]["text"]


# --- Manifests and payloads ---


def test_elements():
    """A record and a user in the multiset hash."""
    for element, case in ((record_element, MANIFESTS["record"]), (user_element, MANIFESTS["user"])):
        values: Any = {name: raw(value) if isinstance(value, str) else value for name, value in case.items()}
        expected = int.from_bytes(values.pop("element"))
        assert element(values.pop("key"), **values) == expected
    assert bucket_of(raw(MANIFESTS["user"]["uref"])) == int(MANIFESTS["user"]["uref"][:3], 16)


def test_manifests():
    """Of a user, a bucket and the store, in both directions."""
    kinds: list[tuple[Any, str]] = [(UserManifest, "user_manifests"), (BucketManifest, "bucket_manifests")]
    for kind, cases in kinds:
        for case in MANIFESTS[cases]:
            *numbers, total = case["fields"]
            value = kind(*numbers, int(total, 16))
            assert value.encode().hex() == case["encoded"]
            assert kind.decode(raw(case["encoded"])) == value
    for case in MANIFESTS["store_manifests"]:
        store = StoreManifest(case["generation"], frozenset(case["buckets"]), raw(case["slots"]))
        assert store.encode().hex() == case["encoded"]
        assert StoreManifest.decode(raw(case["encoded"])) == store


def memory_of(turn, memory_id):
    """A turn of turns-1.json as memlayer gives it back."""
    times = {name: datetime.fromisoformat(turn[name]) for name in ("at", "written", "expires") if name in turn}
    absent: dict[str, Any] = {"speaker": None, "session": None, "metadata": {}, "expires": None, "id": memory_id}
    return Memory(**{**absent, **turn, **times})


@pytest.mark.parametrize("case", PAYLOADS["turns"], ids=range(4))
def test_turns(case):
    """Every role, source and optional field, the ends of the calendar, NUL and emoji: in both directions."""
    expected = memory_of(case["memory"], bytes(16).hex())
    assert decode_turn(raw(case["padded"]), memory_id=bytes(16)) == (expected, case["memory"].get("id"))
    assert encode_turn(expected, own_id=case["memory"].get("id")).hex() == case["padded"]


@pytest.mark.parametrize("case", PAYLOADS["vectors"], ids=range(3))
def test_vectors(case):
    """One vector, several, and the smallest numbers: in both directions."""
    matrix = np.array(case["rows"], np.float32)
    assert encode_vectors(matrix).hex() == case["encoded"]
    assert decode_vectors(raw(case["encoded"])).tolist() == case["rows"]


# --- Items ---


@pytest.fixture
def owner():
    """The user whose items the frozen ones are, of the generation before an item's."""

    def owner(version):
        keys = UserKeys(raw(ITEMS["data_key"]), epoch=ITEMS["epoch"])
        uref = raw(ITEMS["uref"])
        row = UserRow(uref, 1, keys.epoch, keys.commitment, version - 1, b"", b"", b"")
        return UnlockedUser(uref=uref, row=row, keys=keys, manifest=UserManifest(generation=version - 1))

    return owner


@pytest.mark.parametrize("case", ITEMS["items"], ids=range(6))
def test_items(case, owner, drawn):
    """Of each kind: the id, the element and what was sealed; sealing with the same nonce gives the row again."""
    user = owner(case["version"])
    sealer = Sealer(raw(ITEMS["store_id"]), identities={})
    name, content, sealed = case["name"], raw(case["content"]), raw(case["sealed"])
    assert user.keys.item_id(case["kind"], name.encode()).hex() == case["item_id"]
    row = ItemRow(user.uref, case["kind"], raw(case["item_id"]), ITEMS["epoch"], case["version"], sealed)
    opened = sealer.open_item(row, user=user)
    assert named(opened) == (name, content)
    assert opened.element.to_bytes(32).hex() == case["element"]
    assert unpad(raw(case["padded"])) == opened.content
    place = Place(field=Field.ITEM, store_id=raw(ITEMS["store_id"]), uref=user.uref, record=row.item_id,
                  epoch=row.dek_epoch, version=row.version, binding=case["kind"].to_bytes(32))  # fmt: skip
    assert AESGCM(second.derive(raw(ITEMS["data_key"]), "item")).decrypt(
        sealed[6:18], sealed[18:], place.associated_data()
    ) == raw(case["padded"])
    drawn.append(sealed[6:18])
    vault: Any = SimpleNamespace(sealer=sealer)
    assert put(vault, user, kind=case["kind"], name=name, content=content) == (row, (row.kind, row.item_id))


def test_a_manifest_of_items():
    """The frozen items and nothing else add up to it."""
    frozen = ITEMS["manifest"]
    manifest = UserManifest.decode(raw(frozen["encoded"]))
    elements = [int.from_bytes(raw(case["element"])) for case in ITEMS["items"]]
    assert (manifest.generation, manifest.records, manifest.items) == (frozen["generation"], 0, len(elements))
    assert manifest.total.to_bytes(32).hex() == frozen["total"]
    assert manifest.holds(records=0, items=len(elements), total=sum(elements))
    made = UserManifest(generation=8).changed(added=[], removed=[], seals=17, items_added=elements)
    assert made.encode().hex() == frozen["encoded"]


@pytest.mark.parametrize("case", ITEMS["entries"], ids=range(3))
def test_entries_of_the_ledger(case):
    """At the ends of the calendar, with and without memories: in both directions."""
    entry = Entry(tuple(map(raw, case["memory_ids"])), raw(case["turn"]), datetime.fromisoformat(case["at"]),
                  said=case["said"], done=case["done"])  # fmt: skip
    assert entry.to_json().decode() == case["encoded"]
    assert Entry.from_json(case["encoded"].encode()) == entry


def test_the_entry_in_the_ledger():
    """The first of the frozen items is the first of the frozen entries, by the hex of its key."""
    item = ITEMS["items"][0]
    assert item["kind"] == ItemKind.LEDGER
    assert len(raw(item["name"])) == 32
    assert raw(item["content"]).decode() == ITEMS["entries"][0]["encoded"]


# --- What is under all of them ---


@pytest.mark.parametrize("size", [0, 1, 252, 253, 4_092, 4_093, 4_348, 4_349, 8_189, 65_533, 262_144])
def test_padding(size):
    """The second implementation pads to the same bytes."""
    assert pad(b"x" * size) == second.pad(b"x" * size)


def test_the_schema():
    """Statement by statement, to the letter."""
    assert statements() == second.SCHEMA
