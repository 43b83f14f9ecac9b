"""SIGKILL in the middle of a change of embedder: nothing is lost, and the next call goes on from there."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from sqlcipher3 import dbapi2

from tests.faults import moving
from tests.faults.children import SCALE, Child

MOVES = 2 * SCALE
SEED = 20261125


def test_a_move_that_is_killed_over_and_over_arrives(tmp_path: Path, record_property: Any) -> None:
    """A store is moved back and forth between two embedders by processes that are killed 0 to 350 ms after they begin,
    until one arrives. After each kill every text is there, `verify` passes, and each user is searched with one of the
    two embedders and finds what it should; a move that has ended has left nothing saved, and one embedder."""
    path = tmp_path / "store.db"
    rng = random.Random(SEED)
    seen: Counter[str] = Counter()
    with Child(moving.nursery, warm=str(tmp_path / "warm.db")) as child:

        def ask(*order: Any) -> tuple[int, list[str]]:
            child.send(order)
            code, said = child.receive()
            return code, said.splitlines()

        moving.fill(str(path))
        for number in range(MOVES):
            goal = moving.DIMENSIONS[(number + 1) % 2]
            for _ in range(8):
                code, said = ask("move", str(path), goal, rng.randrange(1, 10**6))
                assert code in (0, -signal.SIGKILL), said
                looked, state = ask("look", str(path))
                assert looked == 0, state
                of = [int(line.split()[1].partition(":")[0]) for line in state]
                saved = sum(int(line.rpartition(":")[2]) for line in state)
                seen["killed"] += code != 0
                seen["in the middle of the store"] += 0 < of.count(goal) < len(of)
                seen["in the middle of a user"] += saved > 0
                if code == 0:
                    break
            else:
                code, said = ask("move", str(path), goal, 0)
                assert code == 0, said
                looked, state = ask("look", str(path))
                assert looked == 0, state
            assert all(line.split()[1] == f"{goal}:0" for line in state), state
            connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True)
            assert connection.execute("SELECT count(*) FROM embedders").fetchone() == (1,)
            assert connection.execute("SELECT count(DISTINCT embedder_no) FROM records").fetchone() == (1,)
            connection.close()
    print(f"seed {SEED}: {MOVES} moves, {dict(seen)}")
    for name, count in seen.items():
        record_property(name, count)
    # Otherwise nothing was in the middle of anything.
    assert seen["killed"] >= MOVES
    assert seen["in the middle of the store"]
    assert seen["in the middle of a user"]
