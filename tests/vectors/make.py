"""How the known answers of format 1 were made: by a second implementation of the format, which imports nothing of
memlayer and shares no line with it. It stands on the standard library and the primitives of `cryptography`.

    python tests/vectors/make.py FOLDER

Frozen: never changed, and never run into this folder again, for a released format. A new format gets a new script and
new files beside these. What would be random in a store is derived from a label here (`fixed`), so the files come out
the same every time; `tests/test_known_answers.py` checks that they do, and reads with the functions below what
memlayer writes.

It takes turns-1.json (what is remembered) and schema-1.sql, and makes envelope-1.json, keys-1.json, manifest-1.json,
payload-1.json, export-1.memlayer (the first three of the turns), and store-1.db with what it holds in store-1.json.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sqlite3
import struct
import sys
from base64 import b32encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

FIELDS = ("TEXT", "VECTOR", "MANIFEST", "PROFILE", "DATA_KEY", "BUCKET", "INDEX_KEY", "EMBEDDER", "STORE_KEY", "STORE",
          "ITEM")  # fmt: skip
NO_COST, FAST, RFC = (0, 0, 0), (19_456, 1, 1), (65_536, 3, 4)
IDENTITY = {"model": "memlayer.testing/hashing", "weights": "", "dimensions": 64, "normalised": True,
            "document_role": "", "query_role": ""}  # fmt: skip

# --- Primitives ---


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def fixed(label: str, size: int = 32) -> bytes:
    """What stands for so many random bytes."""
    return hashlib.shake_256(b"memlayer vectors 1\0" + label.encode()).digest(size)


def hkdf_expand(key: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869, section 2.3."""
    block = output = b""
    number = 1
    while len(output) < size:
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        output, number = output + block, number + 1
    return output[:size]


def hkdf(secret: bytes, *, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869, section 2."""
    return hkdf_expand(hmac.digest(salt or bytes(32), secret, "sha256"), info, size)


def derive(key: bytes, label: str, size: int = 32) -> bytes:
    return hkdf_expand(key, b"memlayer v1 " + label.encode(), size)


def argon2id(passphrase: bytes, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    memory, passes, lanes = cost
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(passphrase)


# --- The envelope ---


def associated_data(field: str, *, store: bytes, user: bytes = bytes(16), record: bytes = bytes(16), epoch: int = 0,
                    version: int = 0, binding: bytes = bytes(32)) -> bytes:  # fmt: skip
    number = FIELDS.index(field) + 1
    assert (len(store), len(user), len(record), len(binding)) == (16, 16, 16, 32)
    return b"".join([
        b"memlayer\0", bytes([1, 1, number]), store, user, record, epoch.to_bytes(2), version.to_bytes(8), binding,
    ])  # fmt: skip


def seal(key: bytes, nonce: bytes, plaintext: bytes, field: str, **place: Any) -> bytes:
    head = b"M\x01\x01\x00" + int(place.get("epoch", 0)).to_bytes(2) + nonce
    return head + AESGCM(key).encrypt(nonce, plaintext, associated_data(field, **place))


def unseal(key: bytes, envelope: bytes, field: str, **place: Any) -> bytes:
    assert envelope[:6] == b"M\x01\x01\x00" + int(place.get("epoch", 0)).to_bytes(2)
    return AESGCM(key).decrypt(envelope[6:18], envelope[18:], associated_data(field, **place))


def pad(content: bytes) -> bytes:
    framed = len(content).to_bytes(4) + content
    size = len(framed)
    if size <= 4096:
        return framed + bytes(-size % 256)
    exponent = size.bit_length() - 1
    return framed + bytes(-size % (1 << (exponent - exponent.bit_length())))


# --- Manifests and what is in a record ---


def element(key: bytes, kind: bytes, *parts: bytes) -> int:
    return int.from_bytes(hmac.digest(key, kind + b"".join(parts), "sha256"))


def record_element(key: bytes, row: tuple[Any, ...]) -> int:
    """Of a row of the table `records`, without its user reference and `changed`."""
    memory_id, seq, epoch, text_version, vector_version, embedder, text, vector = row
    numbers = seq.to_bytes(8) + epoch.to_bytes(2) + text_version.to_bytes(8) + vector_version.to_bytes(8)
    return element(key, b"r", memory_id, numbers, embedder.to_bytes(4), text[-16:], vector[-16:])


def user_element(key: bytes, uref: bytes, data_key: bytes, manifest: bytes, profile: bytes) -> int:
    return element(key, b"u", uref, data_key[-16:], manifest[-16:], profile[-16:])


def user_manifest(generation: int, records: int, items: int, next_seq: int, seals: int, total: int) -> bytes:
    return b"".join(n.to_bytes(8) for n in (generation, records, items, next_seq, seals)) + total.to_bytes(32)


def bucket_manifest(generation: int, users: int, total: int) -> bytes:
    return generation.to_bytes(8) + users.to_bytes(8) + total.to_bytes(32)


def store_manifest(generation: int, buckets: list[int], slots: bytes) -> bytes:
    return generation.to_bytes(8) + sum(1 << bucket for bucket in buckets).to_bytes(512, "little") + slots


def slots_digest(rows: list[tuple[Any, ...]]) -> bytes:
    """Of rows of the table `key_slots`."""
    return sha256(b"".join(b"".join(n.to_bytes(8) for n in row[:6]) + b"".join(row[6:]) for row in sorted(rows)))


def microseconds(at: str) -> int:
    since = datetime.fromisoformat(at) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def turn(memory: dict[str, Any]) -> bytes:
    """The padded text field of a memory as the JSON files spell it; `id` is the caller's own, or absent."""
    codes = {"user": "u", "assistant": "a", "system": "s", "tool": "t", "document": "d", "import": "i"}
    values = {
        "a": microseconds(memory["at"]),
        "c": microseconds(memory["written"]),
        "i": memory.get("id"),
        "m": memory.get("metadata"),
        "o": codes[memory["source"]],
        "r": codes[memory["role"]],
        "s": memory.get("session"),
        "t": memory["text"],
        "w": memory.get("speaker"),
        "x": microseconds(memory["expires"]) if "expires" in memory else None,
    }
    present = {key: value for key, value in values.items() if value is not None}
    return pad(json.dumps(present, separators=(",", ":"), ensure_ascii=False).encode())


def vectors(rows: list[list[float]]) -> bytes:
    kind = 1 if len(rows) == 1 else 2
    entries = b"".join(bytes([kind, 1]) + part.to_bytes(2) for part in range(len(rows)))
    numbers = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
    return b"\x01" + len(rows[0]).to_bytes(2) + len(rows).to_bytes(2) + entries + numbers


def hashed(text: str) -> list[float]:
    """The vector that `memlayer.testing.HashingEmbedder(64)` gives to a text, in float64."""
    sums = [0.0] * 64
    for word in re.findall(r"\w+", text.casefold()):
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8, person=b"memlayer.testing").digest())
        sums[(number >> 1) % 64] += 1 if number & 1 else -1
    norm = sum(number * number for number in sums) ** 0.5
    return [number / norm for number in sums]


# --- Key slots ---


def slot_key(kind: int, secret: bytes, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    return argon2id(secret, salt, cost) if kind == 1 else hkdf(secret, salt=salt, info=b"memlayer v1 slot")


def slot_place(store: bytes, row: tuple[Any, ...]) -> dict[str, Any]:
    slot_id, epoch, kind, *cost = row[:6]
    described = bytes([kind]) + b"".join(n.to_bytes(4) for n in cost) + row[6]
    return {"store": store, "epoch": epoch, "version": slot_id, "binding": sha256(described)}


def slot(store: bytes, store_key: bytes, *, slot_id: int, kind: int, secret: bytes, cost: tuple[int, int, int],
         epoch: int = 1) -> tuple[Any, ...]:  # fmt: skip
    """A row of the table `key_slots`."""
    salt = fixed(f"slot salt {slot_id}", 16)
    key = slot_key(kind, secret, salt, cost)
    row = (slot_id, epoch, kind, *cost, salt, derive(key, "slot commitment"))
    nonce = fixed(f"slot nonce {slot_id}", 12)
    return (*row, seal(derive(key, "slot wrap"), nonce, store_key, "STORE_KEY", **slot_place(store, row)))


def recovery_text(key: bytes) -> str:
    letters = b32encode(key + sha256(b"memlayer recovery key\0" + key)[:3]).decode()
    return "-".join(re.findall("....", letters))


# --- The files ---

STORE, USER, RECORD = fixed("store", 16), fixed("user", 16), fixed("record", 16)
PASSPHRASE = "correct horse battery staple \u00fc"


def envelope_file() -> dict[str, Any]:
    place: dict[str, Any] = {"store": STORE, "user": USER, "record": RECORD, "epoch": 0x0102,
                             "version": 0x0304050607080910, "binding": fixed("binding")}  # fmt: skip
    cases = []
    for number, (field, plaintext) in enumerate([("TEXT", b""), ("VECTOR", bytes(range(256))), ("STORE", b"\0")]):
        key, nonce = fixed(f"envelope key {number}"), fixed(f"envelope nonce {number}", 12)
        own = place if number < 2 else {"store": STORE}
        sealed = seal(key, nonce, plaintext, field, **own)
        cases.append({"field": field, **own, "key": key, "plaintext": plaintext, "envelope": sealed})
    return {
        "associated_data": {field: associated_data(field, **place) for field in FIELDS},
        "place": place,
        "associated_data_of_the_store_alone": associated_data("STORE", store=STORE),
        "envelopes": cases,
    }


def keys_file() -> dict[str, Any]:
    store_key, index_key, data_key = fixed("store key"), fixed("index key"), fixed("data key")
    users = ["alice", "b\u00f6b", "\U0001f95c" * 128, "a\0b", " Alice "]
    of_the_store = {"store": STORE, "epoch": 3}
    of_a_user = {"store": STORE, "user": USER, "record": RECORD, "epoch": 2, "version": 7}
    return {
        "derived": [{"key": fixed(f"derive {size}"), "label": label, "size": size,
                     "output": derive(fixed(f"derive {size}"), label, size)}
                    for label, size in (("text", 16), ("store commitment", 32), ("export", 80))],
        "store": {
            "store_key": store_key, "store_id": STORE, "epoch": 3, "index_key": index_key,
            "commitment": derive(store_key, "store commitment"),
            "sealed_index_key": seal(derive(store_key, "meta"), fixed("n1", 12), index_key, "INDEX_KEY",
                                     **of_the_store),
            "guard_key": derive(index_key, "guard"),
            "set_key": derive(store_key, "directory set"),
            "urefs": {user: hmac.digest(index_key, b"memlayer v1 user\0" + user.encode(), "sha256")[:16]
                      for user in users},
            "directory": seal(derive(store_key, "directory"), fixed("n2", 12), b"a bucket", "BUCKET", **of_the_store),
            "meta": seal(derive(store_key, "meta"), fixed("n3", 12), b"an embedder", "EMBEDDER", **of_the_store),
        },
        "user": {
            "data_key": data_key, "uref": USER, "epoch": 2,
            "sealed": seal(derive(store_key, "wrap"), fixed("n4", 12), data_key, "DATA_KEY", user=USER, version=2,
                           **of_the_store),
            "commitment": derive(data_key, "user commitment", 16),
            "set_key": derive(data_key, "set"),
            "memory_ids": {own_id: hmac.digest(derive(data_key, "id"), own_id.encode(), "sha256")[:16]
                           for own_id in ("1", "m-1", "\u00e9", "e\u0301")},
            "place": of_a_user,
            "sealed_fields": {name: seal(derive(data_key, name), fixed(f"n5 {name}", 12), f"a {name}".encode(),
                                         name.upper(), **of_a_user)
                              for name in ("text", "vector", "manifest", "profile")},
        },
        "slots": [
            {"row": slot(STORE, store_key, slot_id=number, kind=kind, secret=secret, cost=cost, epoch=3),
             "secret": secret, "store_key": store_key}
            for number, kind, secret, cost in (
                (1, 1, PASSPHRASE.encode(), FAST), (2, 1, PASSPHRASE.encode(), RFC), (3, 2, fixed("raw key"), NO_COST),
                (4, 3, fixed("recovery key"), NO_COST),
            )
        ],
        "recovery": {"key": fixed("recovery key"), "text": recovery_text(fixed("recovery key"))},
    }  # fmt: skip


def manifest_file() -> dict[str, Any]:
    key, uref, tags = fixed("set key"), fixed("user", 16), [fixed(f"tag {n}", 16) for n in range(3)]
    row = (RECORD, 2**40 + 1, 2, 2**41 + 3, 5, 2**31 + 7, b"text" + tags[0], b"vector" + tags[1])
    names = ("memory_id", "seq", "epoch", "text_version", "vector_version", "embedder_no", "text_tag", "vector_tag")
    users = [(0, 0, 0, 0, 0, 0), (7, 3, 2, 9, 25, 2**256 - 1), (2**63, 1, 0, 2**40, 2**31, int.from_bytes(key))]
    buckets = [(0, 0, 0), (2**33, 17, 2**255 + 1)]
    stores = [(1, [], fixed("slots")), (2**34, [0, 1, 7, 8, 2047, 4095], bytes(32))]
    return {
        "record": {"key": key, **dict(zip(names, (*row[:6], *tags[:2]), strict=True)),
                   "element": record_element(key, row).to_bytes(32)},
        "user": {"key": key, "uref": uref, "data_key_tag": tags[0], "manifest_tag": tags[1], "profile_tag": tags[2],
                 "element": user_element(key, uref, *tags).to_bytes(32)},
        "user_manifests": [{"fields": [*fields[:5], f"{fields[5]:#x}"], "encoded": user_manifest(*fields)}
                           for fields in users],
        "bucket_manifests": [{"fields": [*fields[:2], f"{fields[2]:#x}"], "encoded": bucket_manifest(*fields)}
                             for fields in buckets],
        "store_manifests": [{"generation": generation, "buckets": buckets, "slots": slots,
                             "encoded": store_manifest(generation, buckets, slots)}
                            for generation, buckets, slots in stores],
    }  # fmt: skip


HERE = Path(__file__).parent
TURNS: list[dict[str, Any]] = json.loads((HERE / "turns-1.json").read_text(encoding="utf-8"))
PARTS = [[turn["text"]] for turn in TURNS]
PARTS[2] = ["The warranty lasts two years. ", "Receipts are in the blue folder."]


def payload_file() -> dict[str, Any]:
    # Powers of two and small integers: the same numbers in float32 on every machine.
    matrices = [[[1.0, -0.5, 0.25]], [[0.0, 1.0], [-1.0, 2.0**-126]], [[0.5]] * 3]
    return {
        "turns": [{"memory": memory, "padded": turn(memory)} for memory in TURNS],
        "vectors": [{"rows": rows, "encoded": vectors(rows)} for rows in matrices],
    }


def export_file() -> bytes:
    salt = fixed("export salt", 16)
    key = argon2id(PASSPHRASE.encode(), salt, FAST)
    commitment = derive(key, "export commitment")
    head = b"memlayer export\n\x01" + b"".join(n.to_bytes(4) for n in FAST) + salt + commitment
    frames = [json.dumps({"identity": IDENTITY, "version": 1}).encode()]
    for number, memory in enumerate(TURNS[:3]):
        text, vector = turn(memory), vectors([hashed(part) for part in PARTS[number]])
        sizes = len(text).to_bytes(4) + len(vector).to_bytes(4)
        frames.append(fixed(f"exported {number}", 16) + sizes + text + vector)
    content = b"".join(len(frame).to_bytes(4) + frame for frame in frames)
    return head + AESGCM(derive(key, "export")).encrypt(bytes(11) + b"\x01", content, head)


SCHEMA = (HERE / "schema-1.sql").read_text(encoding="utf-8").split(";\n")[:-1]


def store_file(path: Path) -> None:
    """Two users: alice with three writes (two records, one of them changed, one more), and one with a single record."""
    store_key, index_key = fixed("store key"), fixed("index key")
    keys = {label: derive(store_key, label) for label in ("wrap", "directory", "directory set", "meta")}
    whole = {"store": STORE, "epoch": 1}
    identity = json.dumps(IDENTITY, sort_keys=True, separators=(",", ":")).encode()
    slots = [
        slot(STORE, store_key, slot_id=1, kind=2, secret=fixed("raw key"), cost=NO_COST),
        slot(STORE, store_key, slot_id=2, kind=1, secret=PASSPHRASE.encode(), cost=FAST),
        slot(STORE, store_key, slot_id=3, kind=3, secret=fixed("recovery key"), cost=NO_COST),
    ]
    users, records, directory = [], [], []
    # Of each record: the turn, and the generations of its text, of its vectors.
    for user_id, generation, own in (("alice", 3, [(0, 2, 1), (1, 1, 1), (2, 3, 3)]), ("b\u00f6b", 1, [(3, 1, 1)])):
        uref = hmac.digest(index_key, b"memlayer v1 user\0" + user_id.encode(), "sha256")[:16]
        data_key = fixed(f"data key {user_id}")
        place = {"store": STORE, "user": uref, "epoch": 1}
        total = 0
        for seq, (number, text_version, vector_version) in enumerate(own):
            memory, versions = TURNS[number], (text_version, vector_version)
            memory_id = fixed(f"memory {number}", 16)
            if "id" in memory:
                memory_id = hmac.digest(derive(data_key, "id"), memory["id"].encode(), "sha256")[:16]
            text = seal(derive(data_key, "text"), fixed(f"text nonce {number}", 12), turn(memory), "TEXT",
                        record=memory_id, version=text_version, **place)  # fmt: skip
            vector = seal(derive(data_key, "vector"), fixed(f"vector nonce {number}", 12),
                          vectors([hashed(part) for part in PARTS[number]]), "VECTOR", record=memory_id,
                          version=vector_version, binding=sha256(identity), **place)  # fmt: skip
            total += record_element(derive(data_key, "set"), (memory_id, seq, 1, *versions, 1, text, vector))
            records.append((uref, memory_id, seq, 1, max(versions), *versions, 1, text, vector))
        count = len(own)
        # The profile, and for each write two seals a record that it touched, and its manifest.
        seals = 1 + 2 * sum(len({text, vector}) for _, text, vector in own) + generation
        manifest = user_manifest(generation, count, 0, count, seals, total % 2**256)
        manifest = seal(derive(data_key, "manifest"), fixed(f"manifest nonce {user_id}", 12), manifest, "MANIFEST",
                        version=generation, **place)  # fmt: skip
        profile = seal(derive(data_key, "profile"), fixed(f"profile nonce {user_id}", 12),
                       pad(json.dumps({"user": user_id}, ensure_ascii=False).encode()), "PROFILE",
                       **place)  # fmt: skip
        sealed = seal(keys["wrap"], fixed(f"wrap nonce {user_id}", 12), data_key, "DATA_KEY", user=uref, version=1,
                      **whole)  # fmt: skip
        users.append((uref, 1, 1, derive(data_key, "user commitment", 16), generation, sealed, manifest, profile))
        bucket = int.from_bytes(uref[:2]) >> 4
        encoded = bucket_manifest(generation, 1, user_element(keys["directory set"], uref, sealed, manifest, profile))
        nonce = fixed(f"bucket nonce {bucket}", 12)
        directory.append((bucket, seal(keys["directory"], nonce, encoded, "BUCKET", version=bucket, **whole)))
    buckets = [bucket for bucket, _ in directory]
    # Generation 1, two more slots, two new buckets.
    manifest = seal(keys["directory"], fixed("store nonce", 12), store_manifest(5, buckets, slots_digest(slots)),
                    "STORE", **whole)  # fmt: skip
    sealed = seal(keys["meta"], fixed("index nonce", 12), index_key, "INDEX_KEY", **whole)
    commitment = derive(store_key, "store commitment")
    embedder = seal(keys["meta"], fixed("embedder nonce", 12), pad(identity), "EMBEDDER", version=1, **whole)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {0x4D4C5931}")
    connection.execute("PRAGMA user_version = 1")
    for statement in SCHEMA:
        connection.execute(statement)
    for table, rows in (
        ("meta", [(1, b"memlayer", 1, STORE, 1, commitment, sealed, manifest)]), ("key_slots", slots),
        ("embedders", [(1, embedder)]), ("directory", directory), ("users", users), ("records", records),
    ):  # fmt: skip
        for row in rows:
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.close()


def content() -> dict[str, Any]:
    return {
        "raw_key": fixed("raw key"), "passphrase": PASSPHRASE, "recovery_key": recovery_text(fixed("recovery key")),
        "users": {"alice": TURNS[:3], "b\u00f6b": TURNS[3:]},
        "chosen_ids": {turn["text"]: fixed(f"memory {number}", 16) for number, turn in enumerate(TURNS)
                       if "id" not in turn},
    }  # fmt: skip


def as_json(value: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.hex() if isinstance(value, bytes) else value

    return json.dumps(plain(value), indent=1) + "\n"


def main(folder: Path) -> None:
    files = {"envelope-1": envelope_file, "keys-1": keys_file, "manifest-1": manifest_file, "payload-1": payload_file,
             "store-1": content}  # fmt: skip
    targets = [folder / f"{name}.json" for name in files]
    targets += [folder / "export-1.memlayer", folder / "store-1.db"]
    if any(target.exists() for target in targets):
        raise SystemExit(f"{folder} has known answers already, and they are never made again")
    for target, make in zip(targets, files.values(), strict=False):
        target.write_text(as_json(make()), encoding="utf-8")
    targets[-2].write_bytes(export_file())
    store_file(targets[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
