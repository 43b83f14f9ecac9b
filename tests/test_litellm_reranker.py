"""Rerankers through LiteLLM: the real library, each provider's wire format, a server on 127.0.0.1."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if find_spec("litellm") is None:  # some environments have other SDKs only
    pytest.skip("litellm is not installed", allow_module_level=True)
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError
from memlayer.rerankers import Reranker
from memlayer.rerankers.litellm import LiteLLMReranker
from tests.adapters.loopback import Loopback
from tests.adapters.wires import embeddings as wire

pytestmark = [
    pytest.mark.filterwarnings("ignore:The `dict` method is deprecated:DeprecationWarning"),
    # LiteLLM keeps a client an address, and lets go of the oldest without closing its connections.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "the launch code is 7741-ZEBRA"
KEYTEXT = "sk-very-secret-key"
TEXTS = ["The weather is fine.", "I'm allergic to peanuts", "My sister likes peanuts", ""]
FORMATS = [
    ("cohere/rerank-v3.5", "", "/v2/rerank"),
    ("jina_ai/jina-reranker-v2-base-multilingual", "", "/v1/rerank"),
    ("voyage/rerank-2.5", "", "/v1/rerank"),
    ("together_ai/Salesforce/Llama-Rank-V1", "/v1", "/v1/rerank"),
    ("hosted_vllm/BAAI/bge-reranker-v2-m3", "", "/rerank"),
    ("infinity/mixedbread-ai/mxbai-rerank-base-v1", "", "/rerank"),
]


def cohere(server: Loopback, **settings: Any) -> LiteLLMReranker:
    return LiteLLMReranker("cohere/rerank-v3.5", api_base=server.url, api_key=KEYTEXT, **settings)


@pytest.mark.parametrize(("model", "path", "where"), FORMATS)
def test_every_format_is_spoken(model, path, where):
    """Query and texts go out in the provider's format, and the relevances come back in the order of the texts."""
    with Loopback(wire.Relevance({"allergic": 0.98, "sister": 0.4})) as server:
        reranker = LiteLLMReranker(model, api_base=server.url + path, api_key=KEYTEXT)
        scores = reranker.rerank("what can't I eat?", TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.01, 0.98, 0.4, 0.01], atol=1e-6)
    (request,) = server.requests
    assert request.path == where
    assert request.body["query"] == "what can't I eat?"
    sent = [text if isinstance(text, str) else text["text"] for text in request.body["documents"]]
    assert sent == [*TEXTS[:-1], "."]
    assert request.body["model"] == model.partition("/")[2]
    # Nothing comes back that is here already.
    assert request.body.get("return_documents", False) is False


def test_logits_become_relevances():
    """NVIDIA's logits go through the logistic function; the order stays, and everything lies in 0 to 1."""
    with Loopback(wire.Relevance({"allergic": 7.5, "sister": -0.5}, rest=-900.0)) as server:
        reranker = LiteLLMReranker("nvidia_nim/nvidia/nv-rerankqa-mistral-4b-v3", api_base=server.url, api_key=KEYTEXT)
        scores = reranker.rerank("what can't I eat?", TEXTS)
    np.testing.assert_allclose(scores, [0, 1 / (1 + np.exp(-7.5)), 1 / (1 + np.exp(0.5)), 0], atol=1e-6)
    assert server.bodies[0]["passages"][1] == {"text": "I'm allergic to peanuts"}


def test_another_scale_must_be_said():
    """Scores beyond 0 to 1 are not guessed at: the error names the setting, with which they are understood."""
    with Loopback(wire.Relevance({"allergic": 7.5}, rest=-9.0)) as server:
        with pytest.raises(EmbedderError, match='scale="logit"'):
            cohere(server).rerank("q", TEXTS)
        scores = cohere(server, scale="logit").rerank("q", TEXTS)
    assert 0 < scores.min() < 0.001
    assert 0.999 < scores.max() < 1


def test_a_cosine_below_zero_is_irrelevant():
    """A little below 0, as cosines go, is 0."""
    with Loopback(wire.Relevance({"allergic": 0.9}, rest=-0.2)) as server:
        scores = cohere(server).rerank("q", TEXTS)
    np.testing.assert_allclose(scores, [0, 0.9, 0, 0], atol=1e-6)


def test_the_protocol_and_the_name():
    """It is a Reranker, named after its model; the key is in no repr."""
    reranker = LiteLLMReranker("cohere/rerank-v3.5", api_key=KEYTEXT)
    assert isinstance(reranker, Reranker)
    assert reranker.name == "cohere/rerank-v3.5"
    assert repr(reranker) == "<LiteLLMReranker cohere/rerank-v3.5>"


def test_no_texts_are_no_request():
    """Nothing to rank is nothing to send."""
    with Loopback(wire.Relevance()) as server:
        assert cohere(server).rerank("q", []).shape == (0,)
    assert not server.requests


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": "rerank-v3.5"}, "<provider>/<model>"),
        ({"model": None}, "<provider>/<model>"),
        ({"model": "openai/gpt-4o"}, "model for chat"),
        ({"model": "openai/text-embedding-3-small"}, "model for embedding"),
        ({"scale": "percent"}, "scale"),
        ({"retries": -1}, "retries"),
        ({"options": {"top_n": 3}}, "options cannot have top_n"),
    ],
)
def test_wrong_settings(settings, match):
    """A setting that cannot work, a chat model among them, is refused at construction."""
    with pytest.raises(InvalidInputError, match=match):
        LiteLLMReranker(**{"model": "cohere/rerank-v3.5", **settings})


def test_one_text_is_no_sequence_of_texts():
    """A str in place of a sequence is the caller's mistake, not forty texts of one letter."""
    with pytest.raises(InvalidInputError):
        LiteLLMReranker("cohere/rerank-v3.5").rerank("q", "one text")


def test_a_missing_litellm_is_named(monkeypatch):
    """Without LiteLLM the error has the line that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[litellm\]"'):
        LiteLLMReranker("cohere/rerank-v3.5")


@pytest.mark.parametrize(("model", "path", "where"), FORMATS)
def test_a_rate_limit_is_tried_again_once(model, path, where):
    """After a rate limit the request is made again, once, because somebody waits."""
    with Loopback(wire.Relevance(failures=1, status=429, headers={"retry-after": "0"})) as server:
        reranker = LiteLLMReranker(model, api_base=server.url + path, api_key=KEYTEXT)
        assert reranker.rerank("q", TEXTS).shape == (4,)
        assert len(server.requests) == 2
        server.answer = wire.Relevance(failures=9, status=429, headers={"retry-after": "0"})
        with pytest.raises(EmbedderError, match=r"HTTP 429\) after 2 tries"):
            reranker.rerank("q", TEXTS)
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda body: body | {"results": body["results"][:-1]}, "3 scores for 4 texts"),
        (lambda body: body | {"results": body["results"] + body["results"][:1]}, "scores for 4 texts"),
        (lambda body: body | {"results": [row | {"index": 0} for row in body["results"]]}, "1 scores for 4 texts"),
        (lambda body: body | {"results": [row | {"relevance_score": "x"} for row in body["results"]]}, "gave"),
        (lambda body: body | {"results": [row | {"relevance_score": float("nan")} for row in body["results"]]}, "NaN"),
        (lambda body: {"hello": "there"}, "0 scores for 4 texts"),
    ],
)
def test_wrong_answers_are_refused(change, match):
    """An answer that leaves out a text, doubles one or holds no number is an error, and not tried again."""
    with Loopback(wire.Relevance(change=change)) as server:
        with pytest.raises(EmbedderError, match=match):
            cohere(server).rerank("q", TEXTS)
        assert len(server.requests) == 1


@pytest.mark.parametrize(("model", "path", "where"), FORMATS)
def test_errors_and_logs_hold_no_text_and_no_key(model, path, where, caplog, capfd):
    """LiteLLM logs a failed rerank with the provider's words, which quote the texts: here it does not get to."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "LiteLLM")
    with Loopback(wire.Relevance(failures=9, status=400)) as server:
        reranker = LiteLLMReranker(model, api_base=server.url + path, api_key=KEYTEXT)
        with pytest.raises(EmbedderError, match="refused the request") as caught:
            reranker.rerank(SECRET, [SECRET])
        assert len(server.requests) == 1
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    captured = capfd.readouterr()
    said = f"{caught.value!r} {dict(caught.value.evidence)} {caplog.text} {captured.out} {captured.err}"
    assert "7741" not in said
    assert KEYTEXT not in said
