"""`memlayer.keys`: every key opens what it is for, and nothing else; a wrong one is told from a damaged store."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from memlayer import keys
from memlayer.envelope import Cipher, Field, Place
from memlayer.errors import StoreDamagedError, WrongKeyError
from memlayer.keys import KeySlot, StoreKeys, UserKeys, derive, make_slot, open_slot, passphrase_key
from memlayer.sources import FAST_FOR_TESTS, RFC_9106_LOW_MEMORY, Argon2Cost, Passphrase, RawKey, RecoveryKey, SlotKind

STORE_ID = b"store-id-16bytes"
STORE_KEY = bytes(range(32))
UREF = b"user-ref-16bytes"
RAW = RawKey(b"\7" * 32)
PHRASE = Passphrase("an honest passphrase", cost=FAST_FOR_TESTS)


def secret_of(source):
    return source.secret(store_id=STORE_ID, create=False)


def slot_for(source, **changes):
    slot = make_slot(source, secret=secret_of(source), store_key=STORE_KEY, store_id=STORE_ID, slot_id=1)
    return replace(slot, **changes)


def opened(slots, source, *, store_id=STORE_ID):
    return open_slot(slots, kind=source.kind, secret=secret_of(source), store_id=store_id)


@pytest.fixture
def no_argon2(monkeypatch):
    """Fails the test that lets a passphrase be hashed."""

    def refuse(**_):
        raise AssertionError("Argon2id was set up")

    monkeypatch.setattr(keys, "Argon2id", refuse)


# --- Derivation ---


def test_each_label_gives_another_key():
    """Subkeys of one key have nothing in common, nor has one label under two keys."""
    labels = (b"text", b"vector", b"wrap", b"meta", b"", b"text ")
    assert len({derive(key, label) for label in labels for key in (STORE_KEY, bytes(32))}) == 2 * len(labels)
    assert len(derive(STORE_KEY, b"text", length=80)) == 80


def test_a_passphrase_key_depends_on_all_of_it():
    """Passphrase, salt and each number of the cost decide; the same of all gives the same key."""
    derived = [
        passphrase_key(b"a passphrase", salt=bytes(16), cost=FAST_FOR_TESTS),
        passphrase_key(b"a passphrasf", salt=bytes(16), cost=FAST_FOR_TESTS),
        passphrase_key(b"a passphrase", salt=b"\1" + bytes(15), cost=FAST_FOR_TESTS),
        passphrase_key(b"a passphrase", salt=bytes(16), cost=replace(FAST_FOR_TESTS, memory_kib=19_464)),
        passphrase_key(b"a passphrase", salt=bytes(16), cost=replace(FAST_FOR_TESTS, iterations=2)),
        passphrase_key(b"a passphrase", salt=bytes(16), cost=replace(FAST_FOR_TESTS, lanes=2)),
    ]
    assert len(set(derived)) == len(derived)
    assert {len(key) for key in derived} == {32}
    assert passphrase_key(b"a passphrase", salt=bytes(16), cost=FAST_FOR_TESTS) == derived[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_kib": 19_455},
        {"memory_kib": 0},
        {"memory_kib": -1},
        {"memory_kib": 1_048_577},
        {"memory_kib": 2**63 - 1},
        {"iterations": 0},
        {"iterations": 11},
        {"iterations": 2**32 - 1},
        {"lanes": 0},
        {"lanes": 9},
        {"lanes": 2**24},
    ],
    ids=str,
)
def test_a_cost_out_of_bounds_is_refused_before_it_is_paid(no_argon2, changes):
    """A cost that would be worthless, or take the machine down, is refused, and nothing is computed."""
    cost = replace(FAST_FOR_TESTS, **changes)
    with pytest.raises(StoreDamagedError):
        passphrase_key(b"a passphrase", salt=bytes(16), cost=cost)
    with pytest.raises(StoreDamagedError):
        open_slot([slot_for(RAW, kind=SlotKind.PASSPHRASE, cost=cost)],
                  kind=SlotKind.PASSPHRASE, secret=b"a passphrase", store_id=STORE_ID)  # fmt: skip


def test_the_bounds_themselves_are_accepted(monkeypatch):
    """The least and the most are within; what Argon2id gets is what the cost says."""
    asked = []

    class Recorder:
        def __init__(self, **arguments):
            asked.append(arguments)

        def derive(self, passphrase):
            return passphrase

    monkeypatch.setattr(keys, "Argon2id", Recorder)  # 1 GiB and ten passes are not for a test
    for memory, iterations, lanes in ((19_456, 1, 1), (1_048_576, 10, 8)):
        cost = Argon2Cost(memory_kib=memory, iterations=iterations, lanes=lanes)
        assert passphrase_key(b"p", salt=bytes(16), cost=cost) == b"p"
        assert asked.pop() == {
            "salt": bytes(16), "length": 32, "iterations": iterations, "lanes": lanes, "memory_cost": memory
        }  # fmt: skip


def test_the_default_cost_is_the_rfcs():
    """RFC 9106's second recommendation, and a fast one that still is within the bounds."""
    assert Argon2Cost(memory_kib=65_536, iterations=3, lanes=4) == RFC_9106_LOW_MEMORY
    assert Argon2Cost(memory_kib=19_456, iterations=1, lanes=1) == FAST_FOR_TESTS


# --- Slots ---


@pytest.mark.parametrize("source", [RAW, PHRASE, RecoveryKey(RecoveryKey.generate())], ids=lambda s: s.kind.name)
def test_a_slot_opens_with_its_source(source):
    """Each kind of source opens the slot that was made with it, and gets the store key."""
    slot = slot_for(source)
    assert opened([slot], source) == (slot, STORE_KEY)


def test_a_slot_is_as_described():
    """A slot says its kind, its cost only where there is one, 16 bytes of salt, 32 of commitment, 66 sealed."""
    for source, cost in ((PHRASE, FAST_FOR_TESTS), (RAW, Argon2Cost(memory_kib=0, iterations=0, lanes=0))):
        slot = slot_for(source)
        assert (slot.slot_id, slot.epoch, slot.kind, slot.cost) == (1, 1, source.kind, cost)
        assert (len(slot.salt), len(slot.commitment), len(slot.sealed)) == (16, 32, 66)


def test_two_slots_of_one_source_have_nothing_in_common():
    """Salts are random, so equal secrets of two stores cannot be recognised."""
    first, second = slot_for(RAW), slot_for(RAW)
    assert first.salt != second.salt
    assert first.commitment != second.commitment


def test_a_source_without_a_cost_gets_the_default(monkeypatch):
    """A caller's own passphrase source need not know of costs."""
    monkeypatch.setattr(keys, "passphrase_key", lambda secret, *, salt, cost: bytes(32))

    class Own:
        kind = SlotKind.PASSPHRASE

        def secret(self, *, store_id, create):
            return b"a secret of its own"

    assert slot_for(Own()).cost == RFC_9106_LOW_MEMORY


def test_the_slot_is_found_among_others():
    """Slots of other kinds and of other secrets are passed over."""
    slots = [
        slot_for(RecoveryKey(RecoveryKey.generate()), slot_id=1),
        slot_for(RawKey(b"\1" * 32), slot_id=2),
        make_slot(RAW, secret=secret_of(RAW), store_key=STORE_KEY, store_id=STORE_ID, slot_id=3),
    ]
    assert opened(slots, RAW) == (slots[2], STORE_KEY)


@pytest.mark.parametrize(
    ("slots", "hint"),
    [
        ([], "no key at all"),
        ([slot_for(RawKey(b"\1" * 32))], "key"),
        ([slot_for(RecoveryKey(RecoveryKey.generate())), slot_for(PHRASE)], "passphrase, recovery"),
    ],
    ids=["none", "another key", "other kinds"],
)
def test_a_wrong_secret_is_one_clear_error(slots, hint):
    """It opens none of the slots: the error says of which kinds they are, and no more."""
    with pytest.raises(WrongKeyError) as caught:
        opened(slots, RAW)
    assert f"(it has slots for: {hint})" in str(caught.value)
    assert dict(caught.value.evidence) == {}
    assert caught.value.__context__ is None


def test_a_raw_key_does_not_open_a_recovery_slot():
    """The kind decides which slots are tried: 32 bytes that fit are not enough."""
    text = RecoveryKey.generate()
    slot = slot_for(RecoveryKey(text))
    with pytest.raises(WrongKeyError):
        opened([slot], RawKey(secret_of(RecoveryKey(text))))


def test_a_slot_of_one_kind_cannot_be_made_another():
    """The 32 bytes of a raw key do not open its slot once it says that it is for recovery keys."""
    slot = slot_for(RAW, kind=SlotKind.RECOVERY)
    with pytest.raises(StoreDamagedError):
        open_slot([slot], kind=SlotKind.RECOVERY, secret=secret_of(RAW), store_id=STORE_ID)


def test_a_slot_is_bound_to_its_store():
    """A slot that was copied into another store does not open there."""
    with pytest.raises(StoreDamagedError):
        opened([slot_for(RAW)], RAW, store_id=b"another-16-bytes")


@pytest.mark.parametrize(
    "changes",
    [
        {"slot_id": 2},
        {"epoch": 2},
        {"cost": Argon2Cost(memory_kib=1, iterations=0, lanes=0)},
        {"cost": Argon2Cost(memory_kib=0, iterations=1, lanes=0)},
        {"cost": Argon2Cost(memory_kib=0, iterations=0, lanes=2**32 - 1)},
        {"sealed": slot_for(RAW).sealed},
        {"sealed": b""},
    ],
    ids=range(7),
)
def test_a_changed_slot_is_told_from_a_wrong_key(changes):
    """The right secret for a slot of which anything was changed is damage, not a wrong key."""
    with pytest.raises(StoreDamagedError):
        opened([slot_for(RAW, **changes)], RAW)


@pytest.mark.parametrize("changes", [{"salt": bytes(16)}, {"commitment": bytes(32)}, {"commitment": b""}], ids=str)
def test_a_slot_with_another_commitment_is_not_this_keys(changes):
    """Salt and commitment decide whether a secret is the slot's, so changed ones look like a wrong key."""
    with pytest.raises(WrongKeyError):
        opened([slot_for(RAW, **changes)], RAW)


def test_a_cheaper_cost_does_not_open_a_slot():
    """A slot that was sealed at one cost cannot be made to open at a lower one."""
    source = Passphrase("an honest passphrase", cost=replace(FAST_FOR_TESTS, iterations=2))
    with pytest.raises(WrongKeyError):
        opened([slot_for(source, cost=FAST_FOR_TESTS)], source)


def test_a_huge_cost_in_a_key_slot_is_damage():
    """A cost of more than 32 bits in a slot that has none is an error of ours, like any other change."""
    with pytest.raises(StoreDamagedError):
        opened([slot_for(RAW, cost=Argon2Cost(memory_kib=2**40, iterations=0, lanes=0))], RAW)


def test_a_short_salt_in_a_passphrase_slot_is_damage():
    """A salt that Argon2id would not take is an error of ours."""
    with pytest.raises((StoreDamagedError, WrongKeyError)):
        opened([slot_for(PHRASE, salt=b"")], PHRASE)


def test_more_slots_than_there_can_be_are_not_tried():
    """Slots stand in clear and each can cost seconds: a store with more than 16 is refused before any is computed."""
    slot = slot_for(RAW)
    with pytest.raises(StoreDamagedError):
        opened([slot] * (keys.MAX_SLOTS + 1), RAW)
    assert opened([slot] * keys.MAX_SLOTS, RAW) == opened([slot], RAW)


# --- The store's keys ---


def new_store(**changes):
    return StoreKeys(STORE_KEY, **{"store_id": STORE_ID, "epoch": 1, "sealed_index_key": None, **changes})


def unlocked(of, **changes):
    values = {"store_id": STORE_ID, "epoch": 1, "commitment": of.commitment, "sealed_index_key": of.sealed_index_key}
    store_key = changes.pop("store_key", STORE_KEY)
    return StoreKeys.unlock(store_key, **{**values, **changes})


def test_an_unlocked_store_has_the_keys_it_was_made_with():
    """Everything that depends on the store's keys is the same after the store was closed and opened."""
    made = new_store()
    again = unlocked(made)
    assert again.uref("alice") == made.uref("alice")
    assert (again.guard_key(), again.set_key, again.commitment) == (made.guard_key(), made.set_key, made.commitment)
    assert again.sealed_index_key == made.sealed_index_key
    place = Place(field=Field.BUCKET, store_id=STORE_ID)
    assert again.directory.open(made.directory.seal(b"bucket", place=place), place=place) == b"bucket"
    assert again.meta.open(made.meta.seal(b"meta", place=place), place=place) == b"meta"
    with pytest.raises(StoreDamagedError):
        again.meta.open(made.directory.seal(b"bucket", place=place), place=place)


def test_a_new_store_has_an_index_key_of_its_own():
    """Two stores with one store key know a user by different references."""
    assert new_store().uref("alice") != new_store().uref("alice")


@pytest.mark.parametrize(
    "changes",
    [{"commitment": bytes(32)}, {"store_key": bytes(32)}, {"epoch": 2}, {"store_id": b"another-16-bytes"}],
    ids=str,
)
def test_a_store_with_another_key_is_damaged(changes):
    """A key that the store is not committed to, or an index key of elsewhere, opens nothing."""
    with pytest.raises(StoreDamagedError):
        unlocked(new_store(), **changes)


def test_a_commitment_is_checked_before_anything_is_opened():
    """With a wrong commitment, not even a sealed index key of garbage is looked at."""
    with pytest.raises(StoreDamagedError, match="committed"):
        unlocked(new_store(), commitment=bytes(32), sealed_index_key=b"garbage")


def test_a_user_reference_tells_users_apart_and_says_nothing():
    """16 bytes of the exact id: no two spellings share one, and it cannot be computed without the key."""
    store = new_store()
    ids = ["alice", "Alice", " alice", "alice\0", "%", "\u00e4", "a\u0308", "a" * 512]
    assert len({store.uref(user_id) for user_id in ids}) == len(ids)
    assert {len(store.uref(user_id)) for user_id in ids} == {16}


def test_another_slot_opens_the_same_store():
    """A slot that is added later holds the same store key."""
    source = RawKey(b"\2" * 32)
    slot = new_store(epoch=4).new_slot(source, secret=secret_of(source), slot_id=9)
    assert (slot.slot_id, slot.epoch) == (9, 4)
    assert opened([slot], source)[1] == STORE_KEY


# --- A user's keys ---


def test_a_user_opens_again():
    """A sealed data key gives the same user keys, epoch and commitment included."""
    store = new_store()
    made, sealed = store.new_user(uref=UREF, epoch=3)
    assert len(sealed) == 66
    again = store.open_user(sealed, uref=UREF, epoch=3, commitment=made.commitment)
    assert (again.epoch, again.commitment, again.set_key) == (3, made.commitment, made.set_key)
    assert again.memory_id("x") == made.memory_id("x")
    assert again.item_id(1, b"x") == made.item_id(1, b"x")
    assert len(again.commitment) == 16
    assert store.new_user(uref=UREF)[0].epoch == 1


def test_every_user_has_a_key_of_its_own():
    """Two new users, or one user made twice, share no key: neither commitments nor ids nor sums agree."""
    store = new_store()
    made = [store.new_user(uref=UREF)[0] for _ in range(2)]
    derived = [(user.commitment, user.set_key, user.memory_id("x"), user.item_id(1, b"x")) for user in made]
    for values in zip(*derived, strict=True):
        assert len(set(values)) == 2


def test_a_users_row_is_the_users():
    """A data key that was moved to another user, epoch or store, or that the row is not committed to, is damage."""
    store = new_store()
    made, sealed = store.new_user(uref=UREF)
    right = {"uref": UREF, "epoch": 1, "commitment": made.commitment}
    for changes in ({"uref": b"another-16-bytes"}, {"epoch": 2}, {"commitment": bytes(16)}):
        with pytest.raises(StoreDamagedError):
            store.open_user(sealed, **{**right, **changes})
    for other in (new_store(epoch=2), new_store(store_id=b"another-16-bytes")):
        with pytest.raises(StoreDamagedError):
            other.open_user(sealed, **right)


def test_each_field_of_a_user_has_a_key_of_its_own():
    """What was sealed as one field's does not open with another field's key, even in its place."""
    user = UserKeys(STORE_KEY, epoch=1)
    place = Place(field=Field.TEXT, store_id=STORE_ID, uref=UREF)
    ciphers: list[Cipher] = [user.text, user.vector, user.manifest, user.profile, user.item]
    for sealer in ciphers:
        envelope = sealer.seal(b"content", place=place)
        for opener in ciphers:
            if opener is sealer:
                assert opener.open(envelope, place=place) == b"content"
            else:
                with pytest.raises(StoreDamagedError):
                    opener.open(envelope, place=place)


def test_equal_ids_of_two_users_have_nothing_in_common():
    """A caller's own id is stored under a hash that is keyed by the user."""
    first, second = UserKeys(STORE_KEY, epoch=1), UserKeys(bytes(32), epoch=1)
    assert len(first.memory_id("m-1")) == 16
    assert first.memory_id("m-1") != second.memory_id("m-1")
    assert first.memory_id("m-1") != first.memory_id("m-2")


def test_an_items_id_says_nothing_and_meets_no_other():
    """16 bytes of the kind and the exact name, keyed by the user and for items alone."""
    first, second = UserKeys(STORE_KEY, epoch=1), UserKeys(bytes(32), epoch=1)
    names = [(1, b"a"), (2, b"a"), (1, b"A"), (1, b""), (1, b"a\0"), (0, b"a"), (1, bytes(8) + b"a"), (1, b"n" * 5_000)]
    ids = {user.item_id(kind, name) for user in (first, second) for kind, name in names}
    assert len(ids) == 2 * len(names)
    assert {len(item_id) for item_id in ids} == {16}
    # A kind that would be cut is none; and no memory's id is an item's.
    with pytest.raises(OverflowError):
        first.item_id(2**64, b"a")
    assert first.memory_id("\0\0\0\0\0\0\0\1a") not in ids


# --- Keys stay inside ---


def secrets_of(thing):
    return [STORE_KEY.hex(), repr(STORE_KEY)[2:-1], thing.set_key.hex(), repr(thing.set_key)[2:-1]]


@pytest.mark.parametrize("thing", [new_store(), UserKeys(STORE_KEY, epoch=1)], ids=lambda thing: type(thing).__name__)
def test_keys_are_neither_shown_nor_pickled(thing):
    """`repr` and `str` say the class and the epoch; a pickle or a copy is refused."""
    assert repr(thing) == str(thing) == f"{type(thing).__name__}(epoch=1)"
    assert not any(secret in repr(thing) for secret in secrets_of(thing))
    assert not hasattr(thing, "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            attempt(thing)


def test_a_slot_shows_no_key():
    """Everything in a slot stands in clear in the file, so its `repr` may be shown."""
    assert isinstance(slot_for(RAW), KeySlot)
    assert secret_of(RAW).hex() not in repr(slot_for(RAW))
    assert STORE_KEY.hex() not in repr(slot_for(RAW))
    assert repr(STORE_KEY)[2:-1] not in repr(slot_for(RAW))
