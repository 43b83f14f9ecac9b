"""Whole files of format 1: a store and an export that an earlier release left behind, and what is written today.

The frozen files are those of `tests/vectors/`. What memlayer writes is read by the implementation that made them, which
shares nothing with memlayer.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sqlite3
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memlayer import Memory, MemoryStore, Passphrase, RawKey, RecoveryKey
from memlayer.items import ItemKind
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder

FILES = Path(__file__).parent / "vectors"
TURNS, STORE = (json.loads((FILES / f"{name}-1.json").read_text(encoding="utf-8")) for name in ("turns", "store"))
second: Any = SimpleNamespace(**runpy.run_path(str(FILES / "make.py")))
"""The second implementation of the format."""
second_items: Any = SimpleNamespace(**runpy.run_path(str(FILES / "make_items.py")))
raw = bytes.fromhex


def memory_of(turn, memory_id):
    """A turn of turns-1.json as memlayer gives it back."""
    times = {name: datetime.fromisoformat(turn[name]) for name in ("at", "written", "expires") if name in turn}
    absent: dict[str, Any] = {"speaker": None, "session": None, "metadata": {}, "expires": None, "id": memory_id}
    return Memory(**{**absent, **turn, **times})


def rows_of(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    tables = ("meta", "key_slots", "embedders", "directory", "users", "records", "items")
    rows = {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
    connection.close()
    return rows


def opened(path, source):
    return MemoryStore.open(path, keys=source, embedder=HashingEmbedder())


def expected_of(turns):
    ids = {turn["text"]: turn.get("id", STORE["chosen_ids"].get(turn["text"])) for turn in turns}
    now = datetime.now(UTC)
    memories = [memory_of(turn, ids[turn["text"]]) for turn in turns]
    return sorted((one for one in memories if one.expires is None or one.expires > now), key=lambda one: one.at)


@pytest.mark.parametrize(
    "source",
    [RawKey(raw(STORE["raw_key"])), Passphrase(STORE["passphrase"]), RecoveryKey(STORE["recovery_key"])],
    ids=["raw key", "passphrase", "recovery key"],
)
def test_a_store_of_version_1_opens(tmp_path, source):
    """A store that an earlier release left behind opens with each of its keys, verifies, and holds what it held."""
    path = tmp_path / "store.db"
    shutil.copy(FILES / "store-1.db", path)
    with opened(path, source) as store:
        report = store.verify()
        assert (report.users, report.memories, report.buckets) == (2, 4, 2)
        for user, turns in STORE["users"].items():
            assert list(store.user(user).history()) == expected_of(turns)
        assert store.user("alice").get("note-1").text == TURNS[1]["text"]
        assert store.user("alice").recall("where are the receipts?")[0].text == TURNS[2]["text"]
        store.user("alice").remember("and it can be written to")
        store.user("carol").remember("so can new users")
    with opened(path, source) as store:
        assert (store.count_users(), store.user("alice").count()) == (3, 4)


def test_an_export_of_version_1_imports(tmp_path):
    """An export that an earlier release wrote comes into a store of today, vectors included."""
    with opened(tmp_path / "store.db", RawKey(bytes(32))) as store:
        alice = store.user("alice")
        report = alice.import_(FILES / "export-1.memlayer", passphrase=STORE["passphrase"])
        assert (report.added, report.kept) == (3, 0)
        found = {one.text: one for one in alice.history()}
        for expected in expected_of(TURNS[:3]):
            assert found[expected.text] == expected.model_copy(update={"id": found[expected.text].id})
        assert alice.recall("where are the receipts?")[0].text == TURNS[2]["text"]
        assert alice.import_(FILES / "export-1.memlayer", passphrase=STORE["passphrase"]).kept == 3


# --- What is written today, read by the second implementation ---


def read_store(path, raw_key, items=None):
    """The texts and vectors of every user, with every seal and every sum checked: format 1 from the outside.

    What users have of items is put into `items`, by user and by kind and name.
    """
    rows = rows_of(path)
    [(_, magic, version, store, epoch, commitment, sealed_index, sealed_manifest)] = rows["meta"]
    assert (magic, version, epoch) == (b"memlayer", 1, 1)
    [slot] = [row for row in rows["key_slots"] if row[2] == 2]
    slot_key = second.slot_key(2, raw_key, slot[6], slot[3:6])
    assert second.derive(slot_key, "slot commitment") == slot[7]
    wrap = second.derive(slot_key, "slot wrap")
    store_key = second.unseal(wrap, slot[8], "STORE_KEY", **second.slot_place(store, slot))
    assert second.derive(store_key, "store commitment") == commitment
    whole = {"store": store, "epoch": epoch}
    directory, meta, wrap = (second.derive(store_key, label) for label in ("directory", "meta", "wrap"))
    index_key = second.unseal(meta, sealed_index, "INDEX_KEY", **whole)
    [(number, sealed)] = rows["embedders"]
    padded = second.unseal(meta, sealed, "EMBEDDER", version=number, **whole)
    identity = padded[4 : 4 + int.from_bytes(padded[:4])]
    assert json.loads(identity) == second.IDENTITY
    buckets = {bucket: second.unseal(directory, sealed, "BUCKET", version=bucket, **whole)
               for bucket, sealed in rows["directory"]}  # fmt: skip
    manifest = second.unseal(directory, sealed_manifest, "STORE", **whole)
    digest = second.slots_digest(rows["key_slots"])
    assert manifest == second.store_manifest(int.from_bytes(manifest[:8]), list(buckets), digest)
    found, sums = {}, dict.fromkeys(buckets, (0, 0))
    for uref, _, user_epoch, user_commitment, generation, sealed_key, sealed, profile in rows["users"]:
        data_key = second.unseal(wrap, sealed_key, "DATA_KEY", user=uref, version=user_epoch, **whole)
        assert second.derive(data_key, "user commitment", 16) == user_commitment
        place = {"store": store, "user": uref, "epoch": user_epoch}
        user = json.loads(unpadded(second.unseal(second.derive(data_key, "profile"), profile, "PROFILE", **place)))
        assert second.hmac.digest(index_key, b"memlayer v1 user\0" + user["user"].encode(), "sha256")[:16] == uref
        total, turns = 0, {}
        for _, memory_id, seq, dek, changed, *versions, embedder, text, vector in (
            row for row in rows["records"] if row[0] == uref
        ):
            assert changed == max(versions)
            total += second.record_element(
                second.derive(data_key, "set"), (memory_id, seq, dek, *versions, embedder, text, vector)
            )
            text = second.unseal(second.derive(data_key, "text"), text, "TEXT", record=memory_id, version=versions[0],
                                 **place)  # fmt: skip
            vector = second.unseal(second.derive(data_key, "vector"), vector, "VECTOR", record=memory_id,
                                   version=versions[1], binding=sha256(identity).digest(), **place)  # fmt: skip
            turns[json.loads(unpadded(text))["t"]] = vector
        own = {}
        for _, *row in (row for row in rows["items"] if row[0] == uref):
            kind, item_id, dek, version, envelope = row
            total += second_items.element(second.derive(data_key, "set"), tuple(row))
            at = second_items.place(store, uref, kind=kind, own_id=item_id, epoch=dek, version=version)
            content = unpadded(second.unseal(second.derive(data_key, "item"), envelope, "ITEM", **at))
            end = 4 + int.from_bytes(content[:4])
            assert second_items.item_id(data_key, kind, content[4:end]) == item_id
            own[kind, content[4:end].decode()] = content[end:]
        if items is not None:
            items[user["user"]] = own
        manifest = second.unseal(second.derive(data_key, "manifest"), sealed, "MANIFEST", version=generation, **place)
        next_seq, seals = int.from_bytes(manifest[24:32]), int.from_bytes(manifest[32:40])
        assert manifest == second.user_manifest(generation, len(turns), len(own), next_seq, seals, total % 2**256)
        bucket = int.from_bytes(uref[:2]) >> 4
        element = second.user_element(second.derive(store_key, "directory set"), uref, sealed_key, sealed, profile)
        sums[bucket] = (sums[bucket][0] + 1, (sums[bucket][1] + element) % 2**256)
        found[user["user"]] = turns
    for bucket, encoded in buckets.items():
        assert encoded == second.bucket_manifest(int.from_bytes(encoded[:8]), *sums[bucket])
    return found


def unpadded(padded):
    content = padded[4 : 4 + int.from_bytes(padded[:4])]
    assert second.pad(content) == padded
    return content


def test_what_is_written_today_is_format_1(tmp_path):
    """A store with updates, deletions, parts, own ids and a second key reads the same from the outside."""
    path = tmp_path / "store.db"
    key = os.urandom(32)
    with MemoryStore.open(path, keys=RawKey(key), embedder=HashingEmbedder(window=4)) as store:
        alice, zoe = store.user("alice"), store.user("zoë \U0001f95c")
        first = alice.remember("I'm allergic to peanuts", session="s", metadata={"a": [1]})
        alice.remember("one two three four five six", id="own")
        alice.remember("gone")
        alice.update(first.id, metadata={"b": 2})
        alice.update("own", text="seven eight nine ten eleven")
        alice.forget(alice.recall("gone", k=1)[0].id)
        zoe.remember("coffee without sugar")
        store.user("erased").remember("nothing of it")
        store.user("erased").erase()
        store.add_key(Passphrase("an honest passphrase", cost=FAST_FOR_TESTS))
    found = read_store(path, key)
    assert {user: set(turns) for user, turns in found.items()} == {
        "alice": {"I'm allergic to peanuts", "seven eight nine ten eleven"},
        "zoë \U0001f95c": {"coffee without sugar"},
    }
    parts = [second.hashed(part) for part in ("seven eight nine ten ", "eleven")]
    assert found["alice"]["seven eight nine ten eleven"] == second.vectors(parts)
    assert found["zoë \U0001f95c"]["coffee without sugar"] == second.vectors([second.hashed("coffee without sugar")])


def test_items_that_are_written_today_are_format_1(tmp_path):
    """Items of three kinds, replaced and dropped ones, and the ledger of a conversation, from the outside."""
    path, key = tmp_path / "store.db", os.urandom(32)
    with opened(path, RawKey(key)) as store:
        alice, bob = store.user("alice"), store.user("bob")
        for user in (alice, bob):
            with user.items(ItemKind.TOOL_FILE).change() as files:
                files |= {"a": b"1", "caf\u00e9": b"x" * 5_000, "gone": b""}
            with user.items(ItemKind.FRAMEWORK).change() as files:
                files |= {"a": b"2"}
        with alice.items(ItemKind.TOOL_FILE).change() as files:
            files["a"] = b"3"
            del files["gone"]
        memory = alice.remember("I may not eat peanuts")
        prepared = alice.prepare([{"role": "user", "content": "may I eat peanuts?"}])
        turn, _ = alice.capture(prepared, "No.")
    items: dict[str, Any] = {}
    found = read_store(path, key, items)
    assert {user: set(turns) for user, turns in found.items()} == {
        "alice": {"I may not eat peanuts", "may I eat peanuts?", "No."}, "bob": set(),
    }  # fmt: skip
    ledger = second_items.entry(
        turn.at.isoformat(), memory_ids=[raw(memory.id)], turn=raw(turn.id), said=True, done=True
    )
    assert items == {
        "alice": {(1, prepared.key.hex()): ledger, (2, "a"): b"3", (2, "caf\u00e9"): b"x" * 5_000, (3, "a"): b"2"},
        "bob": {(2, "a"): b"1", (2, "caf\u00e9"): b"x" * 5_000, (2, "gone"): b"", (3, "a"): b"2"},
    }


def test_the_frozen_store_reads_the_same_from_the_outside():
    """The reader above reads the frozen file, too."""
    found = read_store(FILES / "store-1.db", raw(STORE["raw_key"]))
    expected = {user: {turn["text"] for turn in turns} for user, turns in STORE["users"].items()}
    assert {user: set(turns) for user, turns in found.items()} == expected


def test_what_is_exported_today_is_format_1(tmp_path):
    """An export of several chunks opens chunk by chunk with the nonces of STREAM, and holds the memories as frames."""
    texts = ["x" * 60_000, "y" * 60_000, "short"]
    with opened(tmp_path / "store.db", RawKey(bytes(32))) as store:
        store.user("alice").remember("before")
        for text in texts:
            store.user("alice").remember(text)
        store.user("alice").export(tmp_path / "it", passphrase=STORE["passphrase"])
    content = (tmp_path / "it").read_bytes()
    head, chunks = content[:77], [content[i : i + 65_552] for i in range(77, len(content), 65_552)]
    assert head[:17] == b"memlayer export\n\1"
    cost = tuple(int.from_bytes(head[i : i + 4]) for i in (17, 21, 25))
    key = second.argon2id(STORE["passphrase"].encode(), head[29:45], cost)
    assert second.derive(key, "export commitment") == head[45:]
    aead = AESGCM(second.derive(key, "export"))
    last = len(chunks) - 1
    plain = b"".join(aead.decrypt(bytes(3) + n.to_bytes(8) + bytes([n == last]), c, head) for n, c in enumerate(chunks))
    frames = []
    while plain:
        size = int.from_bytes(plain[:4])
        frames.append(plain[4 : 4 + size])
        plain = plain[4 + size :]
    assert last == 1
    assert json.loads(frames[0]) == {"identity": second.IDENTITY, "version": 1}
    for frame, text in zip(frames[1:], ["before", *texts], strict=True):
        text_size, vector_size = int.from_bytes(frame[16:20]), int.from_bytes(frame[20:24])
        assert json.loads(unpadded(frame[24 : 24 + text_size]))["t"] == text
        assert frame[24 + text_size :] == second.vectors([second.hashed(text)])
        assert len(frame) == 24 + text_size + vector_size
