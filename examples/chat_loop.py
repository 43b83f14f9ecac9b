"""A chat that remembers: type line by line; an empty line ends it. Run it again, and it knows what you said.

pip install "memlayer-sdk[local]"
"""

import sys
from datetime import UTC, datetime

from memlayer import MemoryStore


def answer(message: str, block: str) -> str:
    """Here goes your model: `block` as a system message, `message` as the user's. This is none, and says so."""
    return f"[no model: it would get your {len(message)} characters, and {len(block)} of earlier talk]"


def main() -> None:
    """Recall before the answer, remember both sides after it."""
    session = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    with MemoryStore.open("chat.db") as store:
        me = store.user("me")
        for line in sys.stdin:
            message = line.strip()
            if not message:
                break
            block = me.recall(message, k=5, sources=["user"]).as_prompt()
            reply = answer(message, block)
            me.remember(message, role="user", session=session)
            me.remember(reply, role="assistant", session=session)
            print(block, reply, sep="\n", flush=True)


if __name__ == "__main__":
    main()
