"""Facts: what they say of themselves, and that nothing of a forgotten turn lives on in one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from memlayer import MemoryStore, NotFoundError, RawKey, StoreDamagedError, Turn
from memlayer.distiller import Distiller
from memlayer.errors import FormatTooNewError
from memlayer.facts import with_sources
from memlayer.items import ItemKind
from memlayer.lineage import Lineage, Link, Round, without
from memlayer.testing import HashingEmbedder
from tests.distilling import Scribe, turns

if TYPE_CHECKING:
    from memlayer.memory import UserMemory

KEY = RawKey(bytes(range(32)))
AT = datetime(2026, 3, 2, 18, 30, tzinfo=UTC)
DAY = timedelta(days=1)
MOVES = [("in Lisbon", "Alice lives in Lisbon"), ("to Porto", "Alice lives in Porto", "Lisbon")]


def distil(memory: UserMemory, *rules: tuple[str, ...], **settings: Any) -> Scribe:
    """Has all that is due distilled by these rules."""
    scribe = Scribe(list(rules))
    Distiller(memory, model=scribe, **settings).run()
    return scribe


def texts(memory: UserMemory) -> list[str]:
    return [fact.text for fact in memory.facts()]


def everything(memory: UserMemory) -> list[str]:
    return [each.text for each in memory.history(limit=1000)]


# --- What a fact is ---


def test_a_fact_is_a_memory_with_its_sources(alice):
    """It says which turns it is from and when, is recalled and got like any other, and is nobody's words."""
    first = alice.remember("I'm allergic to peanuts", session="monday", at=AT)
    second = alice.remember("Even a trace of peanuts", session="monday", at=AT + DAY, id="mine")
    distil(alice, ("peanuts", "Alice is allergic to peanuts"))
    [fact] = alice.facts()
    assert fact.text == "Alice is allergic to peanuts"
    assert fact.sources == (first.id, "mine")
    assert fact.superseded_by is None
    assert (fact.at, fact.role, fact.source, fact.session, fact.expires) == (
        second.at,
        "system",
        "assistant",
        None,
        None,
    )
    assert alice.get(fact.id).text == fact.text
    assert fact.id in {hit.id for hit in alice.recall("Alice is allergic to peanuts", k=3, min_score=0)}
    assert (len(alice), alice.facts()) == (3, [fact])


def test_hits_that_are_facts_say_where_they_are_from(alice):
    """`with_sources` marks the facts among a recall's hits, and nothing else; without facts it changes nothing."""
    alice.remember("I live in Lisbon", id="home")
    resident = alice._resident
    hits = alice.recall("Lisbon", min_score=0)
    with resident.reading() as (_, index):
        assert with_sources(hits, lineage=resident.lineage, index=index) == list(hits)
    distil(alice, *MOVES)
    hits = alice.recall("Lisbon", min_score=0)
    with resident.reading() as (_, index):
        marked = with_sources(hits, lineage=resident.lineage, index=index)
    assert {hit.text: hit.sources for hit in marked} == {"I live in Lisbon": (), "Alice lives in Lisbon": ("home",)}


def test_nobody_has_facts_who_did_not_ask_for_them(alice):
    """Without distilling there are none, and for a user who has nothing neither."""
    assert alice.facts() == []
    alice.remember("I'm allergic to peanuts")
    assert alice.facts() == []


def test_facts_survive_closing(tmp_path):
    """Facts and links are on the disk, and another process reads the same ones."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        alice = store.user("alice")
        alice.remember("I live in Lisbon")
        alice.remember("I moved to Porto", session="later")
        distil(alice, *MOVES)
        before = alice.facts()
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        assert store.user("alice").facts() == before
        assert [bool(fact.superseded_by) for fact in before] == [True, False]
        assert store.verify().memories == 4


def test_no_text_and_no_link_stands_in_the_file(tmp_path):
    """A fact, its sources and that one took the place of another are sealed: none of it is in any byte of the file."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        alice = store.user("alice")
        alice.remember("I live in Lisbon", id="turn-one")
        distil(alice, *MOVES)
        [fact] = alice.facts()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    for hidden in (b"Alice lives", b"turn-one", fact.id.encode(), b'"s":'):
        assert hidden not in raw


@pytest.mark.parametrize(
    ("sources", "becomes"),
    [
        (["user"], "assistant"),
        (["user", "assistant"], "assistant"),
        (["user", "import"], "import"),
        (["import", "document"], "document"),
        (["user", "tool"], "tool"),
        (["tool"], "tool"),
        (["document", "tool"], "tool"),
    ],
)
def test_a_fact_is_of_the_worst_provenance_among_its_sources(alice, sources, becomes):
    """A model's words are never a user's, and what a tool or a document said does not get better by being told."""
    alice.remember_many([Turn(text=f"Peanuts, says {source}", session="s", source=source) for source in sources])
    distil(alice, ("Peanuts", "Peanuts matter"), sources=["user", "assistant", "import", "document", "tool"])
    assert [fact.source for fact in alice.facts()] == [becomes]
    assert not [hit for hit in alice.recall("Peanuts matter", sources=["user"], min_score=0) if hit.role == "system"]


def test_tools_and_documents_are_not_read_by_default(alice):
    """A tool's and a document's words are neither sent nor distilled, unless somebody says so."""
    alice.remember("The tool says peanuts", role="tool", session="s")
    alice.remember("The document says peanuts", source="document", session="s")
    scribe = distil(alice, ("peanuts", "Alice likes peanuts"))
    assert (scribe.requests, alice.facts()) == ([], [])


def test_a_fact_expires_with_the_first_of_its_sources(alice):
    """What is no longer recalled from a turn is no longer recalled from a fact."""
    soon = datetime.now(UTC) + DAY
    alice.remember("Peanuts for a week", session="s", expires=soon + DAY)
    alice.remember("Peanuts for a day", session="s", expires=soon)
    alice.remember("Peanuts for ever", session="s")
    distil(alice, ("Peanuts", "Peanuts matter"))
    assert [fact.expires for fact in alice.facts()] == [soon]


def test_expired_turns_are_not_sent(alice):
    """A turn that is no longer recalled goes to no model either."""
    alice.remember("I live in Lisbon", expires=datetime.now(UTC) - DAY)
    assert distil(alice, *MOVES).requests == []


# --- Superseding ---


def test_superseding_deletes_nothing(alice):
    """The older fact stays in the store and in the list, and names the one that took its place."""
    alice.remember("I live in Lisbon", at=AT)
    alice.remember("I moved to Porto", session="later", at=AT + DAY)
    distil(alice, *MOVES)
    old, new = alice.facts()
    assert (old.text, old.superseded_by) == ("Alice lives in Lisbon", new.id)
    assert (new.text, new.superseded_by) == ("Alice lives in Porto", None)
    assert alice.get(old.id).text == "Alice lives in Lisbon"
    resident = alice._resident
    with resident.reading():
        assert set(resident.lineage.superseded) == {bytes.fromhex(old.id)}


def test_recall_leaves_out_what_was_superseded(alice):
    """By a question and by a vector, also beside a hit; the newer fact says which turns it is from."""
    alice.remember("I live in Lisbon", at=AT)
    moved = alice.remember("I moved to Porto", session="later", at=AT + DAY)
    distil(alice, *MOVES)
    old, new = alice.facts()
    vector = HashingEmbedder().embed_query("Alice lives in Lisbon")
    for found in (alice.recall("Alice lives", min_score=0, neighbours=1), alice.recall(vector, k=10)):
        by_id = {hit.id: hit for hit in found}
        assert old.id not in by_id
        assert moved.id in by_id[new.id].sources
        assert not by_id[moved.id].sources


def test_only_what_is_not_newer_is_superseded(alice):
    """An old chat that is read later does not make out of date what was said after it."""
    alice.remember("I moved to Porto", session="a", at=AT + DAY)
    distil(alice, ("to Porto", "Alice lives in Porto"))
    alice.remember("I live in Lisbon", session="b", at=AT)
    distil(alice, ("in Lisbon", "Alice lives in Lisbon", "Porto"))
    assert [fact.superseded_by for fact in alice.facts()] == [None, None]


def test_a_tool_cannot_supersede_what_people_said(alice):
    """A fact of worse provenance takes no better one's place; the other way around it does."""
    alice.remember("I live in Lisbon", session="a", at=AT)
    distil(alice, *MOVES)
    alice.remember("She moved to Porto", session="b", role="tool", at=AT + DAY)
    distil(alice, *MOVES, sources=["tool"])
    assert [(fact.source, fact.superseded_by) for fact in alice.facts()] == [("assistant", None), ("tool", None)]
    alice.remember("I went to Faro", session="c", at=AT + 2 * DAY)
    distil(alice, ("to Faro", "Alice lives in Faro", "Porto"))
    assert alice.facts()[1].superseded_by == alice.facts()[2].id


def test_what_was_superseded_stands_again_when_the_newer_one_goes(alice):
    """Forgetting the newer fact gives the older one back; a third one in a row keeps it superseded."""
    alice.remember("I live in Lisbon", session="a", at=AT)
    alice.remember("I moved to Porto", session="b", at=AT + DAY)
    alice.remember("I went to Faro", session="c", at=AT + 2 * DAY)
    distil(alice, *MOVES, ("to Faro", "Alice lives in Faro", "Porto"))
    lisbon, porto, faro = alice.facts()
    alice.forget(porto.id)
    assert [(fact.text, fact.superseded_by) for fact in alice.facts()] == [
        ("Alice lives in Lisbon", faro.id),
        ("Alice lives in Faro", None),
    ]
    alice.forget(faro.id)
    assert [(fact.id, fact.superseded_by) for fact in alice.facts()] == [(lisbon.id, None)]


# --- Forgetting ---

GONE = {
    "by id": lambda memory, turn: memory.forget(turn.id),
    "by session": lambda memory, _: memory.forget(session="monday"),
    "by time": lambda memory, _: memory.forget(since=AT, until=AT + DAY),
    "by source": lambda memory, _: memory.forget(source="user"),
    "by metadata": lambda memory, _: memory.forget(where={"n": 1}),
}


@pytest.mark.parametrize("way", GONE)
def test_a_fact_is_forgotten_with_its_source(alice, way):
    """However the turn goes, the fact goes in the same transaction, from every list, the links with it."""
    turn = alice.remember("I'm allergic to peanuts", session="monday", at=AT, metadata={"n": 1})
    alice.remember("Noted", role="assistant", session="tuesday", at=AT + 2 * DAY)
    distil(alice, ("peanuts", "Alice is allergic to peanuts"))
    [fact] = alice.facts()
    assert GONE[way](alice, turn) == (2 if way == "by time" else 1)  # The fact is of that time itself.
    assert (alice.facts(), everything(alice), len(alice)) == ([], ["Noted"], 1)
    with pytest.raises(NotFoundError):
        alice.get(fact.id)
    assert not [hit for hit in alice.recall("allergic to peanuts", min_score=0) if "peanuts" in hit.text]
    [content] = alice.items(ItemKind.FACTS).read().values()
    assert turn.id.encode() not in content
    assert fact.id.encode() not in content


def test_one_of_two_sources_is_enough(alice):
    """Nobody can tell which words came from which turn: the fact goes with either, and the other turn is due again."""
    alice.remember("The doctor says: no peanuts", session="s", id="one")
    alice.remember("Peanuts make me ill", session="s", id="two")
    distil(alice, ("eanuts", "No peanuts for Alice, says the doctor"))
    alice.forget("one")
    assert alice.facts() == []
    scribe = distil(alice, ("eanuts", "Peanuts make Alice ill"))
    assert list(turns(scribe.requests[0]).values()) == ["Peanuts make me ill"]
    assert [fact.sources for fact in alice.facts()] == [("two",)]


def test_what_a_fact_has_from_another_fact_goes_too(alice):
    """A model that writes a known fact's word into a new one, and does not say so, makes that one's turn a source."""
    alice.remember("I live in Lisbon", session="a", id="one")
    alice.remember("I moved to Porto", session="b", id="two")
    distil(alice, MOVES[0], ("to Porto", "Alice went from Lisbon to Porto", "Lisbon"))
    assert alice.facts()[1].sources == ("one", "two")
    alice.forget("one")
    assert alice.facts() == []
    distil(alice, ("to Porto", "Alice lives in Porto"))
    assert [(fact.text, fact.sources) for fact in alice.facts()] == [("Alice lives in Porto", ("two",))]


def test_what_a_fact_has_from_a_turn_that_it_does_not_name_goes_too(alice):
    """The same for a turn of the same request."""
    alice.remember("The code of the door is 7741", session="a", id="one")
    alice.remember("Let us meet at the door", session="a", id="two")
    distil(alice, ("meet", "Alice meets people at the door with code 7741"))
    assert alice.facts()[0].sources == ("one", "two")
    alice.forget("one")
    assert alice.facts() == []


@pytest.mark.parametrize("way", ["update", "replace"])
def test_a_source_that_says_something_else_takes_its_facts_along(alice, way):
    """A changed turn is another turn: its facts go, and it is due again."""
    alice.remember("I live in Lisbon", id="home", at=AT)
    distil(alice, *MOVES)
    if way == "update":
        alice.update("home", text="I moved to Porto")
    else:
        alice.remember("I moved to Porto", id="home", at=AT, replace=True)
    assert alice.facts() == []
    distil(alice, *MOVES)
    assert texts(alice) == ["Alice lives in Porto"]


def test_other_metadata_is_no_other_turn(alice):
    """A turn that still says the same keeps its facts, and no model is asked again."""
    alice.remember("I live in Lisbon", id="home")
    distil(alice, *MOVES)
    alice.update("home", metadata={"seen": True})
    assert texts(alice) == ["Alice lives in Lisbon"]
    assert distil(alice, *MOVES).requests == []


def test_a_fact_can_be_corrected_and_forgotten_by_itself(alice):
    """Its own text can be changed; forgotten, it stays so, and its sources stay where they are, read."""
    alice.remember("I live in Lisbon", id="home")
    distil(alice, *MOVES)
    [fact] = alice.facts()
    alice.update(fact.id, text="Alice lives in Lisbon, in the old town")
    assert alice.facts()[0].sources == ("home",)
    assert alice.forget(fact.id) == 1
    assert (alice.facts(), everything(alice)) == ([], ["I live in Lisbon"])
    assert distil(alice, *MOVES).requests == []


def test_a_fact_and_its_source_changed_in_one_batch(alice, store):
    """The fact goes with its source even where the same write changes it."""
    alice.remember("I live in Lisbon", id="home", at=AT)
    distil(alice, *MOVES)
    [fact] = alice.facts()
    batch = [Turn(text="I live in Faro", id="home", at=AT), Turn(text="Changed", id=fact.id, at=AT)]
    alice.remember_many(batch, replace=True)
    assert (alice.facts(), everything(alice)) == ([], ["I live in Faro"])
    store.verify()


def test_erase_leaves_nothing(alice, store):
    """An erased user has no facts, no links, and begins anew."""
    alice.remember("I live in Lisbon")
    distil(alice, *MOVES)
    assert alice.erase().memories == 2
    assert (alice.facts(), len(alice), alice.items(ItemKind.FACTS).read()) == ([], 0, {})
    alice.remember("I live in Lisbon")
    distil(alice, *MOVES)
    assert texts(alice) == ["Alice lives in Lisbon"]
    store.verify()


PROCESS = """
import sys
from memlayer import MemoryStore, RawKey
from memlayer.testing import HashingEmbedder
with MemoryStore.open(sys.argv[1], keys=RawKey(bytes(range(32))), embedder=HashingEmbedder()) as store:
    alice = store.user("alice")
    print(alice.{call}, [fact.text for fact in alice.facts()])
"""


@pytest.mark.parametrize("call", ["forget('home')", "update('home', text='I am at sea').text"])
def test_another_process_takes_the_facts_along(tmp_path, store, alice, call):
    """A process that never distilled forgets a turn or changes it: the facts are gone for this one's next look."""
    alice.remember("I live in Lisbon", id="home")
    distil(alice, *MOVES)
    assert texts(alice) == ["Alice lives in Lisbon"]
    program = textwrap.dedent(PROCESS).replace("{call}", call)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "memories.db")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
    assert alice.facts() == []
    assert not [hit for hit in alice.recall("Lisbon", min_score=0) if hit.role == "system"]
    store.verify()


def test_two_users_have_their_own(store):
    """The same words and the same ids of two users: each has the facts of their own turns, and loses those alone."""
    alice, bob = store.user("alice"), store.user("bob")
    for user in (alice, bob):
        user.remember("I live in Lisbon", id="home")
    distil(alice, *MOVES)
    assert bob.facts() == []
    distil(bob, *MOVES)
    assert alice.facts()[0].id != bob.facts()[0].id
    with pytest.raises(NotFoundError):
        bob.get(alice.facts()[0].id)
    assert bob.forget(alice.facts()[0].id) == 0
    bob.forget("home")
    assert (texts(alice), bob.facts()) == (["Alice lives in Lisbon"], [])


def test_facts_move_with_their_user_to_another_embedder(tmp_path):
    """After reembed they are there with the same links, and are recalled."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        alice = store.user("alice")
        alice.remember("I live in Lisbon", id="home")
        distil(alice, *MOVES)
        before = alice.facts()
        store.reembed(HashingEmbedder(32))
        assert alice.facts() == before
        assert before[0].id in {hit.id for hit in alice.recall("Alice lives in Lisbon", min_score=0)}
        alice.forget("home")
        assert alice.facts() == []


def test_an_export_leaves_facts_behind(store, alice, tmp_path):
    """Turns move, facts do not: at the other end nothing would take them along when a turn is forgotten."""
    alice.remember("I live in Lisbon", id="home")
    distil(alice, *MOVES)
    assert alice.export(tmp_path / "alice.memlayer", passphrase="correct horse") == 1
    bob = store.user("bob")
    assert bob.import_(tmp_path / "alice.memlayer", passphrase="correct horse").added == 1
    assert (everything(bob), bob.facts()) == (["I live in Lisbon"], [])


def test_many_go_at_once(alice, store):
    """Hundreds of turns in many rounds, forgotten in one call: nothing of a fact is left, and the rest stands."""
    alice.remember_many([Turn(text=f"Number {n} is odd", session=f"s{n % 7}", metadata={"n": n}) for n in range(300)])
    rules = [(f"Number {n} ", f"Fact of {n}") for n in range(300)]
    distil(alice, *rules, batch=10, facts=50)
    assert len(alice.facts()) == 300
    assert alice.forget(where={"n": {"$gte": 5}}) == 295
    assert sorted(texts(alice)) == [f"Fact of {n}" for n in range(5)]
    assert len(alice) == 10
    store.verify()


# --- Links by themselves ---

A, B, C, D, E, F = (bytes([number]) * 16 for number in range(1, 7))


def test_a_round_is_read_as_it_was_written():
    """Content in both directions, and what a round looks like is pinned."""
    full = Round((A, B), (Link(C, (A,), (D, E)), Link(F, (A, B))))
    assert Round.from_json(full.to_json()) == full
    assert Round((A,), (Link(C, (A,)),)).to_json() == (
        b'{"f":[{"i":"' + b"03" * 16 + b'","s":["' + b"01" * 16 + b'"],"x":[]}],"t":["' + b"01" * 16 + b'"]}'
    )


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"f":{},"t":[]}', b'{"f":[],"t":"0101"}', b'{"f":[],"t":["01"]}', b'{"f":[],"t":[1]}',
        b'{"f":[{"i":"' + b"03" * 16 + b'","s":[],"x":[]}],"t":[]}', b"[" * 100_000, b"\xff",
    ],
)  # fmt: skip
def test_a_round_that_is_none_is_damage(content):
    """What `to_json` does not make is refused."""
    with pytest.raises(StoreDamagedError):
        Round.from_json(content)


@pytest.mark.parametrize("content", [b'{"f":[],"t":[],"z":1}', b'{"f":[{"i":"","s":[],"x":[],"z":1}],"t":[]}'])
def test_a_round_of_a_later_version_says_so(content):
    """A field that is not known is not passed over."""
    with pytest.raises(FormatTooNewError):
        Round.from_json(content)


def test_nothing_is_left_of_a_round_whose_turns_are_gone():
    """It is an empty one, and false, so that its item goes."""
    after, dropped = without({1: Round((A,), (Link(C, (A,)),))}, gone={A}, changed=set())
    assert (after, dropped) == ({1: Round(())}, {C})
    assert not after[1]


def test_rounds_that_have_nothing_to_do_with_it_stay_as_they_are():
    """Only what changes is written again."""
    rounds = {1: Round((A,), (Link(C, (A,)),)), 2: Round((B,), (Link(D, (B,)),))}
    assert without(rounds, gone={A}, changed=set())[0].keys() == {1}
    assert without(rounds, gone={E}, changed={F}) == ({}, set())


def test_links_that_go_in_circles_end():
    """Authentic or not, a circle of superseding facts does not hang."""
    rounds = {1: Round((A, B), (Link(C, (A,), (D,)), Link(D, (A,), (C,)), Link(E, (B,), (C,))))}
    after, dropped = without(rounds, gone={A}, changed=set())
    assert dropped == {C, D}
    assert after[1] == Round((B,), (Link(E, (B,)),))


def test_a_lineage_of_nothing():
    """A user without facts has none, superseded ones neither."""
    assert (dict(Lineage().links), Lineage().read, set(Lineage().superseded)) == ({}, frozenset(), set())
