"""SIGKILL in the middle of writing: what was acknowledged is there, what was forgotten is not, the store verifies."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import killing
from tests.faults.children import SCALE, Child

KILLS = 200 * SCALE
EVERY = 25
SEED = 20261122

Texts = dict[str, str]
"""By the caller's own id, the digest of the text."""


class Ledger:
    """What the store must hold, from what its writers said.

    A class because a writer's last call may or may not have happened: the two states that are then right are kept
    until somebody looks at the store.
    """

    def __init__(self) -> None:
        self.users: dict[str, Texts] = {name: {} for name in killing.USERS}
        self.acknowledged = 0
        self.cut_off = 0
        self.begun: list[str] | None = None

    def read(self, said: str) -> None:
        """Takes what one process said until it ended: first what it found, then what it did."""
        found: dict[str, Texts] | None = {name: {} for name in killing.USERS}
        # Half a line at the end was never said.
        for line in said.split("\n")[:-1]:
            sign, *words = line.split("\t")
            assert sign in "#?=", said
            if sign == "#":
                assert found is not None
                found[words[0]][words[1]] = words[2]
                continue
            if found is not None:
                self.settle(found)
                found = None
            if sign == "?":
                self.begun = words
                self.cut_off += 1
            else:
                self.users[words[1]] = self._after(words)
                self.acknowledged += 1
                self.cut_off -= 1
                self.begun = None
        if found is not None:
            self.settle(found)

    def settle(self, found: dict[str, Texts]) -> None:
        """Compares with what is there, and takes the call that was cut off for done or not done, as it turned out."""
        for name in killing.USERS:
            if self.begun is not None and self.begun[1] == name and found[name] == self._after(self.begun):
                self.users[name] = found[name]
            assert found[name] == self.users[name], (name, self.begun)
        self.begun = None

    def _after(self, operation: list[str]) -> Texts:
        kind, name, *ids = operation
        texts = dict(self.users[name])
        if kind in ("remember", "remember_many"):
            texts |= _texts(*ids)
        elif kind == "update":
            texts[ids[0]] = killing.digest(killing.text(ids[1]))
        elif kind == "forget":
            del texts[ids[0]]
        elif kind == "erase":
            texts = {}
        return texts


def _texts(*own_ids: str) -> Texts:
    return {own_id: killing.digest(killing.text(own_id)) for own_id in own_ids}


def test_what_was_acknowledged_outlives_the_writer(tmp_path: Path, record_property: Any) -> None:
    """Of 200 writers killed 0.5 to 30 ms into their writing no acknowledged turn is lost, no forgotten one is back.

    Each writer begins by telling what it finds; every 25 kills, and at the end, `verify` passes too.
    """
    store = str(tmp_path / "store.db")
    rng = random.Random(SEED)
    ledger = Ledger()
    with Child(killing.nursery, warm=str(tmp_path / "warm.db")) as child:
        for number in range(1, KILLS + 1):
            child.send(["write", store, rng.randrange(1, 10**6)])
            code, said = child.receive()
            assert code == -signal.SIGKILL, said
            ledger.read(said)
            if number % EVERY == 0 or number == KILLS:
                child.send(["look", store])
                code, said = child.receive()
                assert code == 0, said
                ledger.read(said)
    print(f"seed {SEED}: {KILLS} kills, {ledger.acknowledged:,} acknowledged calls, {ledger.cut_off} cut off")
    record_property("acknowledged", ledger.acknowledged)
    assert ledger.acknowledged >= KILLS
    # Otherwise nothing was in the middle of anything.
    assert ledger.cut_off > KILLS // 2


def test_a_loss_would_be_seen() -> None:
    """The ledger refuses a lost turn, a forgotten one that is back, half a batch and an old text."""
    lines = ["=\tremember\talice\t1.0", "=\tremember\talice\t1.1", "=\tforget\talice\t1.0",
             "=\tupdate\talice\t1.1\t1.2", "?\tremember_many\tbob\t3.0\t3.1", ""]  # fmt: skip
    right = {"1.1": killing.digest(killing.text("1.2"))}
    for alice, bob in (
        ({}, {}),
        (right | _texts("1.0"), {}),
        (_texts("1.1"), {}),
        (right, _texts("3.0")),
        (right, _texts("3.0", "3.1", "3.2")),
    ):
        ledger = Ledger()
        ledger.read("\n".join(lines))
        with pytest.raises(AssertionError):
            ledger.settle({"alice": alice, "bob": bob, "carol": {}})
    for bob in ({}, _texts("3.0", "3.1")):
        ledger = Ledger()
        ledger.read("\n".join(lines))
        ledger.settle({"alice": right, "bob": bob, "carol": {}})
