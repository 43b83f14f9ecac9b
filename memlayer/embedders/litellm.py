"""Embedders of any provider, through LiteLLM.

    embedder = LiteLLMEmbedder("cohere/embed-v4.0", dimensions=512)     # the key is in COHERE_API_KEY
    store = MemoryStore.open("memories.db", embedder=embedder)

Making one asks nobody and imports no LiteLLM: the identity is declared from what is known of the model
(litellm_models.py), and every answer is held against it. How a request is made, tried again and kept out of logs:
`memlayer.litellm_calls`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from memlayer.embedders.litellm_models import facts, full_name
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import EmbedderError, InvalidInputError
from memlayer.litellm_calls import Caller, require_litellm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.litellm_models import Facts

__all__ = ["LiteLLMEmbedder"]

# UTF-8 bytes of the texts of one request, if they are more than one. A token is never less than a byte, so this stays
# under every provider's limit on tokens a request (the lowest that is published: 120,000, and 20,000 at Vertex AI,
# where text has four bytes a token).
_REQUEST_BYTES: Final = 64 * 1024
# Tokens that a model is taken to read where nobody knows: what most that are served at home do (BERT).
_WINDOW: Final = 512
_ROLE: Final = re.compile(r"(input_type|task|embeddingPurpose)=(\S+)")
# How LiteLLM, or a provider behind it, tells a picture or a file from a text: by how a string begins. A user who
# writes such a line would have it decoded, or looked up with the caller's key. A space in front makes it a text.
_MEDIA: Final = ("data:", "gs://", "s3://", "files/", "http://", "https://")
# Letters and spaces are counted as half a token each, every other byte as a whole one; and so are letters in what is
# too long for a word (base64, keys, addresses), of which there is nearly a token a letter.
_HALVES: Final = re.compile(r"[A-Za-z ]+")
_NO_WORD: Final = re.compile(r"[!-~]{25,}")
_STOP: Final = re.compile(r"\n+|[。！？]|[.!?…][\"'”’)\]]*\s+")  # noqa: RUF001 - the full-width ones are meant


class LiteLLMEmbedder:
    """One embedding model of one provider. Shareable by threads; cheap to make; nothing is sent before the first text.

    Texts go to the provider, in clear, as with any service. What it answers is checked: one vector a text, in order,
    of the declared length, without NaN.

    Args:
        model: "<provider>/<model>" as LiteLLM writes it, such as "openai/text-embedding-3-small", "ollama/bge-m3" or
            "azure/<deployment>".
        dimensions: the length of a vector; None for the model's own, where that is known. A model that offers several
            is asked for this one; of any other it is a promise that is held against the first answer. Part of the
            identity.
        document_role: how a remembered text is told from a query: "input_type=search_document" for an argument of the
            provider (also "task=", "embeddingPurpose="), any other text for a prefix, "" for nothing. None for what
            the provider or the model's card says. Part of the identity: change it, and the store must be re-embedded.
        query_role: the same for a query.
        api_base: where the provider is, as LiteLLM takes it for this provider (for Cohere and Hugging Face the whole
            address); None for its public address.
        api_key: None for the provider's environment variable.
        options: more arguments for LiteLLM that are about the connection, such as `{"api_version": ...}` or
            `{"aws_region_name": ...}`. They are not part of the identity.
        window: how many tokens the model reads; longer texts are split. None for what is known, else 512.
        batch: how many texts go into one request at most; None for what suits the provider.
        retries: how many times a request is made again after a rate limit, a server's error or a broken connection.
        timeout: seconds for one request.
        patience: seconds after the first try of a request when it is not tried again any more.

    Raises:
        InvalidInputError: a chat model, a length that the model does not have, or one that nobody knows.
        MissingExtraError: LiteLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int | None = None,
        document_role: str | None = None,
        query_role: str | None = None,
        api_base: str | None = None,
        api_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        window: int | None = None,
        batch: int | None = None,
        retries: int = 4,
        timeout: float = 30.0,
        patience: float = 90.0,
    ) -> None:
        require_litellm()  # first of all, because without its list most models are unknown
        name = full_name(model)
        known = facts(name)
        if batch is not None and batch < 1:
            raise InvalidInputError("batch must be at least one text, or None")
        if window is not None and window < 16:
            raise InvalidInputError("window must be at least 16 tokens, or None")
        length, asked = _dimensions(name, dimensions, known)
        self._identity = EmbedderIdentity(
            model=name,
            dimensions=length,
            document_role=known.document_role if document_role is None else document_role,
            query_role=known.query_role if query_role is None else query_role,
        )
        self._caller = Caller(
            name,
            api_base=api_base,
            api_key=api_key,
            options=options,
            retries=retries,
            timeout=timeout,
            patience=patience,
        )
        self._arguments: dict[str, Any] = {"dimensions": length} if asked else {}
        if asked and name.startswith("openai/"):
            # Otherwise LiteLLM lets through only text-embedding-3, and not what a server of one's own has.
            self._arguments["allowed_openai_params"] = ["dimensions"]
        self._batch = batch or known.batch
        # In half tokens, without the prefix.
        prefix = max(sum(_costs(_prefix(role))) for role in (self._identity.document_role, self._identity.query_role))
        self._limit = max(32, 2 * (window or known.window or _WINDOW) - prefix)

    def __repr__(self) -> str:
        return f"<LiteLLMEmbedder {self._identity.model}, {self._identity.dimensions} dimensions>"

    @property
    def identity(self) -> EmbedderIdentity:
        """Declared, not asked for; with the roles in it, because they change the vectors. No provider publishes a
        digest of its weights."""
        return self._identity

    def split(self, text: str) -> list[str]:
        """The text in parts that the model reads whole; put together, they are the text.

        No tokenizer is at hand, so tokens are counted from above: every byte as one, a letter or space of ASCII in
        words as a half. English comes out as about twice what it is. A part ends after a sentence or a line, else
        after white space, if one ends within its last quarter.
        """
        return list(_parts(text, self._limit))

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, C-contiguous, one row of length 1 a text, in the order given.

        Raises:
            EmbedderError: the provider refused, failed, or answered with something else; the message holds no text.
            MissingExtraError: LiteLLM cannot be imported, or lacks a library for this provider.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed_documents takes a sequence of texts, and got one text")
        import numpy as np

        vectors = np.empty((len(texts), self._identity.dimensions), dtype=np.float32)
        done = 0
        for batch in _batches(texts, self._batch):
            vectors[done : done + len(batch)] = self._embed(batch, self._identity.document_role)
            done += len(batch)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(dimensions,)` float32 of length 1. Raises as `embed_documents` does."""
        vector: NDArray[np.float32] = self._embed([text], self._identity.query_role)[0]
        return vector

    def _embed(self, texts: Sequence[str], role: str) -> NDArray[np.float32]:
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
        arguments = dict(self._arguments, input=[_spoken(text, _prefix(role)) for text in texts])
        if argument := _ROLE.fullmatch(role):
            arguments[argument[1]] = argument[2]
        answer = self._caller.call("embedding", arguments, texts=len(texts))
        return _vectors(answer, rows=len(texts), identity=self._identity)


def _dimensions(name: str, wanted: int | None, known: Facts) -> tuple[int, bool]:
    """The length of a vector, and whether the provider is to be asked for it.

    Raises:
        InvalidInputError: it is not known, or not to be had.
    """
    if wanted is None:
        if known.dimensions is None:
            raise InvalidInputError(
                f"nobody here knows how long the vectors of {name} are; pass dimensions=, as the provider states it",
                model=name,
            )
        return known.dimensions, False
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= 65535:
        raise InvalidInputError("dimensions must be a whole number from 1 to 65535, or None")
    if wanted == known.dimensions:
        return wanted, False
    choices = known.choices
    if choices is None:
        # Of a model that nobody knows: a length other than the listed one can only have been asked for. The lengths of
        # OpenAI's models are their own, whatever a deployment at Azure is called.
        provider = name.partition("/")[0]
        if provider == "azure":
            return wanted, wanted not in (1536, 3072)
        return wanted, known.can_ask and known.dimensions is not None
    if known.dimensions is None:
        return wanted, False
    fits = wanted < known.dimensions if choices == ("any",) else wanted in choices
    if not fits:
        others = "shorter ones" if choices == ("any",) else ", ".join(map(str, choices)) or "nothing else"
        raise InvalidInputError(
            f"{name} has vectors of {known.dimensions} dimensions, and offers {others}, not {wanted}",
            model=name,
            dimensions=known.dimensions,
        )
    if not known.can_ask:
        raise InvalidInputError(
            f"LiteLLM has no way to ask this provider for {wanted} dimensions; leave dimensions out for "
            f"{known.dimensions}",
            model=name,
            dimensions=known.dimensions,
        )
    return wanted, True


def _prefix(role: str) -> str:
    return "" if _ROLE.fullmatch(role) else role


def _spoken(text: str, prefix: str) -> str:
    """What is sent for a text: never empty, which providers refuse, and never taken for a picture or a file."""
    said = prefix + (text if text.strip() else ".")
    return f" {said}" if said.startswith(_MEDIA) else said


def _vectors(answer: Any, *, rows: int, identity: EmbedderIdentity) -> NDArray[np.float32]:
    """`(rows, dimensions)` float32 of length 1, from LiteLLM's answer, in the order of the texts."""
    import numpy as np

    model = identity.model
    data = getattr(answer, "data", None)
    if not isinstance(data, list) or len(data) != rows:
        count = len(data) if isinstance(data, list) else 0
        raise EmbedderError(f"{model} gave {count} vectors for {rows} texts", model=model)
    order = [_field(item, "index") for item in data]
    if all(index is None for index in order):
        order = list(range(rows))
    if sorted(index if isinstance(index, int) else -1 for index in order) != list(range(rows)):
        raise EmbedderError(f"{model} gave vectors whose numbers are not those of the texts", model=model)
    lists: list[Any] = [None] * rows
    for index, item in zip(order, data, strict=True):
        lists[index] = _field(item, "embedding")
    matrix = _matrix(lists)
    if matrix is None:
        raise EmbedderError(f"{model} gave something that is no list of numbers of one length", model=model)
    if matrix.shape[1] != identity.dimensions:
        raise EmbedderError(
            f"{model} gave vectors of {matrix.shape[1]} dimensions where {identity.dimensions} were declared; pass "
            f"dimensions={matrix.shape[1]}, or one that the model offers",
            model=model,
            dimensions=matrix.shape[1],
        )
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise EmbedderError(f"{model} gave a vector with NaN or infinity in it, or one of zeros", model=model)
    return np.ascontiguousarray(matrix / norms, dtype=np.float32)


def _matrix(lists: list[Any]) -> NDArray[np.float64] | None:
    """The vectors in float64, where the square of no float32 overflows; None if they are no matrix of numbers."""
    import numpy as np

    if not all(isinstance(one, list) for one in lists):
        return None
    try:
        matrix = np.asarray(lists)
    except ValueError:
        return None
    # Strings, None and lists of unequal length make other kinds of arrays.
    return matrix.astype(np.float64) if matrix.ndim == 2 and matrix.dtype.kind in "fiu" else None


def _field(item: Any, name: str) -> Any:
    """LiteLLM gives dicts for most providers, and objects for Google."""
    return item.get(name) if isinstance(item, dict) else getattr(item, name, None)


def _batches(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """The texts in order, at most `most` and about 64 KiB at once; a longer one goes alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        own = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
        if batch and (len(batch) == most or size + own > _REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += own
    if batch:
        yield batch


def _costs(text: str) -> list[int]:
    """For each character half tokens, counted from above."""
    costs = [2] * len(text) if text.isascii() else [2 * len(one.encode("utf-8", "surrogatepass")) for one in text]
    for half in _HALVES.finditer(text):
        costs[half.start() : half.end()] = [1] * (half.end() - half.start())
    for whole in _NO_WORD.finditer(text):
        costs[whole.start() : whole.end()] = [2] * (whole.end() - whole.start())
    return costs


def _parts(text: str, limit: int) -> Iterator[str]:
    # Most turns are far too short, whatever they hold: no character is more than four bytes.
    if 8 * len(text) <= limit:
        yield text
        return
    ends = list(accumulate(_costs(text)))
    start = spent = 0
    while ends[-1] - spent > limit:
        stop = max(bisect_right(ends, spent + limit), start + 1)
        stop = _cut(text, start + max(1, (stop - start) * 3 // 4), stop)
        yield text[start:stop]
        start, spent = stop, ends[stop - 1]
    yield text[start:]


def _cut(text: str, first: int, last: int) -> int:
    """The best place to cut after `first` and not after `last`: a sentence's end, a white space, else `last`."""
    stops = [found.end() for found in _STOP.finditer(text, first, last)]
    if stops:
        return stops[-1]
    spaces = [place for place in range(first, last) if text[place].isspace()]
    return spaces[-1] + 1 if spaces else last
