"""SIGKILL in the middle of writing: what was acknowledged is there, what was forgotten is not, the store verifies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults import killing
from tests.faults.children import SCALE, Child

KILLS = 200 * SCALE
EVERY = 25
SEED = 20261122

Texts = dict[str, str]


class Ledger:
    """What the store must hold, from what its writers said.

    A class because a writer's last call may or may not have happened: the two states that are then right are kept
    until the store is looked at.
    """

    def __init__(self) -> None:
        self.users: dict[str, Texts] = {name: {} for name in killing.USERS}
        self.acknowledged = 0
        self.begun: list[str] | None = None

    def read(self, lines: list[str]) -> None:
        """Takes what one writer said until it died."""
        self.begun = None
        for line in lines:
            sign, *operation = line.split("\t")
            assert sign in ("?", "="), line
            if sign == "?":
                self.begun = operation
            else:
                self.users[operation[1]] = self._after(operation)
                self.acknowledged += 1
                self.begun = None

    def settle(self, found: dict[str, Texts]) -> None:
        """Compares with what is there, and takes the call that was cut off for done or not done, as it turned out."""
        for name in killing.USERS:
            if self.begun is not None and self.begun[1] == name and found[name] == self._after(self.begun):
                self.users[name] = found[name]
            assert found[name] == self.users[name], self.begun
        self.begun = None

    def _after(self, operation: list[str]) -> Texts:
        kind, name, *ids = operation
        texts = dict(self.users[name])
        if kind in ("remember", "remember_many"):
            texts |= {own_id: killing.text(own_id) for own_id in ids}
        elif kind == "update":
            texts[ids[0]] = killing.text(ids[1])
        elif kind == "forget":
            del texts[ids[0]]
        elif kind == "erase":
            texts = {}
        return texts


def _looked_at(child: Child, store: Path, *, verify: bool) -> dict[str, Texts]:
    child.send(["check", str(store), verify])
    code, said = child.receive()
    assert code == 0, said
    found: dict[str, Texts] = {name: {} for name in killing.USERS}
    for line in said.splitlines():
        name, own_id, text = line.split("\t")
        found[name][own_id] = text
    return found


def test_what_was_acknowledged_outlives_the_writer(tmp_path: Path, record_property: Any) -> None:
    """Of 200 writers killed 0.5 to 30 ms into their writing no acknowledged turn is lost, no forgotten one is back."""
    store = tmp_path / "store.db"
    rng = random.Random(SEED)
    ledger = Ledger()
    cut_off = 0
    with Child(killing.nursery, warm=str(tmp_path / "warm.db")) as child:
        for number in range(1, KILLS + 1):
            child.send(["write", str(store), rng.randrange(1, 10**6)])
            code, said = child.receive()
            assert code == -9, said
            # Half a line at the end was never said.
            ledger.read([line for line in said.splitlines(keepends=False) if line][: said.count("\n")])
            cut_off += ledger.begun is not None
            ledger.settle(_looked_at(child, store, verify=number % EVERY == 0 or number == KILLS))
    print(f"seed {SEED}: {KILLS} kills, {ledger.acknowledged:,} acknowledged calls, {cut_off} cut off")
    record_property("acknowledged", ledger.acknowledged)
    # Otherwise nothing was in the middle of anything.
    assert ledger.acknowledged > KILLS
    assert cut_off > KILLS // 2


def test_a_loss_would_be_seen() -> None:
    """The ledger refuses a lost turn, a forgotten one that is back, half a batch and an old text."""
    for found in ({}, {"1.1": "x"}, {"1.2": killing.text("1.2"), "1.0": killing.text("1.0")}):
        ledger = Ledger()
        ledger.read(["=\tremember\talice\t1.0", "=\tremember\talice\t1.1", "=\tforget\talice\t1.0"])
        with pytest.raises(AssertionError):
            ledger.settle({"alice": found, "bob": {}, "carol": {}})
    ledger = Ledger()
    ledger.read(["=\tremember\tbob\t2.0", "?\tremember_many\tbob\t3.0\t3.1"])
    with pytest.raises(AssertionError):
        ledger.settle({"alice": {}, "bob": _texts("2.0", "3.1"), "carol": {}})
    ledger.settle({"alice": {}, "bob": _texts("2.0", "3.0", "3.1"), "carol": {}})


def _texts(*own_ids: str) -> Texts:
    return {own_id: killing.text(own_id) for own_id in own_ids}
