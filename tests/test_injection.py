"""What is put into a request, and where: `UserMemory.prepare` and `capture` on plain messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from memlayer import MemoryStore
from memlayer.codec import Messages
from memlayer.errors import InvalidInputError
from memlayer.prompt import estimate_tokens, is_block
from tests.conftest import KEY

QUESTION = "what about peanuts, can I eat them?"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def block_of(message):
    """The block behind a message's own text, or None."""
    if isinstance(message["content"], str):
        return None
    *_, last = message["content"]
    return last["text"] if is_block(last["text"]) else None


def texts_of(block):
    return [json.loads(line)["text"] for line in block.splitlines() if line.startswith("{")]


@pytest.fixture
def peanuts(alice):
    """Alice, who has said something about peanuts."""
    alice.remember("I am allergic to peanuts", session="monday")
    return alice


# --- Where it goes ---


def test_the_block_is_a_part_of_its_own_behind_the_users_words(peanuts):
    """The latest user message gets one more text part; everything else is the same object, and nothing was changed."""
    messages = [{"role": "system", "content": "be kind"}, user("hi"), assistant("hello"), user(QUESTION)]
    before = json.dumps(messages)
    prepared = peanuts.prepare(messages)
    assert prepared.messages[3] == user([{"type": "text", "text": QUESTION}, {"type": "text", "text": prepared.block}])
    assert all(one is other for one, other in zip(prepared.messages[:3], messages, strict=False))
    assert texts_of(prepared.block) == ["I am allergic to peanuts"] == [hit.text for hit in prepared.hits]
    assert json.dumps(messages) == before


def test_parts_keep_their_order(peanuts):
    """Images and other parts stay where they are; the block comes last."""
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": QUESTION}]
    prepared = peanuts.prepare([user(parts)])
    assert prepared.messages[0]["content"][:2] == parts
    assert is_block(prepared.messages[0]["content"][2]["text"])


def test_nothing_is_put_where_nothing_fits(alice):
    """Without memories, or with none above the floor, the very same request comes back."""
    messages = [user(QUESTION)]
    assert alice.prepare(messages).messages is messages
    alice.remember("xylophone zebra")
    prepared = alice.prepare([user(QUESTION)], min_score=0.9, session="other")
    assert (prepared.block, len(prepared.hits)) == ("", 0)


@pytest.mark.parametrize("messages", [[], [assistant("hello")], [user("")], [user([{"type": "image_url"}])]])
def test_a_request_without_words_of_the_users_is_left_alone(peanuts, embedder, messages):
    """No recall, the very same object."""
    asked = embedder.query_calls
    assert peanuts.prepare(messages).messages is messages
    assert embedder.query_calls == asked


def test_placement_system_puts_it_into_the_system_prompt(peanuts):
    """At its end, or as one where there is none; the user's message stays as it was."""
    prepared = peanuts.prepare([{"role": "system", "content": "be kind"}, user(QUESTION)], placement="system")
    assert prepared.messages[0]["content"][1]["text"] == prepared.block
    assert prepared.messages[1] == user(QUESTION)
    prepared = peanuts.prepare([user(QUESTION)], placement="system", session="two")
    assert prepared.messages[0] == {"role": "system", "content": prepared.block}


def test_placement_ephemeral_is_on_this_turn_only(peanuts):
    """Earlier messages of the conversation carry nothing."""
    messages = [user(QUESTION)]
    prepared = peanuts.prepare(messages, placement="ephemeral")
    assert block_of(prepared.messages[0])
    peanuts.capture(prepared, "No.")
    peanuts.remember("My sister eats walnuts too")
    later = [*messages, assistant("No."), user("and walnuts, are they good for me?")]
    prepared = peanuts.prepare(later, placement="ephemeral")
    assert [block_of(message) is not None for message in prepared.messages] == [False, False, True]


# --- Sticky ---


def test_over_twelve_turns_each_request_begins_with_the_one_before(alice):
    """Serialised identically, byte for byte, so that the provider's prompt cache stays valid."""
    for number in range(60):
        alice.remember(f"Fact {number} is about topic {number % 12} and its colour {number * 7 % 12}")
    messages: list[dict[str, str]] = []
    before: list[str] = []
    for turn in range(12):
        messages.append(user(f"tell me about topic {turn} and its colour {turn}"))
        prepared = alice.prepare(messages, session="s1", max_tokens=200)
        sent = [json.dumps(message) for message in prepared.messages]
        assert sent[: len(before)] == before
        assert block_of(prepared.messages[-1])
        before = sent
        alice.capture(prepared, f"answer {turn}")
        messages.append(assistant(f"answer {turn}"))


def test_no_memory_stands_in_a_conversation_twice(alice):
    """What an earlier block shows, and what the prompt itself shows, is left out of the next."""
    alice.remember("peanuts are bad for me")
    alice.remember("peanuts make me sneeze")
    first = alice.prepare([user("are peanuts bad?")], k=1)
    alice.capture(first, "peanuts are out")
    second = alice.prepare(
        [user("are peanuts bad?"), assistant("peanuts are out"), user("why are peanuts bad for me?")]
    )
    assert texts_of(first.block) == ["peanuts are bad for me"]
    assert texts_of(second.block) == ["peanuts make me sneeze"]


def test_a_conversation_carries_at_most_4000_sticky_tokens(alice):
    """When there is no more room nothing is added, and what stands there stays."""
    for number in range(200):
        alice.remember(f"topic {number % 20}: " + " ".join(f"word{number}x{i}" for i in range(60)))
    messages, sent = [], []
    for turn in range(20):
        messages.append(user(f"what of topic {turn}, once more?"))
        prepared = alice.prepare(messages, session="long")
        sent = [block for message in prepared.messages if (block := block_of(message))]
        assert sum(map(estimate_tokens, sent)) <= 4_000
        alice.capture(prepared, f"answer {turn}")
        messages.append(assistant(f"answer {turn}"))
    assert sum(map(estimate_tokens, sent)) > 3_000


# --- Once ---


def test_a_retry_gets_the_same_block_without_another_recall(peanuts, embedder):
    """As often as it is prepared before an answer, byte for byte, also by another handle of the same user."""
    first = peanuts.prepare([user(QUESTION)], session="s1")
    asked = embedder.query_calls
    again = peanuts.prepare([user(QUESTION)], session="s1")
    assert again.messages == first.messages
    assert embedder.query_calls == asked


def test_a_tool_loop_asks_once_and_remembers_once(peanuts, embedder):
    """Two requests for one thing that the user said: one recall, the block in both, the user's turn and one reply."""
    messages = [user(QUESTION)]
    first = peanuts.prepare(messages, session="s1")
    asked = embedder.query_calls
    peanuts.capture(first, None)
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    second = peanuts.prepare([*messages, call, {"role": "tool", "content": "peanut: a legume"}], session="s1")
    assert second.messages[0] == first.messages[0]
    peanuts.capture(second, "Better not.")
    assert embedder.query_calls == asked
    assert [(turn.role, turn.text) for turn in peanuts.history(session="s1")] == [
        ("user", QUESTION),
        ("assistant", "Better not."),
    ]


def test_the_same_words_later_are_a_new_turn(peanuts, embedder):
    """Once it was answered, an identical request is a new one: a new recall, and both sides are remembered again."""
    for count in (1, 2):
        asked = embedder.query_calls
        peanuts.capture(peanuts.prepare([user(QUESTION)], session="daily"), "No.")
        assert embedder.query_calls == asked + 1
        assert len(peanuts.history(session="daily")) == 2 * count


def test_a_forgotten_memory_leaves_later_requests_in_every_process(peanuts, tmp_path, embedder):
    """A block that is replayed is made of what still is there."""
    messages = [user(QUESTION)]
    peanuts.capture(peanuts.prepare(messages, session="s1"), "No.")
    messages += [assistant("No."), user("and what else should I know?")]
    with MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=embedder) as other:
        assert block_of(other.user("alice").prepare(messages, session="s1").messages[0])
        peanuts.forget(session="monday")
        for handle in (peanuts, other.user("alice")):
            assert block_of(handle.prepare(messages, session="s1").messages[0]) is None


def test_somebody_elses_block_is_respected(peanuts, embedder):
    """A request that has a block already (from a framework around, or a gateway) is left alone, and not captured."""
    outer = peanuts.prepare([user(QUESTION)]).messages
    asked = embedder.query_calls
    inner = peanuts.prepare(outer, session="inner")
    assert inner.messages is outer
    assert not inner.captures
    assert embedder.query_calls == asked


# --- What is asked ---


class Listening(Messages):
    """Nothing but the usual."""


@pytest.mark.parametrize("short", ["yes, do it", "why?", "好的"])
def test_a_short_question_is_asked_with_what_was_said_before_it(alice, short):
    """Alone it would find nothing."""
    alice.remember("the ferry to Lisbon leaves at nine")
    alice.remember("zebras have stripes")
    messages = [user("I need to travel"), assistant("Shall I look up the ferry to Lisbon?"), user(short)]
    assert texts_of(alice.prepare(messages, k=1).block) == ["the ferry to Lisbon leaves at nine"]


def test_of_a_long_paste_the_end_is_asked_too(alice):
    """The question of a long text is often its last line."""
    alice.remember("my locker number is 4711")
    alice.remember("zebras have stripes")
    prepared = alice.prepare([user("lorem ipsum " * 2_000 + "\nwhat is my locker number?")], k=1)
    assert texts_of(prepared.block) == ["my locker number is 4711"]


# --- Capture ---


def test_both_sides_are_remembered_with_their_roles_and_times(alice):
    """The user's own words, not the block; the reply; the session on both; the user first."""
    alice.remember("I am allergic to peanuts")
    prepared = alice.prepare(
        [user([{"type": "text", "text": "can I"}, {"type": "text", "text": "eat peanuts?"}])], session="s"
    )
    said, replied = alice.capture(prepared, "No.")
    assert (said.role, said.text, said.session, said.source) == ("user", "can I\neat peanuts?", "s", "user")
    assert (replied.role, replied.text, replied.session, replied.source) == ("assistant", "No.", "s", "assistant")
    assert said.at <= replied.at


def test_a_reply_has_the_time_at_which_it_was_said(alice, embedder, monkeypatch):
    """However long the embedding takes: what the user says meanwhile comes behind it."""
    first = alice.prepare([user(QUESTION)], session="s")
    later = []
    embed = embedder.embed_documents

    def slow(texts):
        later.append(datetime.now(UTC))
        return embed(texts)

    monkeypatch.setattr(embedder, "embed_documents", slow)
    said, replied = alice.capture(first, "No.")
    assert said.at <= replied.at <= later[0]


def test_a_reply_that_broke_off_is_marked(alice):
    """Where it is kept at all."""
    _, replied = alice.capture(alice.prepare([user(QUESTION)]), "No, beca", complete=False)
    assert replied.metadata == {"incomplete": True}


def test_what_was_prepared_for_one_user_is_no_others(peanuts, store):
    """Refused, with nothing written."""
    prepared = peanuts.prepare([user(QUESTION)])
    with pytest.raises(InvalidInputError):
        store.user("bob").capture(prepared, "No.")
    assert store.count_users() == 1
    assert QUESTION not in repr(prepared)
    assert "alice" not in repr(prepared)


@pytest.mark.parametrize(
    "options",
    [{"placement": "top"}, {"k": 0}, {"max_tokens": -1}, {"session": ""}, {"min_score": 2}, {"where": {"$x": 1}}],
)
def test_options_that_make_no_sense_are_refused(alice, options):
    """Before anything is asked."""
    with pytest.raises(InvalidInputError):
        alice.prepare([user(QUESTION)], **options)
