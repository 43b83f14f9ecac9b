"""`memlayer.sealer`: a row opens as it was sealed, in its own place, for its own user; or it is damage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from memlayer.errors import StoreDamagedError
from memlayer.keys import UserKeys
from memlayer.manifest import UserManifest
from memlayer.records import Memory
from memlayer.rows import UserRow
from memlayer.sealer import EMBEDDER_NO, Sealer, UnlockedUser

STORE_ID, UREF, NAME = b"store-id-16bytes", b"user-ref-16bytes", b"item-id--16bytes"
MEMORY = Memory(
    id="own", text="hello", role="user", speaker=None, session=None, at=datetime(2025, 1, 1, tzinfo=UTC), metadata={},
    source="user", expires=None, written=datetime(2025, 1, 2, tzinfo=UTC),
)  # fmt: skip
VECTORS = np.eye(2, 4, dtype=np.float32)


def user_of(key=bytes(32), *, uref=UREF, epoch=1, generation=6):
    keys = UserKeys(key, epoch=epoch)
    row = UserRow(uref, 1, epoch, keys.commitment, generation, b"", b"", b"")
    return UnlockedUser(uref=uref, row=row, keys=keys, manifest=UserManifest(generation=generation))


ALICE = user_of()
SEALER = Sealer(STORE_ID, identities={EMBEDDER_NO: bytes(32), 2: b"2" * 32})


def item(user=ALICE, **changes: Any):
    return SEALER.seal_item(user, **{"kind": 2, "item_id": NAME, "content": b"content", **changes})


def record(user=ALICE, *, memory_id=None, own_id="own"):
    return SEALER.seal_record(
        user, memory_id=memory_id or user.keys.memory_id("own"), seq=3, memory=MEMORY, own_id=own_id, vectors=VECTORS
    )


# --- Items ---


@pytest.mark.parametrize("content", [b"", b"content", bytes(10_000)], ids=len)
def test_an_item_opens_as_it_was_sealed(content):
    """Kind, id and content come back; it is of the user's next generation, and its size says little."""
    row = item(content=content)
    opened = SEALER.open_item(row, user=ALICE)
    assert (opened.kind, opened.item_id, opened.version, opened.content) == (2, NAME, 7, content)
    assert (row.uref, row.dek_epoch, row.version) == (UREF, 1, 7)
    assert opened.element == SEALER.item_element(row, keys=ALICE.keys)
    assert (len(row.sealed) - 34) % 256 == 0
    assert item(content=content).sealed != row.sealed


@pytest.mark.parametrize(
    "changes",
    [{"kind": 1}, {"kind": 0}, {"kind": 2**63 - 1}, {"item_id": b"another-16-bytes"}, {"version": 6}, {"version": 8},
     {"dek_epoch": 2}, {"dek_epoch": 2**63 - 1}, {"sealed": b""}, {"sealed": item().sealed[:-1]},
     {"sealed": item().sealed + b"\0"}, {"sealed": item(item_id=bytes(16)).sealed}, {"sealed": record().text}],
    # Not the bytes: a seal is another one in each process that collects the tests.
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_an_item_with_another_column_is_damage(changes):
    """Of another kind, under another id, of another generation or key, cut, longer, or another row's."""
    with pytest.raises(StoreDamagedError):
        SEALER.open_item(item()._replace(**changes), user=ALICE)


@pytest.mark.parametrize(
    "other", [user_of(b"k" * 32), user_of(uref=bytes(16)), user_of(epoch=2)], ids=["key", "reference", "epoch"]
)
def test_an_item_is_its_users(other):
    """It opens for nobody else: not with another key, nor under another reference, nor under a later key."""
    with pytest.raises(StoreDamagedError):
        SEALER.open_item(item(), user=other)


def test_an_item_of_another_store_is_damage():
    """Though the user's key and reference were the same."""
    with pytest.raises(StoreDamagedError):
        Sealer(b"another-16-bytes", identities={}).open_item(item(), user=ALICE)


def test_an_item_that_is_not_padded_is_damage():
    """Authentic, but not as `seal_item` writes it."""
    place = SEALER._item_place(UREF, ALICE.keys, kind=2, item_id=NAME, version=7)
    row = item()._replace(sealed=ALICE.keys.item.seal(b"content", place=place))
    with pytest.raises(StoreDamagedError):
        SEALER.open_item(row, user=ALICE)


# --- Records ---


def test_a_record_opens_as_it_was_sealed():
    """Memory, own id, order and vectors come back; a new text alone leaves the vector as it is."""
    row = record()
    opened = SEALER.open_record(row, user=ALICE)
    assert (opened.memory, opened.own_id, opened.seq) == (MEMORY, "own", 3)
    assert opened.vectors.tolist() == VECTORS.tolist()
    later = user_of(generation=7)
    text = SEALER.reseal(later, row, memory=MEMORY, own_id="own", vectors=None)
    assert (text.vector, text.vector_version, text.text_version, text.changed) == (row.vector, 7, 8, 8)
    both = SEALER.reseal(later, row, memory=MEMORY, own_id="own", vectors=VECTORS[:1])
    assert (both.vector_version, both.text_version, both.changed) == (8, 8, 8)
    assert SEALER.open_record(both, user=ALICE).vectors.tolist() == VECTORS[:1].tolist()


@pytest.mark.parametrize(
    "changes",
    [{"embedder_no": 9}, {"embedder_no": 2}, {"changed": 8}, {"dek_epoch": 2}, {"text_version": 6},
     {"vector_version": 6}, {"memory_id": bytes(16)}, {"text": record().vector}, {"vector": record().text}],
    # Not the bytes: a seal is another one in each process that collects the tests.
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_a_record_with_another_column_is_damage(changes):
    """An embedder that the store does not know or another one, versions that do not fit, another id or field."""
    with pytest.raises(StoreDamagedError):
        SEALER.open_record(record()._replace(**changes), user=ALICE)


def test_a_record_under_another_id_than_its_own_is_damage():
    """Even where all of it is authentic: a caller's own id says where the memory stands."""
    row = record(memory_id=b"another-16-bytes")
    with pytest.raises(StoreDamagedError):
        SEALER.open_record(row, user=ALICE)
    assert SEALER.open_record(record(memory_id=b"another-16-bytes", own_id=None), user=ALICE).own_id is None
