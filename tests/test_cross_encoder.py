"""A cross-encoder as reranker: tiny models with random weights, against sentence-transformers' own scores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memlayer.rerankers
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError
from memlayer.rerankers import Reranker
from memlayer.rerankers.cross_encoder import CrossEncoderReranker
from tests import tiny_models

ROOT = Path(memlayer.rerankers.__file__).parents[2]
QUERY = "what can't I eat?"
TEXTS = [
    "I'm allergic to peanuts",
    "",
    "  short ",
    "¿Qué no puedo comer? 花生过敏 😀",
    "a long one " * 60,
    "The train.\n\nTo Berlin",
] * 3


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a model once and gives its folder."""
    home = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(maker=tiny_models.cross_encoder, *args, **options):
        key = repr((maker, args, options))
        if key not in made:
            made[key] = maker(home / str(len(made)), *args, **options)
        return made[key]

    return make


def library(folder, query, texts, **options):
    """The library's own scores, between 0 and 1."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Sigmoid

    model = CrossEncoder(str(folder), device="cpu", **options)
    return model.predict([(query, text) for text in texts], activation_fn=Sigmoid(), show_progress_bar=False)


def python(code):
    """Run the code in a fresh interpreter, and give back what it printed."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child


@pytest.mark.parametrize("activation", [None, "Sigmoid", "Identity"])
def test_scores_agree_with_sentence_transformers(make, activation):
    """Relevances are the sigmoid of the library's scores to 1e-5, whichever activation the model was saved with."""
    folder = make(activation=activation)
    scores = CrossEncoderReranker(folder).rerank(QUERY, TEXTS)
    np.testing.assert_allclose(scores, library(folder, QUERY, TEXTS), atol=1e-5)
    assert scores.std() > 0.01


def test_scores_have_the_promised_form(make):
    """One float32 a text, between 0 and 1, in the order given; none for none."""
    reranker = CrossEncoderReranker(make(), batch=4)
    scores = reranker.rerank(QUERY, TEXTS)
    assert scores.shape == (len(TEXTS),)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    alone = [reranker.rerank(QUERY, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert reranker.rerank(QUERY, []).shape == (0,)
    assert isinstance(reranker, Reranker)


def test_a_long_pair_is_cut_as_the_library_cuts_it(make):
    """max_length bounds query and text together, and cuts the longer one."""
    for query, texts in ((QUERY, ["peanuts " * 300]), ("what can't I eat? " * 50, ["peanuts", "peanuts " * 300])):
        scores = CrossEncoderReranker(make(), max_length=24).rerank(query, texts)
        np.testing.assert_allclose(scores, library(make(), query, texts, max_length=24), atol=1e-5)
        assert abs(scores - CrossEncoderReranker(make()).rerank(query, texts)).max() > 1e-4


def test_a_folder_of_transformers_alone(make):
    """A classifier with one label, saved by transformers, is a cross-encoder too."""
    folder = make(tiny_models.transformers_folder, "classifier")
    np.testing.assert_allclose(
        CrossEncoderReranker(folder).rerank(QUERY, TEXTS), library(folder, QUERY, TEXTS), atol=1e-5
    )


def test_a_tokenizer_that_cannot_be_copied(make, monkeypatch):
    """A model whose tokenizer memlayer cannot copy goes through the library's own, with the same scores."""
    folder = make(seed=5)
    monkeypatch.setattr("memlayer.rerankers.cross_encoder.take_over", lambda *args, **options: None)
    np.testing.assert_allclose(
        CrossEncoderReranker(folder, batch=4).rerank(QUERY, TEXTS), library(folder, QUERY, TEXTS), atol=1e-5
    )


def test_the_name_is_the_folders_and_not_its_path(make, tmp_path):
    """The name that explanations show holds no path."""
    folder = shutil.copytree(make(), tmp_path / "my-reranker")
    assert CrossEncoderReranker(folder).name == "my-reranker"
    assert CrossEncoderReranker("ms-marco-MiniLM-L6-v2").name == "cross-encoder/ms-marco-MiniLM-L6-v2"
    assert repr(CrossEncoderReranker("BAAI/bge-reranker-base")) == "<CrossEncoderReranker BAAI/bge-reranker-base>"


def test_several_labels_are_refused(make):
    """A model that tells contradiction from entailment does not rank."""
    with pytest.raises(EmbedderError, match="gives 3 numbers a pair"):
        CrossEncoderReranker(make(labels=3))


def test_an_embedder_is_refused(make):
    """A model that gives vectors is sent to the embedders, and a bare BERT is no reranker either."""
    with pytest.raises(EmbedderError, match="pass it as embedder="):
        CrossEncoderReranker(make(tiny_models.sentence_transformer, "bert"))
    with pytest.raises(EmbedderError, match=r"no cross-encoder.*BertModel"):
        CrossEncoderReranker(make(tiny_models.transformers_folder, "bert"))


def test_code_and_pickles_are_refused(make, tmp_path):
    """Neither a model's own code nor pickled weights are run."""
    folder = shutil.copytree(make(), tmp_path / "code")
    tiny_models.edit(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(EmbedderError, match="trust_remote_code stays off"):
        CrossEncoderReranker(folder)
    folder = shutil.copytree(make(), tmp_path / "pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EmbedderError, match="no safetensors weights"):
        CrossEncoderReranker(folder)


@pytest.mark.parametrize("options", [{"max_length": 3}, {"batch": 0}])
def test_values_that_cannot_be(make, options):
    """A length without room for a text, and an empty batch, are refused at once."""
    with pytest.raises(InvalidInputError):
        CrossEncoderReranker(make(), **options)


def test_what_is_no_text_is_refused(make):
    """None is no text, and a text is no list of letters."""
    reranker: Any = CrossEncoderReranker(make())
    for query, texts in ((None, ["x"]), ("x", [None])):
        with pytest.raises(InvalidInputError, match="must be a str, not NoneType"):
            reranker.rerank(query, texts)
    with pytest.raises(InvalidInputError, match="got one text"):
        reranker.rerank(QUERY, "peanuts")
    with pytest.raises(InvalidInputError, match="there is no folder"):
        CrossEncoderReranker("./none")


def test_a_failure_does_not_repeat_the_text(make):
    """What the libraries say of a failed call may hold the text, and is not passed on."""
    with pytest.raises(EmbedderError) as caught:
        CrossEncoderReranker(make()).rerank(QUERY, ["my secret allergy \ud800"])
    shown = "".join(traceback.format_exception(caught.value)).partition("EmbedderError:")[2]
    assert "secret" not in shown
    assert caught.value.__cause__ is None


def test_weights_that_cannot_be_loaded(make, tmp_path):
    """What the libraries raise while loading comes out as EmbedderError, with its cause."""
    folder = shutil.copytree(make(), tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbedderError, match="could not be loaded") as caught:
        CrossEncoderReranker(folder).load()
    assert caught.value.__cause__ is not None


def test_a_missing_extra_names_the_install_line(make, monkeypatch):
    """Without sentence-transformers the first rerank gives MissingExtraError with the exact line to type."""
    reranker = CrossEncoderReranker(make(seed=77))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[local\]"'):
        reranker.rerank(QUERY, TEXTS)


def test_threads_get_the_scores_they_would_get_alone(make):
    """Eight threads that rerank at once, with short and long texts, get the same scores as one after the other."""
    reranker = CrossEncoderReranker(make())
    queries = [f"what is number {number}? " * (1 + number % 5) for number in range(40)]
    alone = [reranker.rerank(query, TEXTS) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: reranker.rerank(query, TEXTS), queries))
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_reranks_in_silence(make):
    """Loading prints nothing, and a child forked after the model was used reranks as its parent did."""
    child = python(
        f"""
        import os, signal
        from memlayer.rerankers.cross_encoder import CrossEncoderReranker

        reranker = CrossEncoderReranker({str(make())!r})
        texts = ["a text that is long enough for OpenMP to share it out. " * 20] * 32
        before = reranker.rerank("what?", texts)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if abs(reranker.rerank("what?", texts) - before).max() < 1e-5 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert child.stdout.strip() == "0"
    assert child.stderr == ""


def test_importing_it_is_light():
    """The module imports neither torch nor numpy; a reranker by name asks for nothing until it is used."""
    child = python(
        """
        import sys
        from memlayer.rerankers.cross_encoder import CrossEncoderReranker
        CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2")
        print(sorted({"torch", "numpy", "transformers", "sentence_transformers", "tokenizers"} & sys.modules.keys()))
        """
    )
    assert child.stdout.strip() == "[]"
