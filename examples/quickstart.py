"""Remember, recall, forget. Run it twice: the second run finds what the first one stored.

pip install "memlayer-sdk[local]"
"""

from datetime import UTC, datetime

from memlayer import MemoryStore, Turn

with MemoryStore.open("memories.db") as store:  # made on first use, with a key file in your settings folder
    alice = store.user("alice")
    print(f"alice has {len(alice)} memories")

    alice.remember("I'm allergic to peanuts", id="allergy")  # with an id of yours, a second run adds nothing
    alice.remember_many(
        [
            Turn(id="trip-1", text="My flight to Lisbon leaves at 9:40", at=datetime(2026, 5, 8, 18, 30, tzinfo=UTC)),
            Turn(id="trip-2", text="Noted. Gate 12.", role="assistant", session="trip", metadata={"gate": 12}),
        ]
    )

    hits = alice.recall("what can't I eat?", k=2)
    for hit in hits:
        print(f"{hit.score:.2f}  {hit.role}: {hit.text}")
    print(hits.as_prompt())  # goes into your model's prompt, whichever model that is

    alice.forget(session="trip")
    print(f"and now {len(alice)}; bob has {len(store.user('bob'))}")
