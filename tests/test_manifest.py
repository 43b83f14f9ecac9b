"""`memlayer.manifest`: the arithmetic of sets that makes a missing, added or replayed row an error."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayer import manifest
from memlayer.errors import LimitExceededError, StoreDamagedError
from memlayer.manifest import (
    BUCKETS,
    MAX_SEALS,
    BucketManifest,
    StoreManifest,
    UserManifest,
    bucket_of,
    item_element,
    record_element,
    user_element,
)

KEY = bytes(range(32))
RECORD: dict[str, Any] = {
    "memory_id": b"m" * 16,
    "seq": 3,
    "epoch": 1,
    "text_version": 5,
    "vector_version": 4,
    "embedder_no": 1,
    "text_tag": b"t" * 16,
    "vector_tag": b"v" * 16,
}
ITEM: dict[str, Any] = {"kind": 2, "item_id": b"i" * 16, "epoch": 1, "version": 7, "item_tag": b"t" * 16}
USER: dict[str, Any] = {
    "uref": b"u" * 16,
    "data_key_tag": b"d" * 16,
    "manifest_tag": b"m" * 16,
    "profile_tag": b"p" * 16,
}
SLOTS = b"s" * 32

elements = st.integers(0, 2**256 - 1)


def other(value):
    return value + 1 if isinstance(value, int) else bytes(16)


# --- Elements ---


@pytest.mark.parametrize("name", RECORD)
def test_every_column_of_a_record_counts(name):
    """A record of which one column or one seal is another is another element."""
    assert record_element(KEY, **{**RECORD, name: other(RECORD[name])}) != record_element(KEY, **RECORD)


@pytest.mark.parametrize("name", ITEM)
def test_every_column_of_an_item_counts(name):
    """An item of another kind, id, epoch, version or seal is another element."""
    assert item_element(KEY, **{**ITEM, name: other(ITEM[name])}) != item_element(KEY, **ITEM)


@pytest.mark.parametrize("name", USER)
def test_every_seal_of_a_user_counts(name):
    """A user of whom one seal is another is another element."""
    assert user_element(KEY, **{**USER, name: bytes(16)}) != user_element(KEY, **USER)


def test_an_element_depends_on_the_key():
    """Without the key nobody can say what an element is; each is below 2^256."""
    for element, own in ((record_element, RECORD), (item_element, ITEM), (user_element, USER)):
        assert element(KEY, **own) != element(bytes(32), **own)
        assert 0 <= element(KEY, **own) < 2**256
        assert element(KEY, **own) == element(KEY, **own)


def test_numbers_of_the_whole_range_have_an_element():
    """The largest numbers of the format are encoded, not cut."""
    largest = {**RECORD, "seq": 2**64 - 1, "epoch": 2**16 - 1, "text_version": 2**64 - 1, "embedder_no": 2**32 - 1}
    assert record_element(KEY, **largest) != record_element(KEY, **{**largest, "seq": 2**32 - 1})
    large_item = {**ITEM, "kind": 2**64 - 1, "epoch": 2**16 - 1, "version": 2**64 - 1}
    assert item_element(KEY, **large_item) != item_element(KEY, **{**large_item, "version": 2**32 - 1})


@pytest.mark.parametrize(
    ("element", "right", "name"),
    [(record_element, RECORD, "memory_id"), (item_element, ITEM, "item_id"), (user_element, USER, "uref")],
    ids=["record", "item", "user"],
)
def test_an_id_of_another_width_has_no_element(element, right, name):
    """An id with a byte behind it, or without its last one, is refused: packed, it would be another one's."""
    for identifier in (right[name] + b"\0", right[name][:-1], b""):
        with pytest.raises(StoreDamagedError):
            element(KEY, **{**right, name: identifier})


@pytest.mark.parametrize("changes", [{"embedder_no": 2**32}, {"embedder_no": 2**63 - 1}, {"epoch": 2**16}], ids=str)
def test_a_number_out_of_range_is_no_element(changes):
    """What a damaged row can name, and no store ever wrote, is damage."""
    with pytest.raises(StoreDamagedError):
        record_element(KEY, **{**RECORD, **changes})


@pytest.mark.parametrize("changes", [{"kind": 2**64}, {"kind": -1}, {"version": 2**64}, {"epoch": 2**16}], ids=str)
def test_a_number_out_of_range_is_no_items_element(changes):
    """Nor has an item that a damaged row can name."""
    with pytest.raises(StoreDamagedError):
        item_element(KEY, **{**ITEM, **changes})


@pytest.mark.parametrize(
    ("uref", "bucket"),
    [
        (bytes(16), 0),
        (b"\0\x0f" + b"\xff" * 14, 0),
        (b"\0\x10" + bytes(14), 1),
        (b"\x80" + bytes(15), 2048),
        (b"\xff" * 16, 4095),
    ],
)
def test_a_bucket_is_the_first_twelve_bits(uref, bucket):
    """The first 12 bits of a user reference say its bucket, of 4,096."""
    assert BUCKETS == 4096
    assert bucket_of(uref) == bucket


# --- A user's manifest ---


@given(st.lists(elements, unique=True, max_size=12), st.randoms(use_true_random=False), st.data())
def test_any_order_of_writes_comes_to_the_same(records, random, data):
    """Whatever was added and removed in between, and in which order: what counts is the set that is left."""
    steps = [("add", element) for element in records]
    passing = data.draw(st.lists(elements, max_size=6))
    random.shuffle(steps)
    for element in passing:
        position = random.randrange(len(steps) + 1)
        steps.insert(position, ("add", element))
        steps.insert(random.randrange(position + 1, len(steps) + 1), ("remove", element))
    now = UserManifest()
    for kind, element in steps:
        added, removed = ([element], []) if kind == "add" else ([], [element])
        now = now.changed(added=added, removed=removed, seals=1)
    assert now.holds(records=len(records), total=sum(records))
    assert now.generation == now.seals == len(steps)
    at_once = UserManifest().changed(added=[*records, *passing], removed=passing, seals=1)
    assert (at_once.records, at_once.total) == (now.records, now.total)
    assert 0 <= now.total < 2**256


@given(st.lists(elements, min_size=1, unique=True, max_size=8), elements)
def test_no_other_set_holds(records, foreign):
    """A record too few, too many, twice, or another in its place: the manifest does not hold."""
    now = UserManifest().changed(added=records, removed=[], seals=1)
    total = sum(records)
    assert now.holds(records=len(records), total=total)
    assert not now.holds(records=len(records) - 1, total=total)
    assert now.holds(records=len(records), total=total - records[0] + foreign) == (foreign == records[0])
    assert not now.holds(records=len(records) + 1, total=total + foreign)
    assert now.holds(records=len(records), total=total - records[0]) == (records[0] == 0)


def test_an_update_is_a_removal_and_an_addition():
    """An updated record takes its old element out and puts its new one in; the count stays."""
    before = UserManifest().changed(added=[5, 7], removed=[], seals=5, appended=2)
    after = before.changed(added=[11], removed=[7], seals=3)
    assert after == UserManifest(generation=2, records=2, items=0, next_seq=2, seals=8, total=16)


@given(st.lists(elements, max_size=6), st.lists(elements, min_size=1, max_size=6, unique=True), st.data())
def test_items_are_in_the_same_sum_and_counted_by_themselves(records, items, data):
    """In any order with records; one too few or too many, or one that counts as a record, does not hold."""
    dropped = data.draw(st.sets(st.sampled_from(items)))
    now = UserManifest().changed(added=[], removed=[], seals=1, items_added=items)
    now = now.changed(added=records, removed=[], seals=1, items_removed=list(dropped))
    total = sum(records) + sum(set(items) - dropped)
    count = len(items) - len(dropped)
    assert (now.records, now.items, now.generation, now.seals) == (len(records), count, 2, 2)
    assert now.holds(records=len(records), items=count, total=total)
    assert not now.holds(records=len(records), items=count + 1, total=total)
    assert not now.holds(records=len(records) + 1, items=count - 1, total=total)
    assert not now.holds(records=len(records), items=count, total=total + 1)


def test_a_replaced_item_leaves_the_count():
    """Its old element goes out and its new one in; who counts records alone is told that there is more."""
    before = UserManifest().changed(added=[5], removed=[], seals=3, appended=1, items_added=[7, 9])
    assert (before.records, before.items, before.next_seq, before.total) == (1, 2, 1, 21)
    after = before.changed(added=[], removed=[], seals=2, items_added=[8], items_removed=[7])
    assert (after.records, after.items, after.next_seq, after.total) == (1, 2, 1, 22)
    assert not after.holds(records=1, total=22)


def test_numbers_are_never_given_twice():
    """Forgetting the last record does not give its insertion number to the next."""
    now = UserManifest().changed(added=[1], removed=[], seals=3, appended=1)
    now = now.changed(added=[], removed=[1], seals=1)
    assert (now.records, now.total, now.next_seq) == (0, 0, 1)
    assert UserManifest(items=4).changed(added=[1], removed=[], seals=1).items == 4


def test_a_key_seals_so_many_times_and_no_more(monkeypatch):
    """At 2^31 seals the user's key is used up: the last one is allowed, the next is refused and changes nothing."""
    assert MAX_SEALS == 2**31
    nearly = UserManifest(seals=MAX_SEALS - 3)
    assert nearly.changed(added=[1], removed=[], seals=3).seals == MAX_SEALS
    with pytest.raises(LimitExceededError) as caught:
        nearly.changed(added=[1], removed=[], seals=4)
    assert caught.value.evidence == {"limit": 2**31}
    monkeypatch.setattr(manifest, "MAX_SEALS", 10)
    now = UserManifest()
    for _ in range(10):
        now = now.changed(added=[], removed=[], seals=1)
    with pytest.raises(LimitExceededError):
        now.changed(added=[], removed=[], seals=1)


@given(st.builds(UserManifest, *[st.integers(0, 2**64 - 1)] * 5, elements))
def test_a_user_manifest_is_read_as_it_was_written(written):
    """72 bytes, and every field comes back."""
    assert len(written.encode()) == 72
    assert UserManifest.decode(written.encode()) == written


# --- A bucket's manifest ---


@given(st.lists(st.tuples(st.integers(0, 5), elements), max_size=20))
def test_a_bucket_holds_the_users_as_they_are_now(writes):
    """After any writes of its users, a bucket holds their last elements, and every write was a generation."""
    bucket, users = BucketManifest(), dict[int, int]()
    for user, element in writes:
        if user in users and element % 3 == 0:
            bucket = bucket.changed(added=None, removed=users.pop(user))
        else:
            bucket = bucket.changed(added=element, removed=users.get(user))
            users[user] = element
    assert bucket.holds(list(users.values()))
    assert bucket.holds(list(users.values())[::-1])
    assert (bucket.generation, bucket.users) == (len(writes), len(users))


@given(st.lists(elements, min_size=1, unique=True, max_size=6), elements)
def test_no_other_users_hold(users, foreign):
    """A user too few, too many, twice or in an older state: the bucket does not hold."""
    bucket = BucketManifest()
    for user in users:
        bucket = bucket.changed(added=user, removed=None)
    assert not bucket.holds(users[1:])
    assert not bucket.holds([*users, foreign])
    assert bucket.holds([foreign, *users[1:]]) == (Counter([foreign]) == Counter(users[:1]))


def test_an_element_of_zero_is_a_user():
    """A user whose element happens to be 0 is counted like any other."""
    bucket = BucketManifest().changed(added=0, removed=None)
    assert (bucket.users, bucket.total) == (1, 0)
    assert not bucket.holds([])
    assert bucket.changed(added=None, removed=0).users == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), elements)
def test_a_bucket_is_read_as_it_was_written(generation, users, total):
    """48 bytes, and every field comes back."""
    encoded = BucketManifest(generation, users, total).encode()
    assert len(encoded) == 48
    assert BucketManifest.decode(encoded) == BucketManifest(generation, users, total)


# --- The store's manifest ---


def test_the_store_knows_its_buckets_and_its_slots():
    """A new bucket and other slots are a generation each."""
    store = StoreManifest(1, frozenset(), SLOTS)
    assert store.with_bucket(7) == StoreManifest(2, frozenset({7}), SLOTS)
    assert store.with_bucket(7).with_bucket(0).buckets == {0, 7}
    assert store.with_slots(bytes(32)) == StoreManifest(2, frozenset(), bytes(32))


def test_a_bucket_cannot_be_new_twice():
    """A bucket that was ever written and is not there was lost."""
    with pytest.raises(StoreDamagedError):
        StoreManifest(1, frozenset({7}), SLOTS).with_bucket(7)


@given(st.integers(0, 2**64 - 1), st.frozensets(st.integers(0, 4095)), st.binary(min_size=32, max_size=32))
def test_a_store_manifest_is_read_as_it_was_written(generation, buckets, slots):
    """552 bytes, whatever the number of buckets, and every field comes back."""
    encoded = StoreManifest(generation, buckets, slots).encode()
    assert len(encoded) == 552
    assert StoreManifest.decode(encoded) == StoreManifest(generation, buckets, slots)


# --- All of them ---


@pytest.mark.parametrize("kind", [UserManifest, BucketManifest, StoreManifest])
def test_another_size_is_no_manifest(kind):
    """Nothing is guessed from a manifest that is too short or too long."""
    right = {UserManifest: 72, BucketManifest: 48, StoreManifest: 552}[kind]
    for size in (0, right - 1, right + 1, 2 * right):
        with pytest.raises(StoreDamagedError, match="wrong size"):
            kind.decode(bytes(size))


@pytest.mark.parametrize("value", [UserManifest(), BucketManifest(), StoreManifest(0, frozenset(), SLOTS)])
def test_manifests_are_frozen(value):
    """A manifest is changed by making the next one."""
    with pytest.raises(FrozenInstanceError):
        value.generation = 9
