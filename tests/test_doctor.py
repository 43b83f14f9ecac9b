"""memlayer doctor: each finding from a store that has what it tells of, and none from a store that works."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from memlayer import MemoryStore, RawKey, Turn
from memlayer.cli.app import app
from memlayer.doctor import diagnose
from memlayer.embedders import MiniLM
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.testing import HashingEmbedder

KEY = RawKey(bytes(range(32)))
NOW = datetime(2026, 3, 2, 18, 30, tzinfo=UTC)

THINGS = (
    "harbour garden violin winter bicycle bread island letter mountain coffee painter river market window "
    "doctor summer teacher engine forest candle kitchen museum sister ticket blanket orchard pepper "
    "station camera cousin"
)
WORDS = THINGS.split()
SAID = [
    f"My {one} near the {two} reminds me of a {three} that we saw in {1960 + number}."
    for number, (one, two, three) in enumerate(zip(WORDS, WORDS[7:] + WORDS[:7], WORDS[13:] + WORDS[:13], strict=True))
]


def chat(texts: list[str], **changes: Any) -> list[Turn]:
    """A conversation of two in a session an hour, a minute a turn."""
    return [
        Turn(
            **{
                "text": text,
                "role": "assistant" if number % 2 else "user",
                "session": f"s{number // 10}",
                "at": NOW + timedelta(hours=number // 10, minutes=number),
            }
            | changes
        )
        for number, text in enumerate(texts)
    ]


class Known(HashingEmbedder):
    """A hashing embedder of real dimensions that passes for a calibrated one: its texts are told apart by words."""

    def __init__(self, **identity: Any) -> None:
        super().__init__(256)
        self.changed = identity

    @property
    def identity(self) -> EmbedderIdentity:
        return super().identity.model_copy(update=self.changed)


@pytest.fixture
def examine(tmp_path):
    """The kinds of what is found in a store with these turns, and the diagnosis."""
    opened: list[MemoryStore] = []

    def examined(turns: list[Turn], *, embedder: Any = None, embeddings: Any = None, **options: Any) -> Any:
        store = MemoryStore.open(tmp_path / f"{len(opened)}.db", keys=KEY, embedder=embedder or Known())
        opened.append(store)
        user = store.user("alice")
        user.remember_many(turns, embeddings=embeddings)
        diagnosis = diagnose(user, **options)
        # What no hashing embedder is: calibrated.
        return {finding.kind: finding for finding in diagnosis.findings if finding.kind != "uncalibrated"}, diagnosis

    yield examined
    for store in opened:
        store.close()


# --- The healthy ---


def test_a_store_that_works_has_no_findings(tmp_path):
    """A chat in sessions, with times and roles, embedded by all-MiniLM-L6-v2: nothing is wrong, and the cosines and the
    directions of the vectors are told."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY) as store:
        user = store.user("alice")
        user.remember_many(chat([*SAID, "Do you remember when we saw the island?"]))
        diagnosis = diagnose(user, questions=["What reminds me of the harbour?"])
    assert diagnosis.findings == []
    assert (diagnosis.memories, diagnosis.asked, diagnosis.unanswered) == (31, 1, [])
    assert diagnosis.floor > 0
    assert diagnosis.shape is not None
    assert diagnosis.shape.mean_cosine < 0.6


def test_the_fake_store_of_these_tests_is_healthy(examine):
    """The turns that the other tests spoil have no findings of their own."""
    assert examine(chat(SAID))[0] == {}


def test_an_empty_memory_is_nothing_to_examine(examine):
    """A user who has nothing has no findings, and no model was asked."""
    embedder = Known()
    findings, diagnosis = examine([], embedder=embedder)
    assert (findings, diagnosis.memories, embedder.texts) == ({}, 0, 0)


def test_few_memories_are_no_pattern(examine):
    """Two lone notes without sessions or speakers are no fault."""
    assert examine([Turn(text="I like plums"), Turn(text="I like pears")])[0] == {}


def test_an_expired_memory_is_not_examined(examine):
    """What is no longer recalled counts for nothing."""
    _, diagnosis = examine([*chat(SAID[:12]), Turn(text="gone", expires=datetime(2020, 1, 1, tzinfo=UTC))])
    assert diagnosis.memories == 12


# --- The embedder ---


class Short(Known):
    """Reads forty words and passes over the rest, without a word about it."""

    split = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name == "split":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def embed_documents(self, texts: Any) -> Any:
        return super().embed_documents([" ".join(text.split()[:40]) for text in texts])


def test_truncated_texts_are_found_by_changing_their_end(examine):
    """An embedder that drops the end of a long text is found out; how much it reads is measured, and who is longer is
    counted."""
    long = " ".join(SAID[:12])
    findings, _ = examine(chat([*SAID, long, long.upper()]), embedder=Short())
    assert findings["truncated"].count == 2
    window = len(" ".join(long.split()[:40]))
    said = findings["truncated"].what
    assert abs(int(said.partition("about ")[2].split()[0]) - window) <= 12
    assert "truncated" not in examine(chat([*SAID, long]), embedder=Known())[0]


def test_a_text_in_parts_is_not_truncated(tmp_path):
    """all-MiniLM-L6-v2 splits what is longer than its window: a text of a thousand words is no fault."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=MiniLM()) as store:
        user = store.user("alice")
        user.remember_many(chat([*SAID[:10], " ".join(SAID * 3)]))
        assert "truncated" not in {finding.kind for finding in diagnose(user).findings}


class Narrow(Known):
    """Every text looks nearly alike, as to a language model that was never trained to embed."""

    def _vector(self, text: str) -> Any:
        vector = super()._vector(text) * 0.1
        vector[0] += 1
        return vector / np.linalg.norm(vector)


def test_a_collapsed_space_is_found(examine):
    """Where all texts have cosines near 1, the space has collapsed."""
    findings, diagnosis = examine(chat(SAID), embedder=Narrow())
    assert findings["collapsed"].of == 30
    assert diagnosis.shape.mean_cosine > 0.95


def test_copies_are_no_collapsed_space(examine):
    """Two hundred copies of one text are duplicates; the vectors of the others lie as before."""
    findings, diagnosis = examine(chat([*SAID, *(["I like plums!"] * 100), *(["i like  plums"] * 100)]))
    assert set(findings) == {"duplicates"}
    assert (findings["duplicates"].count, findings["duplicates"].of) == (199, 230)
    assert "200 times" in findings["duplicates"].what
    assert diagnosis.shape.texts == 31


class Roles(Known):
    """Embeds a question with a prompt of its own."""

    def embed_query(self, text: str) -> Any:
        return super().embed_query(f"ask find search {text}")


def test_vectors_in_the_query_role_are_found(examine):
    """Whoever computed the stored vectors with `embed_query` is told so."""
    embedder, turns = Roles(), chat(SAID)
    vectors = np.stack([embedder.embed_query(turn.text) for turn in turns])
    findings, _ = examine(turns, embedder=embedder, embeddings=vectors)
    assert findings["wrong_role"].count == findings["wrong_role"].of == 12
    assert examine(turns, embedder=Roles())[0] == {}


def test_vectors_of_another_model_are_found(examine):
    """Vectors that the embedder does not give for their texts are told, in either role."""
    vectors = np.random.default_rng(1).normal(size=(len(SAID), 256)).astype(np.float32)
    findings, _ = examine(chat(SAID), embeddings=vectors)
    assert findings["strange_vectors"].count == 12


@pytest.mark.parametrize(
    ("identity", "kind"),
    [
        ({"model": "intfloat/e5-small-v2"}, "no_roles"),
        ({"model": "BAAI/bge-base-en-v1.5"}, "no_roles"),
        ({"model": "BAAI/bge-m3"}, None),
        ({"model": "sentence-transformers/all-MiniLM-L6-v2"}, None),
        ({"model": "x", "document_role": "query: ", "query_role": "passage: "}, "swapped_roles"),
        ({"model": "x", "document_role": "passage: ", "query_role": "query: "}, None),
        ({"model": "x", "document_role": "search_document: ", "query_role": "search_query: "}, None),
    ],
)
def test_prompts_of_roles(examine, identity, kind):
    """A model that was trained with prompts and gets none is told of, and one whose prompts are swapped; others not."""
    assert list(examine(chat(SAID), embedder=Known(**identity))[0]) == ([kind] if kind else [])


def test_an_uncalibrated_embedder_is_told(tmp_path):
    """With a default floor of 0 every question finds something: that is said, with what to do."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder(256)) as store:
        store.user("alice").remember_many(chat(SAID))
        [finding] = diagnose(store.user("alice")).findings
    assert finding.kind == "uncalibrated"
    assert "memlayer calibrate" in finding.advice


# --- The texts ---


def test_near_duplicates_are_told_but_not_those_that_differ_in_a_number(examine):
    """Texts of the same words in another order say the same; texts that differ in a number do not."""
    again = [" ".join(reversed(text.split())) for text in SAID[:20]]
    findings, _ = examine(chat([*SAID, *again]))
    assert (set(findings), findings["near_duplicates"].count) == ({"near_duplicates"}, 40)
    numbered = [f"The {SAID[3]} {SAID[8]} has the number {number}" for number in range(40)]
    assert "near_duplicates" not in examine(chat([*SAID[:20], *numbered]))[0]


def test_turns_without_words_are_told(examine):
    """A memory half of which is "ok" and smiles says so; a speaker's name before it is no word."""
    short = ["ok", "👍", "...", "oh yes", "Hm.", "!!", "Right", "Sure", "Why not", "Yes, please", "?!", "Nice", "No"]
    turns = chat(SAID[:14]) + [
        turn.model_copy(update={"text": f"Ann: {turn.text}", "speaker": "Ann"}) for turn in chat(short)
    ]
    findings, _ = examine(turns)
    assert (set(findings), findings["few_words"].count) == ({"few_words"}, len(short))


class English(Known):
    languages = frozenset({"en"})


def test_a_language_that_the_embedder_does_not_know_is_told(examine):
    """German and Chinese turns are counted where the embedder knows English, and not where it knows all."""
    strange = ["Ich war gestern mit meiner Schwester im Garten.", "我的狗叫小黑，它今年三岁了。"] * 4
    strange = [f"{text} {number}" for number, text in enumerate(strange)]
    findings, _ = examine(chat([*SAID, *strange]), embedder=English())
    assert (set(findings), findings["language"].count) == ({"language"}, 8)
    assert "German" in findings["language"].what
    assert "Chinese" in findings["language"].what
    assert examine(chat([*SAID, *strange]))[0] == {}


def test_one_source_is_told(examine):
    """A tool that wrote more than half of the memory is named."""
    findings, _ = examine([*chat(SAID[:12]), *chat(SAID[12:], role="tool")])
    assert (set(findings), findings["one_source"].count) == ({"one_source"}, 18)


def test_missing_context_is_told(examine):
    """Without sessions, without speakers or at one moment: each is told for itself."""
    assert set(examine(chat(SAID, session=None))[0]) == {"no_sessions"}
    assert set(examine(chat(SAID, role="user"))[0]) == {"no_speakers"}
    assert set(examine(chat(SAID, role="user", speaker="Ann"))[0]) == set()
    assert set(examine(chat(SAID, at=NOW))[0]) == {"one_time"}


# --- Questions that find nothing ---


def test_questions_that_find_nothing_are_told(tmp_path):
    """Of given questions those that find nothing are counted and named by their place; their words only when asked."""
    asked = ["What reminds me of the violin?", "Which compiler flag enables link time optimisation?"]
    with MemoryStore.open(tmp_path / "m.db", keys=KEY) as store:
        user = store.user("alice")
        user.remember_many(chat(SAID))
        quiet, told = diagnose(user, questions=asked), diagnose(user, questions=asked, show_texts=True)
    assert [(finding.kind, finding.count, finding.of) for finding in quiet.findings] == [("unanswered", 1, 2)]
    assert [(each.where, each.text) for each in quiet.unanswered] == [("2", None)]
    assert [each.text for each in told.unanswered] == asked[1:]
    assert "compiler" not in quiet.model_dump_json()


def test_the_users_own_questions_are_asked_of_what_was_there_before(tmp_path):
    """By default the user's latest questions are asked, each as if it were not there yet: one that nothing before it
    answers finds nothing, although its own words are in the store."""
    own = [f"Which {thing} do I use to compile the kernel module?" for thing in ("flag", "linker", "target", "patch")]
    own.append("What reminds me of the garden near the island?")
    own.append("Which header does the scheduler include?")
    with MemoryStore.open(tmp_path / "m.db", keys=KEY) as store:
        user = store.user("alice")
        user.remember_many(chat(SAID))
        user.remember_many([turn.model_copy(update={"at": NOW + timedelta(days=1), "session": "x"})
                            for turn in chat(own, role="user")])  # fmt: skip
        diagnosis = diagnose(user, show_texts=True)
    assert diagnosis.asked == 6
    found = [each.text for each in diagnosis.unanswered]
    assert own[4] not in found
    assert own[0] in found
    assert own[5] in found


# --- The command ---


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY) as opened:
        opened.user("alice").remember_many(chat(SAID))
        opened.user("bob").remember_many(chat(SAID, session=None))
    monkeypatch.setenv("MEMLAYER_STORE", str(path))
    monkeypatch.setenv("MEMLAYER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *(str(each) for each in arguments)])


def test_the_command_says_it_in_words(store):
    """What is wrong, and what to do; the exit code is 0, and 1 with --strict; a healthy user has 0 either way."""
    told = run("--user", "bob")
    assert told.exit_code == 0
    assert "no sessions: 30 of 30 memories (100%) have no session" in told.stdout
    assert "Pass `session=`" in told.stdout
    assert run("--user", "bob", "--strict").exit_code == 1
    well = run("--user", "alice", "--strict")
    assert (well.exit_code, well.stdout.splitlines()[-1]) == (0, "Nothing wrong was found.")


def test_the_command_as_json(store, tmp_path):
    """--json gives the same as one document; --questions reads one question a line."""
    questions = tmp_path / "questions.txt"
    questions.write_text(
        "\ufeffWhat about the violin?\n\nWhich compiler flag enables vectorisation?\n", encoding="utf-8"
    )
    told = json.loads(run("--user", "alice", "--questions", questions, "--json", "--show-texts").stdout)
    assert (told["memories"], told["asked"]) == (30, 2)
    assert [finding["kind"] for finding in told["findings"]] == ["unanswered"]
    assert told["unanswered"] == [{"where": "2", "text": "Which compiler flag enables vectorisation?"}]


def test_a_file_of_questions_that_cannot_be_read_is_told(store, tmp_path):
    """No file, a folder, no UTF-8 and no question in it are exit code 2."""
    (tmp_path / "bad").write_bytes(b"\xff\xfe?")
    (tmp_path / "empty").write_text("\n\n")
    for name in ("nothing", ".", "bad", "empty"):
        assert run("--user", "alice", "--questions", tmp_path / name).exit_code == 2


def test_it_writes_nothing(store, tmp_path):
    """The store's file is byte for byte as it was, and no other file is there."""
    before = shutil.copy(store, tmp_path / "before")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert run("--user", "bob").exit_code == 0
    assert store.read_bytes() == Path(before).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_nobody_is_examined_who_has_nothing(store):
    """An id that has no memories is told so."""
    assert run("--user", "carol").stdout == "Nothing is remembered, so there is nothing to examine.\n"
