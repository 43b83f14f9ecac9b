"""Embedders through LiteLLM: the real library, each provider's wire format, a server on 127.0.0.1."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

if find_spec("litellm") is None:  # some environments have other SDKs only
    pytest.skip("litellm is not installed", allow_module_level=True)
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from memlayer import MemoryStore
from memlayer.embedders import Embedder, SplittingEmbedder, litellm_models
from memlayer.embedders.litellm import LiteLLMEmbedder, _costs
from memlayer.errors import EmbedderError, EmbedderMismatchError, InvalidInputError, MissingExtraError
from tests.adapters.loopback import Loopback
from tests.adapters.wires import embeddings as wire
from tests.conftest import KEY

pytestmark = [
    # LiteLLM keeps a client an address, and lets go of the oldest without closing its connections.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "the launch code is 7741-ZEBRA"
KEYTEXT = "sk-very-secret-key"
OPENAI = "openai/text-embedding-3-small"


def unit(text: str, dimensions: int) -> Any:
    numbers = np.asarray(wire.vector(text, dimensions), dtype=np.float64)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def openai(server: Loopback, **settings: Any) -> LiteLLMEmbedder:
    settings = {"dimensions": 8, **settings}
    return LiteLLMEmbedder(OPENAI, api_base=server.url + "/v1", api_key=KEYTEXT, **settings)


def python(code: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


# Every provider's format

# model, path after the server's address, options, the dimensions to ask for, the path of the request, and which
# argument of it tells a document from a query
AWS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region_name": "us-east-1"}
FORMATS: list[tuple[str, str, dict[str, Any], int | None, str, tuple[str, str, str] | None]] = [
    (OPENAI, "/v1", {}, 256, "/v1/embeddings", None),
    ("azure/text-embedding-3-large", "", {"api_version": "2024-02-01"}, 256, "/openai/deployments/", None),
    ("cohere/embed-v4.0", "/v2/embed", {}, 256, "/v2/embed", ("input_type", "search_document", "search_query")),
    ("cohere/embed-v4.0", "/v2/embed", {}, 512, "/v2/embed", ("input_type", "search_document", "search_query")),
    ("cohere/embed-v4.0", "/v2/embed", {}, 1024, "/v2/embed", ("input_type", "search_document", "search_query")),
    ("cohere/embed-v4.0", "/v2/embed", {}, None, "/v2/embed", ("input_type", "search_document", "search_query")),
    ("cohere/embed-english-v3.0", "/e", {}, None, "/e", ("input_type", "search_document", "search_query")),
    ("azure_ai/embed-v-4-0", "", {}, 512, "/embeddings", ("input_type", "document", "query")),
    ("bedrock/cohere.embed-v4:0", "", AWS, 512, "/model/", ("input_type", "search_document", "search_query")),
    ("voyage/voyage-3.5", "/v1", {}, 512, "/v1/embeddings", ("input_type", "document", "query")),
    ("nvidia_nim/nvidia/nv-embed-v2", "/v1", {}, None, "/v1/embeddings", ("input_type", "passage", "query")),
    ("nvidia_nim/nvidia/llama-3.2-nv-embedqa-1b-v2", "/v1", {}, 384, "/v1/", ("input_type", "passage", "query")),
    ("gemini/gemini-embedding-001", "", {}, 768, ":batch", ("taskType", "RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY")),
    ("mistral/mistral-embed", "/v1", {}, None, "/v1/embeddings", None),
    ("ollama/mxbai-embed-large", "", {}, 512, "/api/embed", None),
    ("jina_ai/jina-embeddings-v3", "/v1", {}, 256, "/v1/", ("task", "retrieval.passage", "retrieval.query")),
    ("hosted_vllm/intfloat/multilingual-e5-small", "/v1", {}, None, "/v1/embeddings", None),
    ("together_ai/BAAI/bge-base-en-v1.5", "/v1", {}, None, "/v1/embeddings", None),
    ("openai/served-at-home", "/v1", {}, 48, "/v1/embeddings", None),
]


def embedder_of(server: Loopback, model: str, path: str, options: dict[str, Any], **settings: Any) -> LiteLLMEmbedder:
    if model.startswith("bedrock/"):
        options = {**options, "aws_bedrock_runtime_endpoint": server.url}
        return LiteLLMEmbedder(model, options=options, retries=0, **settings)
    return LiteLLMEmbedder(model, api_base=server.url + path, api_key=KEYTEXT, options=options, retries=0, **settings)


@pytest.mark.parametrize(("model", "path", "options", "asked", "where", "role"), FORMATS)
def test_every_format_is_spoken(model, path, options, asked, where, role):
    """Documents and queries go out in the provider's format, each in its role, and come back as vectors of length 1
    in the order of the texts."""
    own = litellm_models.facts(model).dimensions
    with Loopback(wire.Embeddings(dimensions=own or asked)) as server:
        embedder = embedder_of(server, model, path, options, dimensions=asked)
        length = embedder.identity.dimensions
        assert length == (asked or own)
        documents = embedder.embed_documents(["one", "two", "three"])
        query = embedder.embed_query("one?")
    prefixes = ["" if "=" in said else said for said in (embedder.identity.document_role, embedder.identity.query_role)]
    assert documents.shape == (3, length)
    assert documents.dtype == query.dtype == np.float32
    for row, text in zip(documents, ("one", "two", "three"), strict=True):
        np.testing.assert_allclose(row, unit(prefixes[0] + text, length), atol=1e-6)
    np.testing.assert_allclose(query, unit(prefixes[1] + "one?", length), atol=1e-6)
    assert all(where in request.path for request in server.requests)
    if role is not None:
        name, document, asking = role
        bodies = [body["requests"][0] if "requests" in body else body for body in server.bodies]
        assert [body.get(name) for body in bodies] == [document, asking]
    assert {wire.asked_dimensions(body) for body in server.bodies} == {asked if asked != own and asked != 48 else None}


def test_the_key_goes_to_the_provider_alone():
    """The key is sent as the provider wants it, and is in no repr."""
    with Loopback(wire.Embeddings()) as server:
        embedder = openai(server)
        embedder.embed_query("one")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEYTEXT}"
    assert KEYTEXT not in repr(embedder) + repr(embedder._caller) + repr(embedder.identity)
    assert repr(embedder) == f"<LiteLLMEmbedder {OPENAI}, 8 dimensions>"


def test_answers_are_ordered_by_their_index():
    """A provider that answers in another order is understood."""
    with Loopback(wire.Embeddings(scramble=True)) as server:
        documents = openai(server).embed_documents(["one", "two", "three"])
    np.testing.assert_allclose(documents[0], unit("one", 8), atol=1e-6)
    np.testing.assert_allclose(documents[2], unit("three", 8), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "path"),
    [("cohere/embed-v4.0", "/e"), ("jina_ai/jina-embeddings-v3", "/v1"), ("gemini/gemini-embedding-001", "")],
)
@pytest.mark.parametrize("text", ["data:image/png;base64,aGVsbG8=", "files/secret-report", "gs://bucket/a.png"])
def test_a_text_is_never_taken_for_a_picture_or_a_file(model, path, text):
    """What a user writes is embedded as text, also where LiteLLM would decode it or look it up with the key."""
    with Loopback(wire.Embeddings(dimensions=16)) as server:
        embedder = embedder_of(server, model, path, {}, dimensions=256)
        embedder.embed_documents(["before", text])
    assert len(server.requests) == 1
    assert wire.texts_of(server.bodies[0]) == ["before", " " + text]


def test_blank_parts_are_sent_as_something():
    """A part of nothing but white space, which `split` can leave, is not sent empty: providers refuse that."""
    with Loopback(wire.Embeddings()) as server:
        openai(server).embed_documents(["a", " \n "])
    assert wire.texts_of(server.bodies[0]) == ["a", "."]


# Identity


def test_the_identity_needs_neither_litellm_nor_a_network():
    """Making an embedder and asking for its identity sends nothing and imports neither LiteLLM nor numpy."""
    out = python(
        """
        import socket, sys
        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from memlayer.embedders.litellm import LiteLLMEmbedder
        from memlayer.rerankers.litellm import LiteLLMReranker
        print(LiteLLMEmbedder("voyage/voyage-3.5").identity.to_json().decode())
        print(LiteLLMReranker("cohere/rerank-v3.5").name)
        print(sorted({"litellm", "numpy", "openai", "httpx"} & sys.modules.keys()))
        """
    )
    assert out.splitlines() == [
        '{"dimensions":1024,"document_role":"input_type=document","model":"voyage/voyage-3.5","normalised":true,'
        '"query_role":"input_type=query","weights":""}',
        "cohere/rerank-v3.5",
        "[]",
    ]


def test_both_protocols():
    """It is an Embedder, and says where to cut."""
    embedder = LiteLLMEmbedder(OPENAI)
    assert isinstance(embedder, Embedder)
    assert isinstance(embedder, SplittingEmbedder)


def test_roles_and_lengths_are_part_of_the_identity():
    """Another input type, prefix or length is another identity; a key, an address and a batch size are not."""

    def digest(**settings: Any) -> bytes:
        return LiteLLMEmbedder("cohere/embed-v4.0", **settings).identity.digest()

    same = digest()
    assert digest(api_key="k", api_base="http://127.0.0.1:1", batch=3, retries=0, window=99) == same
    others = [
        digest(dimensions=256),
        digest(query_role="input_type=classification"),
        digest(document_role="input_type=clustering"),
        digest(document_role="", query_role=""),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("model", "document", "query"),
    [
        ("ollama/nomic-embed-text:v1.5", "search_document: ", "search_query: "),
        ("ollama/mxbai-embed-large", "", "Represent this sentence for searching relevant passages: "),
        ("hosted_vllm/intfloat/e5-base-v2", "passage: ", "query: "),
        ("gemini/gemini-embedding-2", "title: none | text: ", "task: search result | query: "),
        ("jina_ai/jina-embeddings-v2-base-en", "", ""),
        ("ollama/bge-m3", "", ""),
    ],
)
def test_prefixes_of_models_without_input_types(model, document, query):
    """Where the provider has no input type, the text gets what the model's card says."""
    embedder = LiteLLMEmbedder(model)
    assert (embedder.identity.document_role, embedder.identity.query_role) == (document, query)


def test_own_roles():
    """A caller's role is an argument where it names one, and else a prefix."""
    with Loopback(wire.Embeddings()) as server:
        embedder = openai(server, document_role="doc: ", query_role="input_type=query")
        embedder.embed_documents(["one"])
        embedder.embed_query("two")
    assert [wire.texts_of(body) for body in server.bodies] == [["doc: one"], ["two"]]
    assert [body.get("input_type") for body in server.bodies] == [None, "query"]


@pytest.mark.parametrize(
    ("model", "dimensions"),
    [
        ("text-embedding-3-large", 3072),
        ("cohere/embed-v4.0", 1536),
        ("azure_ai/embed-v-4-0", 1536),
        ("nvidia_nim/nvidia/nv-embed-v2", 4096),
        ("oci/cohere.embed-english-light-v3.0", 384),
        ("databricks/databricks-gte-large-en", 1024),
        ("gigachat/Embeddings", 1024),
        ("vertex_ai/text-embedding-005", 768),
        ("text-embedding-005", 768),
    ],
)
def test_known_lengths(model, dimensions):
    """The length is known from memlayer's tables or LiteLLM's list, under full names and bare ones."""
    embedder = LiteLLMEmbedder(model)
    assert embedder.identity.dimensions == dimensions
    assert "/" in embedder.identity.model


def test_a_length_nobody_knows_must_be_said():
    """Without a known length, construction says to pass dimensions=."""
    with pytest.raises(InvalidInputError, match="pass dimensions="):
        LiteLLMEmbedder("openai/served-at-home")
    assert LiteLLMEmbedder("openai/served-at-home", dimensions=33).identity.dimensions == 33


@pytest.mark.parametrize(
    ("model", "dimensions", "match"),
    [
        ("cohere/embed-v4.0", 300, "256, 512, 1024"),
        ("openai/text-embedding-3-small", 3072, "1536 dimensions, and offers shorter ones"),
        ("mistral/mistral-embed", 512, "offers nothing else"),
        ("mistral/codestral-embed", 512, "no way to ask"),
        (OPENAI, 0, "whole number"),
        (OPENAI, True, "whole number"),
    ],
)
def test_lengths_that_are_not_to_be_had(model, dimensions, match):
    """A length that the model does not offer is refused at construction, and not found out by the first text."""
    with pytest.raises(InvalidInputError, match=match):
        LiteLLMEmbedder(model, dimensions=dimensions)


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o",
        "openai/gpt-4o",
        "openai/gpt-99-future",
        "anthropic/claude-sonnet-4-5",
        "ollama/llama3:8b",
        "azure/gpt-4o",
    ],
)
def test_a_chat_model_is_refused(model):
    """A chat model given as embedder is refused at construction, with the reason."""
    with pytest.raises(InvalidInputError, match="an LLM writes answers and an embedder measures meaning"):
        LiteLLMEmbedder(model, dimensions=1536)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": ""}, "must be a name"),
        ({"model": None}, "must be a name"),
        ({"model": "nobody-knows-me"}, "does not say whose"),
        ({"model": "cohere/rerank-v3.5"}, "model for rerank"),
        ({"batch": 0}, "batch"),
        ({"window": 3}, "window"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"options": {"input": ["x"], "api_version": "1"}}, "options cannot have input"),
    ],
)
def test_wrong_settings(settings, match):
    """A setting that cannot work is refused at construction."""
    with pytest.raises(InvalidInputError, match=match):
        LiteLLMEmbedder(**{"model": OPENAI, **settings})


def test_a_missing_litellm_is_named(monkeypatch):
    """Without LiteLLM the error has the line that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[litellm\]"'):
        LiteLLMEmbedder(OPENAI)


# Failures


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("model", [OPENAI, "cohere/embed-v4.0", "voyage/voyage-3.5"])
def test_tried_again(model, status, network_attempts):
    """After a rate limit or a server's error the same request is made again, and then counts."""
    script = wire.Embeddings(failures=2, status=status, headers={"retry-after": "0"})
    with Loopback(script) as server:
        embedder = LiteLLMEmbedder(model, dimensions=512, api_base=server.url + "/v1", api_key="k")
        assert embedder.embed_query("one").shape == (512,)
        assert len(server.requests) == 3


@pytest.mark.parametrize("header", ["1", "date"])
@pytest.mark.parametrize("model", [OPENAI, "cohere/embed-v4.0", "jina_ai/jina-embeddings-v3"])
def test_retry_after_is_obeyed(model, header):
    """It waits as long as the provider says, also where LiteLLM's own exception has lost the header."""
    value = header if header == "1" else format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    arrivals = []
    script = wire.Embeddings(failures=1, status=429, headers={"retry-after": value})

    def answer(request):
        arrivals.append(time.monotonic())
        return script(request)

    with Loopback(answer) as server:
        LiteLLMEmbedder(model, dimensions=512, api_base=server.url + "/v1", api_key="k").embed_query("one")
    assert len(arrivals) == 2
    assert arrivals[1] - arrivals[0] >= (0.99 if header == "1" else 0.5)


def test_a_wait_beyond_patience_is_not_begun():
    """Where the provider asks for more time than there is, the error comes at once."""
    with Loopback(wire.Embeddings(failures=9, status=429, headers={"retry-after": "3600"})) as server:
        with pytest.raises(EmbedderError, match=r"rate limit or quota.*HTTP 429"):
            openai(server, patience=5).embed_query("one")
        assert len(server.requests) == 1


def test_tries_are_bounded(monkeypatch):
    """After the last try the error says how many there were."""
    monkeypatch.setattr("memlayer.litellm_calls._PAUSES", (0.01, 0.01))
    with Loopback(wire.Embeddings(failures=99, status=503)) as server:
        with pytest.raises(EmbedderError, match=r"try again later \(HTTP 503\) after 3 tries") as caught:
            openai(server, retries=2).embed_query("one")
        assert len(server.requests) == 3
    assert dict(caught.value.evidence) == {"model": OPENAI, "status": 503, "tries": 3, "texts": 1}


@pytest.mark.parametrize("model", [OPENAI, "cohere/embed-v4.0", "gemini/gemini-embedding-001", "mistral/mistral-embed"])
@pytest.mark.parametrize(
    ("status", "match"),
    [(400, "refused the request"), (401, "refused the key"), (404, "no such model"), (413, "batch")],
)
def test_what_was_refused_is_not_tried_again(model, status, match):
    """A 4xx other than a rate limit is final, and said in words."""
    with Loopback(wire.Embeddings(failures=9, status=status)) as server:
        with pytest.raises(EmbedderError, match=match) as caught:
            LiteLLMEmbedder(model, api_base=server.url + "/v1", api_key="k").embed_query("one")
        assert len(server.requests) == 1
    assert caught.value.evidence["status"] == status


def test_a_provider_that_is_not_there():
    """A refused connection is tried again, and then said; the error a caller is handling has no say in it."""
    with Loopback(wire.Embeddings()) as server:
        url = server.url
    embedder = LiteLLMEmbedder("voyage/voyage-3.5", api_base=url + "/v1", api_key="k", retries=1)
    with pytest.raises(EmbedderError, match=r"could not be reached.*after 2 tries"):
        embedder.embed_query("one")


def test_what_the_caller_is_handling_is_not_the_providers(monkeypatch):
    """An error of a caller, a broken connection say, does not make a refusal look like a broken connection."""
    with Loopback(wire.Embeddings(change=lambda body: {"nothing": 1})) as server:
        embedder = embedder_of(server, "cohere/embed-v4.0", "/e", {})
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            with pytest.raises(EmbedderError, match="no usable answer"):
                embedder.embed_query("one")


def test_a_provider_that_does_not_answer(monkeypatch):
    """A request that takes too long is given up, and tried again."""
    script, hold = wire.Embeddings(), threading.Event()
    monkeypatch.setattr("memlayer.litellm_calls._PAUSES", (0.01, 0.01))

    def answer(request):
        hold.wait(20)
        return script(request)

    with Loopback(answer) as server:
        with pytest.raises(EmbedderError, match=r"did not answer in time.*after 2 tries"):
            openai(server, timeout=0.3, retries=1).embed_query("one")
        hold.set()
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda body: body | {"data": body["data"][:-1]}, "gave 2 vectors for 3 texts"),
        (lambda body: body | {"data": []}, "gave 0 vectors for 3 texts"),
        (lambda body: body | {"data": body["data"] + body["data"][:1]}, "gave 4 vectors for 3 texts"),
        (lambda body: {"hello": "there"}, "for 3 texts"),
        (lambda body: body | {"data": [row | {"index": 0} for row in body["data"]]}, "numbers are not those"),
        (lambda body: body | {"data": [row | {"embedding": [1.0] * 5} for row in body["data"]]}, r"dimensions=5"),
        (lambda body: body | {"data": [row | {"embedding": ["x"] * 8} for row in body["data"]]}, "no list of numbers"),
        (lambda body: body | {"data": [row | {"embedding": [None] * 8} for row in body["data"]]}, "no list of numbers"),
        (
            lambda body: body | {"data": [row | {"embedding": [[1.0] * 8]} for row in body["data"]]},
            "no list of numbers",
        ),
        (lambda body: body | {"data": [row | {"embedding": [float("nan")] * 8} for row in body["data"]]}, "NaN"),
        (lambda body: body | {"data": [row | {"embedding": [float("inf")] * 8} for row in body["data"]]}, "NaN"),
        (lambda body: body | {"data": [row | {"embedding": [1e300] * 8} for row in body["data"]]}, "NaN or infinity"),
        (lambda body: body | {"data": [row | {"embedding": [0.0] * 8} for row in body["data"]]}, "zeros"),
    ],
)
def test_wrong_answers_are_refused(change, match):
    """An answer with another count, order or length, or with what is no number, is an error and never a vector."""
    with Loopback(wire.Embeddings(change=change)) as server:
        embedder = LiteLLMEmbedder(
            "voyage/voyage-of-tomorrow", dimensions=8, api_base=server.url + "/v1", api_key="k", retries=3
        )
        with pytest.raises(EmbedderError, match=match):
            embedder.embed_documents(["one", "two", "three"])
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("model", "path", "settings"),
    [(model, path, options) for model, path, options, *_ in FORMATS if model != "cohere/embed-v4.0"]
    + [("cohere/embed-v4.0", "/e", {})],
)
@pytest.mark.parametrize("status", [400, 429])
def test_errors_and_logs_hold_no_text_and_no_key(model, path, settings, status, caplog, capfd):
    """Whatever a provider answers, no error, chain or log line has the text or the key, with every logger at DEBUG."""
    import litellm

    caplog.set_level(logging.DEBUG)
    litellm_loggers = [logging.getLogger(name) for name in ("LiteLLM", "openai", "openai._base_client", "httpx")]
    before = [logger.level for logger in litellm_loggers]
    for logger in litellm_loggers:
        logger.setLevel(logging.DEBUG)
    litellm.suppress_debug_info = False
    try:
        with Loopback(wire.Embeddings(failures=9, status=status, headers={"retry-after": "0"})) as server:
            embedder = embedder_of(server, model, path, settings, dimensions=None if model != FORMATS[-1][0] else 48)
            with pytest.raises(EmbedderError) as caught:
                embedder.embed_documents([SECRET])
            assert SECRET in str(server.bodies[0])
    finally:
        for logger, level in zip(litellm_loggers, before, strict=True):
            logger.setLevel(level)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    captured = capfd.readouterr()
    said = f"{error!r} {dict(error.evidence)} {caplog.text} {captured.out} {captured.err}"
    assert SECRET not in said
    assert KEYTEXT not in said
    assert "7741" not in said
    assert "Give Feedback" not in said


def test_callbacks_and_cache_of_the_application_see_nothing(monkeypatch):
    """What an application has LiteLLM do with its chats (callbacks before, after and on failure, a cache) is not done
    with memories."""
    import litellm
    from litellm.caching.caching import Cache
    from litellm.integrations.custom_logger import CustomLogger

    seen: list[str] = []

    class Spy(CustomLogger):
        def log_pre_api_call(self, model, messages, kwargs):
            seen.append("pre")

        def log_post_api_call(self, kwargs, response_obj, start_time, end_time):
            seen.append("post")

        def log_success_event(self, kwargs, response_obj, start_time, end_time):
            seen.append("success")

        def log_failure_event(self, kwargs, response_obj, start_time, end_time):
            seen.append("failure")

    cache = Cache()
    for name in ("callbacks", "input_callback", "success_callback", "failure_callback"):
        monkeypatch.setattr(litellm, name, [Spy()])
    monkeypatch.setattr(litellm, "cache", cache)
    with Loopback(wire.Embeddings()) as server:
        embedder = openai(server, retries=0)
        embedder.embed_query("one")
        embedder.embed_query("one")
        assert len(server.requests) == 2
        server.answer = wire.Embeddings(failures=1, status=400)
        with pytest.raises(EmbedderError):
            embedder.embed_query("one")
        assert seen == []
        # The spy does see a call of the application's own: the test can fail.
        server.answer = wire.Embeddings()
        litellm.embedding(OPENAI, ["x"], api_base=server.url + "/v1", api_key="k", dimensions=8)
        for _ in range(200):
            if "success" in seen:
                break
            time.sleep(0.05)
    assert set(seen) == {"post", "pre", "success"}


# Batches, threads, long texts


def test_batches_are_bounded_by_count_and_bytes():
    """A request has at most `batch` texts, and more than 64 KiB only where one text alone is longer."""
    texts = [f"{number}" for number in range(10)] + ["x" * 40_000, "y" * 40_000, "z" * 100_000, "end"]
    with Loopback(wire.Embeddings()) as server:
        vectors = openai(server, batch=4).embed_documents(texts)
    sent = [wire.texts_of(body) for body in server.bodies]
    assert [text for batch in sent for text in batch] == texts
    assert [len(batch) for batch in sent] == [4, 4, 3, 1, 1, 1]
    for row, text in zip(vectors, texts, strict=True):
        np.testing.assert_allclose(row, unit(text, 8), atol=1e-6)


def test_google_on_vertex_gets_one_text_a_request():
    """LiteLLM sends several texts to some models of Vertex AI as one content; so each goes alone."""
    assert LiteLLMEmbedder("vertex_ai/gemini-embedding-001")._batch == 1


def test_no_texts_are_no_request():
    """An empty sequence is an empty matrix, and nothing is sent."""
    with Loopback(wire.Embeddings()) as server:
        assert openai(server).embed_documents([]).shape == (0, 8)
    assert not server.requests


def test_what_is_no_text_is_refused():
    """A str in place of a sequence, and what is no str in one, are the caller's mistakes."""
    embedder = LiteLLMEmbedder(OPENAI)
    with pytest.raises(InvalidInputError):
        embedder.embed_documents("one")
    with pytest.raises(InvalidInputError):
        embedder.embed_documents(["one", 2])  # type: ignore[list-item]


def test_threads_share_one_embedder():
    """Eight threads that embed at once each get the vectors of their own texts."""
    with Loopback(wire.Embeddings()) as server:
        embedder = openai(server)

        def work(number: int) -> bool:
            rows = embedder.embed_documents([f"{number}-{i}" for i in range(5)])
            return all(np.allclose(row, unit(f"{number}-{i}", 8), atol=1e-6) for i, row in enumerate(rows))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(32)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_connections_of_its_own():
    """A parent and its forked child that embed at once never wait for, or get, each other's answers."""
    out = python(
        f"""
        import os, sys, time
        import numpy as np
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from memlayer.embedders.litellm import LiteLLMEmbedder
        from tests.adapters.loopback import Loopback
        from tests.adapters.wires import embeddings as wire

        def served(request):
            time.sleep(0.005)
            return script(request)

        def wrong(embedder, who):
            count = 0
            for number in range(25):
                text = f"{{who}} {{number}}"
                wanted = np.asarray(wire.vector(text, 1024))
                try:
                    got = embedder.embed_query(text)
                    count += not np.allclose(got, wanted / np.linalg.norm(wanted), atol=1e-6)
                except Exception:  # an answer that was another's shows as a wrong vector or as any error: both count
                    count += 1
            return count

        script = wire.Embeddings()
        with Loopback(served) as server:
            for model, path in [("openai/text-embedding-3-small", "/v1"), ("cohere/e", "/e"), ("ollama/bge-m3", "")]:
                embedder = LiteLLMEmbedder(
                    model, dimensions=1024, api_base=server.url + path, api_key="k", retries=0, timeout=3
                )
                script.dimensions = 1024
                embedder.embed_query("a connection that is kept")
                child = os.fork()
                if child == 0:
                    os._exit(wrong(embedder, "child"))
                own = wrong(embedder, "parent")
                print(own, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert out.split() == ["0"] * 6


@given(text=st.text(max_size=400), window=st.integers(16, 64))
def test_parts_are_the_text_and_fit(text, window):
    """Whatever the text, its parts put together are the text, none is empty unless it is, and each fits the window."""
    parts = LiteLLMEmbedder(OPENAI, window=window).split(text)
    assert "".join(parts) == text
    assert all(sum(_costs(part)) <= 2 * window for part in parts)
    assert all(parts) or not text


def test_parts_end_after_sentences():
    """A long text is cut after a sentence where one ends, and its parts are not needlessly short."""
    text = "The quick brown fox jumps over the lazy dog. " * 60
    parts = LiteLLMEmbedder(OPENAI, window=128).split(text)
    assert "".join(parts) == text
    assert all(part.endswith(". ") for part in parts)
    assert min(map(len, parts[:-1])) > 128


def test_no_part_is_more_tokens_than_the_window():
    """By the real tokenizer of OpenAI's models, prose, digits, code, Chinese, Thai and emoji all fit."""
    import litellm  # noqa: F401 - it brings the tokenizer's file, and tells tiktoken where
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base")
    embedder = LiteLLMEmbedder(OPENAI, window=100)
    for text in (
        "I am allergic to peanuts, and so is my brother. " * 40,
        "8831 7742 0091 " * 100,
        "def f(x): return {x[0]: (x[1] ** 2) % 7}\n" * 40,
        "我对花生过敏，不能吃。" * 60,
        "ฉันแพ้ถั่วลิสง" * 60,
        "🥜🙅‍♀️" * 100,
        base64.b64encode(bytes(range(256)) * 20).decode(),
        "https://example.com/a/b?c=d8f7e6&e=Zm9vYmFy " * 50,
        "Die Donaudampfschifffahrtsgesellschaft fährt heute nicht. " * 40,
    ):
        assert max(len(encoding.encode(part)) for part in embedder.split(text)) <= 100


def test_the_window_is_the_models():
    """The window is what is known of the model, less the prefix, and 512 tokens where nobody knows."""

    def longest(model: str, **settings: Any) -> int:
        return max(sum(_costs(part)) for part in LiteLLMEmbedder(model, **settings).split("word " * 60_000)) // 2

    assert 8000 < longest(OPENAI) <= 8191
    assert 380 < longest("openai/served-at-home", dimensions=8) <= 512
    assert longest("ollama/mxbai-embed-large") <= 512 - 28


# A whole round


def test_a_store_with_it(tmp_path):
    """Remembered and recalled through a provider; another length, role or model does not open the store."""
    path = tmp_path / "memories.db"
    with Loopback(wire.Embeddings(dimensions=1536)) as server:

        def cohere(**settings: Any) -> LiteLLMEmbedder:
            return LiteLLMEmbedder("cohere/embed-v4.0", api_base=server.url, api_key=KEYTEXT, **settings)

        with MemoryStore.open(path, keys=KEY, embedder=cohere(dimensions=256)) as store:
            alice = store.user("alice")
            alice.remember("I'm allergic to peanuts", role="user")
            alice.remember("The weather is fine. " * 20, role="user")
            hits = alice.recall("I'm allergic to peanuts", min_score=0)
            assert hits[0].text == "I'm allergic to peanuts"
        types = [(body["input_type"], body["output_dimension"]) for body in server.bodies]
        assert set(types) == {("search_document", 256), ("search_query", 256)}
        sent = len(server.requests)
        for other in (cohere(dimensions=512), cohere(), cohere(dimensions=256, query_role="")):
            with pytest.raises(EmbedderMismatchError), MemoryStore.open(path, keys=KEY, embedder=other) as store:
                store.user("alice").recall("peanuts")
        assert len(server.requests) == sent
        with MemoryStore.open(path, keys=KEY, embedder=cohere(dimensions=256)) as store:
            assert len(store.user("alice")) == 2
            assert store.user("alice").recall("I'm allergic to peanuts", min_score=0)[0].text.endswith("peanuts")
