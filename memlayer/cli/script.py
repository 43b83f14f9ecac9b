"""What is said in the demo, and who answers: an offline stand-in that says that it is one.

No word of six letters or more may stand in the schema of a store, which is no secret: the scan would find it there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["DAY_ONE", "DAY_TWO", "USER_ID", "Line", "stand_in"]

USER_ID = "marie.lefevre@mail.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that the user says.

    Attributes:
        at: when.
        text: what.
        needs: a word of the memory that it takes to answer, which the recall must bring; "" where it takes none.
    """

    at: datetime
    text: str
    needs: str = ""


DAY_ONE = (
    Line(
        at=datetime(2026, 3, 2, 18, 40, tzinfo=UTC),
        text="Hi, I'm Marie. In January I moved to Lisbon, where I work as a night nurse.",
    ),
    Line(
        at=datetime(2026, 3, 2, 18, 42, tzinfo=UTC),
        text="I'm badly allergic to peanuts, so I always ask what is in the sauce.",
    ),
    Line(
        at=datetime(2026, 3, 2, 18, 45, tzinfo=UTC), text="My daughter Clara turns seven in June. She adores octopuses."
    ),
    Line(
        at=datetime(2026, 3, 2, 18, 47, tzinfo=UTC),
        text="Every Thursday evening I rehearse with my string quartet; I play the cello.",
    ),
)

DAY_TWO = (
    Line(
        at=datetime(2026, 3, 3, 12, 5, tzinfo=UTC),
        text="Someone offered me satay for lunch. Can I eat that?",
        needs="peanuts",
    ),
    Line(
        at=datetime(2026, 3, 3, 12, 9, tzinfo=UTC),
        text="What could I give my little girl for her birthday?",
        needs="octopuses",
    ),
    Line(at=datetime(2026, 3, 3, 12, 11, tzinfo=UTC), text="And which instrument do I play?", needs="cello"),
)


def stand_in(message: str, block: str) -> str:
    """In place of a model: quotes what is in the block, and says that it does no more.

    Args:
        message: what the user said.
        block: what was recalled for it, as a model would get it.
    """
    quoted = [json.loads(line)["text"] for line in block.splitlines() if line.startswith("{")]
    if "?" not in message or not quoted:
        return "[offline stand-in, no model] Noted."
    return "[offline stand-in, no model] I can only quote what I was given: " + " / ".join(quoted)
