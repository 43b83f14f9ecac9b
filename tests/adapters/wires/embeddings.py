"""The wire formats of embeddings and reranking: OpenAI and its many likenesses, Cohere, Google, Ollama, and rerankers.

with Loopback(wire.Embeddings(dimensions=8)) as server:
    LiteLLMEmbedder("openai/text-embedding-3-small", dimensions=8, api_base=server.url + "/v1", api_key="none")
"""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.adapters.loopback import Answer

if TYPE_CHECKING:
    from tests.adapters.loopback import Request


def texts_of(body: dict[str, Any]) -> list[str]:
    """What was sent to be embedded, in whichever format."""
    if "requests" in body:
        return [request["content"]["parts"][0]["text"] for request in body["requests"]]
    for name in ("texts", "input", "inputs"):
        if name in body:
            return body[name] if isinstance(body[name], list) else [body[name]]
    raise AssertionError(f"no texts in {sorted(body)}")


def asked_dimensions(body: dict[str, Any]) -> int | None:
    """The length that was asked for, under whichever name."""
    if "requests" in body:
        body = body["requests"][0]
    for name in ("dimensions", "output_dimension", "outputDimensionality"):
        if name in body:
            return int(body[name])
    return None


def vector(text: str, dimensions: int) -> list[float]:
    """A vector that is the same for the same text, exact in float32, and not of length 1."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    numbers: list[float] = np.random.default_rng(seed).normal(size=dimensions).astype(np.float32).tolist()
    return numbers


@dataclass
class Embeddings:
    """Answers every request of one server, in the format that its path and body show.

    Attributes:
        dimensions: how long the vectors are where the request does not ask for a length.
        failures: to so many requests, the first ones, it answers with `status` instead.
        headers: of those failures.
        change: makes another body of an answer that would have been right.
        scramble: whether OpenAI's data come in another order than the texts; their index tells.
    """

    dimensions: int = 8
    failures: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    change: Any = None
    scramble: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, request: Request) -> Answer:
        with self._lock:
            self.failures -= 1
            if self.failures >= 0:
                # Providers quote what they were sent.
                said = {"message": f"no: {request.body}", "type": "x", "code": str(self.status)}
                return Answer({"error": said, "message": str(said)}, status=self.status, headers=self.headers)
        body = self._body(request)
        return Answer(self.change(body) if self.change else body)

    def _body(self, request: Request) -> dict[str, Any]:
        path, sent = request.path.partition("?")[0], request.body
        length = asked_dimensions(sent) or self.dimensions
        vectors = [vector(text, length) for text in texts_of(sent)]
        if path.endswith(":batchEmbedContents"):
            return {"embeddings": [{"values": one} for one in vectors]}
        if path.endswith("/api/embed"):
            return {"model": sent["model"], "embeddings": vectors, "prompt_eval_count": 3}
        if "texts" in sent:  # Cohere, also at Bedrock
            return {"id": "1", "embeddings": {"float": vectors}, "meta": {"billed_units": {"input_tokens": 3}}}
        rows: list[dict[str, Any]] = [
            {"object": "embedding", "index": number, "embedding": self._encoded(one, sent)}
            for number, one in enumerate(vectors)
        ]
        if self.scramble:
            rows.reverse()
        return {"object": "list", "model": "m", "data": rows, "usage": {"prompt_tokens": 3, "total_tokens": 3}}

    @staticmethod
    def _encoded(numbers: list[float], sent: dict[str, Any]) -> str | list[float]:
        if sent.get("encoding_format") == "base64":
            return base64.b64encode(np.asarray(numbers, dtype="<f4").tobytes()).decode()
        return numbers


@dataclass
class Relevance:
    """Answers every request for reranking, best first, in the format that its path and body show.

    Attributes:
        scores: the relevance of a text, by a word that is in it; others get `rest`.
        failures: to so many requests, the first ones, it answers with `status` instead.
        change: makes another body of an answer that would have been right.
    """

    scores: dict[str, float] = field(default_factory=dict)
    rest: float = 0.01
    failures: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    change: Any = None

    def __call__(self, request: Request) -> Answer:
        self.failures -= 1
        if self.failures >= 0:
            return Answer({"message": f"no: {request.body}"}, status=self.status, headers=self.headers)
        sent = request.body
        texts = [text if isinstance(text, str) else text["text"] for text in sent.get("documents") or sent["passages"]]
        scored = [(self._score(text), number) for number, text in enumerate(texts)]
        scored.sort(key=lambda pair: -pair[0])
        if "passages" in sent:  # NVIDIA
            body: dict[str, Any] = {"rankings": [{"index": number, "logit": score} for score, number in scored]}
        else:
            rows = [{"index": number, "relevance_score": score} for score, number in scored]
            key = "data" if sent["model"].startswith("rerank-2") else "results"  # Voyage; Cohere, Jina, Together
            body = {"id": "1", key: rows, "usage": {"total_tokens": 3}, "meta": {"billed_units": {"search_units": 1}}}
        return Answer(self.change(body) if self.change else body)

    def _score(self, text: str) -> float:
        return next((score for word, score in self.scores.items() if word in text), self.rest)
