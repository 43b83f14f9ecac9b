"""Scores: what makes them of values, where their numbers come from, and what the default floor keeps back."""

from __future__ import annotations

import json
import logging
import math
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from memlayer import MemoryStore
from memlayer.calibrating import calibrate
from memlayer.calibration import Calibration, calibration_of, calibration_path, write_calibration
from memlayer.cli.app import app
from memlayer.embedders import MiniLM
from memlayer.embedders.onnx import OnnxMiniLM
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import EmbedderError, StorageError
from memlayer.sources import RawKey
from memlayer.testing import HashingEmbedder
from memlayer.trials import chats, trials

OWN = Calibration(scale=1.5, shift=-0.25, steep=9.0, middle=0.3, growth=0.02, floor=0.15)


class Crowded:
    """A hashing embedder all of whose cosines are squeezed into a corner: 0 becomes .6."""

    def __init__(self, constant: float = 0.6) -> None:
        self._inner = HashingEmbedder(256)
        self._constant = constant
        self.identity = EmbedderIdentity(model=f"tests/crowded-{constant}", dimensions=257)

    def embed_documents(self, texts):
        vectors = self._inner.embed_documents(texts) * np.float32(math.sqrt(1 - self._constant))
        same = np.full((len(texts), 1), math.sqrt(self._constant), dtype=np.float32)
        return np.concatenate([vectors, same], axis=1)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


@pytest.fixture(scope="module")
def some():
    """Few of the chats, of both kinds, so that a trial takes a moment."""
    told = chats()
    people = [chat for chat in told if chat.persons and chat.questions]
    assistants = [chat for chat in told if not chat.persons and chat.questions]
    return people[:4] + assistants[:4]


@pytest.fixture(scope="module")
def plain(some):
    return calibrate(HashingEmbedder(256), told=some)


@pytest.fixture
def identity(request):
    """An identity that no other test has."""
    return EmbedderIdentity(model=f"tests/{request.node.name}", dimensions=3)


# --- Scores ---


def test_a_score_is_a_logistic_of_the_value():
    """The value in the middle scores a half, and each step up scores more, within 0 and 1."""
    numbers = Calibration(middle=0.3, growth=0.0)
    assert numbers.score(0.3, top=0.3, turns=50) == pytest.approx(0.5)
    scores = [numbers.score(value, top=value, turns=50) for value in np.linspace(-5, 5, 101)]
    assert scores == sorted(scores)
    assert 0 <= scores[0] < scores[-1] <= 1


def test_the_best_of_many_has_to_be_better():
    """A value scores less among more turns, as much less as the middle has grown by the logarithm of their number."""
    numbers = Calibration(middle=0.2, growth=0.05)
    small, large = (numbers.score(0.4, top=0.4, turns=turns) for turns in (10, 600))
    assert small > large
    assert numbers.score(0.4 + 0.05 * math.log(60), top=0.4 + 0.05 * math.log(60), turns=600) == pytest.approx(small)


def test_a_single_turn_and_none_are_no_special_case():
    """The logarithm of one turn is 0, and of no turns nothing is asked."""
    assert Calibration().score(0.2, top=0.2, turns=1) == Calibration().score(0.2, top=0.2, turns=0)


def test_the_best_turn_vouches_only_for_what_is_close_behind_it():
    """Close behind the best turn a weak one scores better than alone; far behind it no better, however good that is."""
    numbers = Calibration(steep=14.0, middle=0.2, growth=0.0)
    alone = numbers.score(0.3, top=0.3, turns=1)
    assert alone < numbers.score(0.3, top=0.4, turns=1) < numbers.score(0.4, top=0.4, turns=1)
    assert numbers.score(-0.1, top=0.9, turns=1) == numbers.score(-0.1, top=5.0, turns=1) < 0.2


def test_numbers_out_of_bounds_are_brought_back():
    """A file cannot make the floor keep everything back, nor turn the order round."""
    numbers = Calibration(scale=-3.0, steep=1e9, floor=1.0, growth=-1.0)
    assert numbers == Calibration(scale=0.02, steep=60.0, floor=0.5, growth=0.0)


# --- Where the numbers are ---


def test_the_embedders_that_come_along_have_numbers():
    """MiniLM, its eight-bit and its static form have floors; MiniLM by onnxruntime is the same embedder."""
    from memlayer.embedders.static import StaticEmbedder

    known = [calibration_of(embedder.identity) for embedder in (MiniLM(), OnnxMiniLM(int8=True), StaticEmbedder())]
    assert all(0.1 < numbers.floor < 0.4 for numbers in known)
    assert (known[0].scale, known[0].shift) == (1.0, 0.0)
    assert calibration_of(OnnxMiniLM().identity) == known[0]


def test_the_defaults_are_those_of_minilm_without_a_floor(identity):
    """An embedder that nobody has looked at gets nothing kept back."""
    numbers, minilm = calibration_of(identity), calibration_of(MiniLM().identity)
    assert numbers == Calibration()
    assert numbers.floor == 0
    assert numbers.middle == pytest.approx(minilm.middle, abs=0.02)
    assert numbers.growth == pytest.approx(minilm.growth, abs=0.005)
    assert numbers.steep == pytest.approx(minilm.steep, abs=1)


def test_a_users_own_numbers_count(identity):
    """What is written for an embedder is found from then on, and before the shipped ones."""
    assert calibration_of(identity) == Calibration()
    write_calibration(OWN, identity=identity, path=calibration_path(identity))
    assert calibration_of(identity) == OWN
    minilm = MiniLM().identity
    shipped = calibration_of(minilm)
    try:
        write_calibration(OWN, identity=minilm, path=calibration_path(minilm))
        assert calibration_of(minilm) == OWN
    finally:
        calibration_path(minilm).unlink()
        calibration_of.cache_clear()
    assert calibration_of(minilm) == shipped


def test_a_file_is_read_once(identity):
    """A recall reads no file: the numbers stay for the life of the process."""
    write_calibration(OWN, identity=identity, path=calibration_path(identity))
    assert calibration_of(identity) == OWN
    calibration_path(identity).unlink()
    assert calibration_of(identity) == OWN


def test_a_file_in_another_place_counts_for_nobody(identity, tmp_path):
    """With a path of the caller's own the numbers are written there alone."""
    path = tmp_path / "numbers.json"
    write_calibration(OWN, identity=identity, path=path)
    assert json.loads(path.read_text())["digest"] == identity.digest().hex()
    assert calibration_of(identity) == Calibration()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(identity, tmp_path):
    """The numbers were made for minutes; where they cannot be written, one is told."""
    with pytest.raises(StorageError):
        write_calibration(OWN, identity=identity, path=tmp_path / "none" / "numbers.json")


def _damaged(content: dict[str, object]) -> list[bytes]:
    numbers = OWN.model_dump()
    changed = [
        content | {"digest": "0" * 64},
        content | {"more": 1},
        content | {"calibration": numbers | {"floor": "0.2"}},
        content | {"calibration": numbers | {"more": 0.2}},
        content | {"embedder": "x" * 5000},
    ]
    nan = json.dumps(content | {"calibration": numbers | {"steep": math.nan}}).encode()
    return [b"", b"{", b"[]", b"\xff\xfe", nan, *(json.dumps(each).encode() for each in changed)]


@pytest.mark.parametrize("case", range(10))
def test_a_damaged_file_counts_as_none(identity, caplog, case):
    """A recall does not fail for it, and a log line names the file."""
    path = calibration_path(identity)
    write_calibration(OWN, identity=identity, path=path)
    path.write_bytes(_damaged(json.loads(path.read_text()))[case])
    with caplog.at_level(logging.WARNING, "memlayer"):
        assert calibration_of(identity) == Calibration()
    assert path.name in caplog.text


# --- How they are made ---


def test_nothing_that_is_asked_is_answered_elsewhere():
    """Of every memory some questions are answered in it, and the others are about chats that it does not hold."""
    told = chats()
    about = {question.text: chat.id for chat in told for question in chat.questions}
    for trial in trials(told):
        here = {turn.id.split("/")[0] for turn in trial.turns}
        answered = [asked for asked in trial.asked if asked.evidence]
        foreign = [asked for asked in trial.asked if not asked.evidence]
        assert answered
        assert foreign
        assert all(asked.evidence & {turn.id for turn in trial.turns} for asked in answered)
        # A text that is in no chat is one that was put into the first person.
        assert not any(about.get(asked.text) in here for asked in foreign)


def test_a_foreign_question_names_those_who_speak():
    """The names of another chat would give a question away; the memory's own are asked about."""
    told = chats()
    names = {turn.speaker for chat in told for turn in chat.turns} - {None}
    assert len(names) == 3
    assert all(trial.speakers <= names for trial in trials(told))
    assert any(len(trial.turns) == 2 for trial in trials(told))
    assert any(len(trial.turns) > 500 for trial in trials(told))


def test_the_same_embedder_gives_the_same_numbers(some, plain):
    """Nothing is drawn by lot."""
    assert calibrate(HashingEmbedder(256), told=some) == plain


def test_a_crowded_embedder_is_spread(some, plain):
    """An embedder that says .6 of texts without a common word gets the scores of one that says 0: scale and shift undo
    it."""
    crowded = calibrate(Crowded(), told=some)
    assert crowded.other > 0.6 > plain.other
    assert crowded.calibration.scale == pytest.approx(plain.calibration.scale / 0.4, rel=0.01)
    for name in ("steep", "middle", "growth", "floor"):
        assert getattr(crowded.calibration, name) == pytest.approx(getattr(plain.calibration, name), rel=0.1, abs=0.01)
    assert crowded.silent == pytest.approx(plain.silent, abs=0.03)


def test_the_floor_loses_few_and_keeps_back_many(plain):
    """At the floor at most one in twelve of the answered questions loses a turn, and even by words alone four in ten of
    the foreign ones get nothing."""
    assert plain.lost <= 0.085
    assert plain.silent > 0.4


def test_an_embedder_that_tells_nothing_apart_is_refused(some):
    """There is no scale that would help it."""
    with pytest.raises(EmbedderError, match="no nearer"):
        calibrate(Crowded(constant=0.9999), told=some)


def test_the_shipped_numbers_are_found_again():
    """The whole calibration of all-MiniLM-L6-v2 gives what is shipped; by onnxruntime, which has the same vectors."""
    embedder = OnnxMiniLM()
    shipped = calibration_of(embedder.identity)
    figures = calibrate(embedder)
    for name, value in figures.calibration.model_dump().items():
        assert value == pytest.approx(getattr(shipped, name), rel=0.02, abs=0.005), name
    assert figures.silent > 0.65


# --- What a recall keeps back ---


def test_the_designs_own_example_passes(tmp_path):
    """A question without one word of its answer finds it, in a store of one turn; another question finds nothing."""
    with MemoryStore.open(tmp_path / "m.db", keys=RawKey.generate()) as store:
        alice = store.user("alice")
        alice.remember("I'm allergic to peanuts")
        assert [hit.text for hit in alice.recall("what can't I eat?")] == ["I'm allergic to peanuts"]
        assert not alice.recall("How did the concert in Leipzig go?")
        assert len(alice.recall("How did the concert in Leipzig go?", min_score=0)) == 1


# --- The command ---


def test_the_command_writes_what_recalls_read(tmp_path, monkeypatch, some, plain):
    """`memlayer calibrate` keeps the numbers where they are found, and tells them; --out writes elsewhere."""
    embedder = HashingEmbedder(256)
    # By the module: the package has a function of its name.
    monkeypatch.setattr(sys.modules["memlayer.embedders.resolve"], "resolve", lambda name: embedder)
    monkeypatch.setattr("memlayer.calibrating.chats", lambda: some)
    out = tmp_path / "numbers.json"
    result = CliRunner().invoke(app, ["calibrate", "--embedder", "hashing", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["calibration"] == plain.calibration.model_dump()
    assert json.loads(out.read_text())["calibration"] == document["calibration"]
    assert calibration_of(embedder.identity) == Calibration()
    try:
        result = CliRunner().invoke(app, ["calibrate", "--embedder", "hashing"])
        assert result.exit_code == 0, result.output
        assert "get nothing" in result.stdout
        assert calibration_of(embedder.identity) == plain.calibration
    finally:
        calibration_path(embedder.identity).unlink()
        calibration_of.cache_clear()
