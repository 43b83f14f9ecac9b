"""Rerankers by name: what is exported, what a name, a folder or an object means, and that nothing is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import memlayer.rerankers
from memlayer.errors import InvalidInputError
from memlayer.rerankers import CrossEncoderReranker, LiteLLMReranker, Reranker, resolve_reranker
from tests import tiny_models


class Fixed:
    """A reranker of a user's own."""

    name = "fixed"

    def rerank(self, query, texts):
        return [0.5] * len(texts)


def test_public_names():
    """`memlayer.rerankers` exports these names, in order."""
    assert memlayer.rerankers.__all__ == ["CrossEncoderReranker", "LiteLLMReranker", "Reranker", "resolve_reranker"]
    for name in memlayer.rerankers.__all__:
        assert getattr(memlayer.rerankers, name).__name__ == name
    assert not hasattr(memlayer.rerankers, "Misspelt")


def test_importing_and_resolving_loads_nothing():
    """Neither the import nor a name loads numpy, torch or LiteLLM; the network is not asked either."""
    program = (
        "import sys\n"
        "from memlayer.rerankers import resolve_reranker\n"
        "print(repr(resolve_reranker('cross-encoder/ms-marco-MiniLM-L6-v2')))\n"
        "print(repr(resolve_reranker('litellm/cohere/rerank-v3.5')))\n"
        "heavy = {'numpy', 'torch', 'transformers', 'sentence_transformers', 'litellm', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [
        "<CrossEncoderReranker cross-encoder/ms-marco-MiniLM-L6-v2>",
        "<LiteLLMReranker cohere/rerank-v3.5>",
        "[]",
    ]


def test_a_name_of_litellm_is_an_endpoint():
    """ "litellm/<provider>/<model>" is that provider's endpoint, under LiteLLM's name for it."""
    reranker = resolve_reranker("litellm/voyage/rerank-2.5")
    assert isinstance(reranker, LiteLLMReranker)
    assert isinstance(reranker, Reranker)
    assert reranker.name == "voyage/rerank-2.5"


@pytest.mark.parametrize("name", ["litellm", "litellm/", "litellm/cohere", "litellm/cohere/", "litellm//x"])
def test_a_name_of_litellm_needs_provider_and_model(name):
    """Half a name is refused with an example."""
    with pytest.raises(InvalidInputError, match=r"litellm/cohere/rerank-v3\.5"):
        resolve_reranker(name)


def test_a_folder_is_a_cross_encoder(tmp_path):
    """A folder, as path or text, is loaded by sentence-transformers' CrossEncoder and scores texts."""
    folder = tiny_models.cross_encoder(tmp_path / "model")
    for named in (folder, str(folder)):
        reranker = resolve_reranker(named)
        assert isinstance(reranker, CrossEncoderReranker)
        assert reranker.rerank("peanuts?", ["I'm allergic to peanuts", "no"]).shape == (2,)


def test_an_object_is_taken_as_it_is():
    """An object with the protocol is used itself; one without it is refused with what it lacks, a class too."""
    reranker = Fixed()
    assert resolve_reranker(reranker) is reranker
    with pytest.raises(InvalidInputError, match="object is no reranker: it has no name, rerank"):
        resolve_reranker(object())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the class Fixed"):
        resolve_reranker(Fixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", " ", "./nothing-here"])
def test_what_is_no_name_is_refused(name):
    """An empty name, or a path without a folder, is an error at once and not at the first recall."""
    with pytest.raises(InvalidInputError):
        resolve_reranker(name)
