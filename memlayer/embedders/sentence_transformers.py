"""Any sentence-transformers model on this machine, by its name at the hub or its folder.

Pooling, prompts and the length of what is read at once are the model's own: from its modules and its configuration,
and for published families that came before that configuration from `memlayer.embedders.prompts`.

The identity needs the digest of every file that decides a vector, so the files are found, and hashed once a process
(2 GB a second), when the identity is first asked for, which is when a store is opened; nothing is loaded then. A name
that is not on this machine is downloaded at that moment, weights included: an identity that came from the hub's word
alone would be one that nobody has checked, and one that changes when the files come would lock the store.

Threads share a loaded model without a lock, as `memlayer.embedders.minilm` says: the tokenizer is memlayer's own copy.
Where that cannot be had (a chat template, a tokenizer written in Python, a router), the model's own preparation of
texts runs in one thread at a time, and its forward pass in all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from memlayer.embedders import weights
from memlayer.embedders.checkpoint import Checkpoint, read, remote_code
from memlayer.embedders.hub import find, folder_of, name_in_cache
from memlayer.embedders.images import decode
from memlayer.embedders.loaded_model import load
from memlayer.embedders.loading import failures, once
from memlayer.embedders.prompts import Prompts, configured, published
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import EmbedderError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.loaded_model import LoadedModel, Role

__all__ = ["Pooling", "SentenceTransformerEmbedder"]

Pooling = Literal["mean", "cls", "lasttoken"]
_POOLINGS: Final = ("mean", "cls", "lasttoken")
# By the state of the files: what was hashed once is not hashed again in this process.
_digests: Final[dict[object, dict[str, str]]] = {}


class SentenceTransformerEmbedder:
    """A model of sentence-transformers. Shareable by threads; cheap to make: nothing is loaded or asked for yet.

    Vectors come with length 1, whether or not the model has a module for that, and also after truncation.

    Args:
        model: its name at the hub ("intfloat/e5-small-v2"; a name without an organisation is one of
            sentence-transformers), or a folder.
        name: the public name in the identity, for a folder. Two folders with the same files have the same identity
            wherever they are; one that should have the identity of a model at the hub is given that model's name.
        pooling: how a folder without modules.json becomes one vector a text, as the model was trained: "mean", "cls"
            or "lasttoken". Any other folder says that itself.
        truncate_dim: keep so many of a vector's first numbers, for models that were trained for it (Matryoshka).
            None is what the model's configuration says, mostly all of them.
        revision: a commit, tag or branch at the hub; None is what is in the cache, else the main branch.
        device: of torch. Anything but "cpu" does not survive a fork.
        document_role: what stands before a remembered text. None is the model's own prompt for documents (or passages,
            or a corpus), or its family's published one, or nothing; "" is nothing.
        query_role: what stands before a query; likewise.
        batch: how many texts are computed together at most.

    Raises:
        InvalidInputError: no such folder, or a value that cannot be.
        EmbedderError: a folder that memlayer does not load, and why; for a name that comes with the first `identity`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        pooling: Pooling | None = None,
        truncate_dim: int | None = None,
        revision: str | None = None,
        device: str = "cpu",
        document_role: str | None = None,
        query_role: str | None = None,
        batch: int = 32,
    ) -> None:
        if pooling is not None and pooling not in _POOLINGS:
            raise InvalidInputError(f"pooling must be one of {', '.join(map(repr, _POOLINGS))}, not {pooling!r}")
        for label, number in (("truncate_dim", truncate_dim), ("batch", batch)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InvalidInputError(f"{label} must be 1 or more, not {number!r}")
        folder = folder_of(model)
        if folder is None:
            hub = str(model) if "/" in str(model) else f"sentence-transformers/{model}"
            if hub.lower().endswith("/nv-embed-v2"):
                raise remote_code(hub)
            self._family = self._model = hub
        else:
            self._model = name or name_in_cache(folder) or ""
            self._family = self._model or folder.name
        self._hub = None if folder is not None else self._model
        self._pooling, self._truncate_dim, self._revision, self._device = pooling, truncate_dim, revision, device
        self._document_role, self._query_role, self._batch = document_role, query_role, batch
        self._checkpoint = None if folder is None else self._read(folder)
        self._identity: EmbedderIdentity | None = None

    def __repr__(self) -> str:
        return f"<SentenceTransformerEmbedder {self._model}>"

    @property
    def identity(self) -> EmbedderIdentity:
        """Known without loading anything; the first time the files are found (see the module's head) and hashed.

        Raises:
            WeightsUnavailableError: the model is not on this machine, and the hub does not give it.
            EmbedderError: it is one that memlayer does not load, and why.
        """
        if self._identity is None:
            checkpoint = self._files()
            prompts = self._prompts(checkpoint)
            model, digest = self._weights(checkpoint)
            self._identity = EmbedderIdentity(
                model=model,
                weights=digest,
                dimensions=self._dimensions(checkpoint),
                document_role=prompts.document,
                query_role=prompts.query,
            )
        return self._identity

    @property
    def languages(self) -> frozenset[str] | None:
        """English for the files of all-MiniLM-L6-v2; None is any. Raises as `identity` does."""
        return weights.LANGUAGES if self.identity.model == weights.MODEL else None

    @property
    def reads_images(self) -> bool:
        """Whether `embed_images` works: the model puts pictures and texts into one space, as CLIP does."""
        return self._files().reads_images

    def load(self) -> None:
        """Loads the model, unless it is loaded; without it the first text does. Raises as `embed_query` does."""
        self._load()

    def split(self, text: str) -> list[str]:
        """The text in parts that the model reads whole, the document prompt counted in; `[text]` where it fits.

        Raises:
            EmbedderError: the text could not be tokenized, or the prompt leaves no room for a text.
        """
        _check(text)
        loaded = self._load()
        with failures(self._model, texts=1):
            role = self.identity.document_role
            window = loaded.window(role)
            if window is None:
                return [text]
            if window < 1:
                raise EmbedderError(f"the document prompt of {self._model} leaves no room for a text")
            return list(loaded.parts(text, prompt=role, window=window))

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, one row of length 1 a text, in the order given, each behind the document prompt.

        What a text has beyond the model's window is not read: `split` it first.

        Raises:
            EmbedderError: a text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the model is not on this machine, and the hub does not give it.
            MissingExtraError: sentence-transformers is not installed.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed_documents takes a sequence of texts, and got one text")
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(dimensions,)` float32 of length 1, behind the query prompt. Raises as `embed_documents` does."""
        vector: NDArray[np.float32] = self._embed([text], "query")[0]
        return vector

    def embed_images(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32 of length 1, in the space of the texts, from PNG, JPEG, WebP or GIF files.

        Raises:
            InvalidInputError: the model reads no images, or a file is none.
            EmbedderError: an image could not be embedded.
            MissingExtraError: Pillow is not installed.
        """
        import numpy as np

        if not self.reads_images:
            raise InvalidInputError(f"{self._model} reads texts only; an image needs a model such as CLIP")
        if isinstance(images, (bytes, bytearray)):
            raise InvalidInputError("embed_images takes a sequence of files, and got one file")
        loaded = self._load()
        vectors = np.empty((len(images), self.identity.dimensions), dtype=np.float32)
        for start in range(0, len(images), self._batch):
            some = [decode(image, number=start + number) for number, image in enumerate(images[start:][: self._batch])]
            with failures(self._model, texts=len(some)):
                vectors[start : start + len(some)] = self._unit(loaded.look(some))
        return vectors

    # The files

    def _files(self) -> Checkpoint:
        if self._checkpoint is None:
            assert self._hub is not None  # noqa: S101 - for mypy: a folder was read when this was made
            self._checkpoint = self._read(find(self._hub, revision=self._revision))
        return self._checkpoint

    def _read(self, folder: Path) -> Checkpoint:
        checkpoint = read(folder, self._model or folder.name)
        _refuse(checkpoint, pooling=self._pooling)
        # A name that comes from the files alone is the same for each copy of them.
        self._model = self._model or f"local/{checkpoint.config.get('model_type', 'model')}"
        return checkpoint

    def _prompts(self, checkpoint: Checkpoint) -> Prompts:
        own = configured(checkpoint.settings) or published(self._family) or Prompts()
        return Prompts(
            document=own.document if self._document_role is None else self._document_role,
            query=own.query if self._query_role is None else self._query_role,
        )

    def _dimensions(self, checkpoint: Checkpoint) -> int:
        whole = checkpoint.dimensions()
        asked = self._truncate_dim or checkpoint.settings.get("truncate_dim") or whole
        if self._truncate_dim is not None and self._truncate_dim > whole:
            raise InvalidInputError(f"truncate_dim is {self._truncate_dim}, and {self._model} has {whole} dimensions")
        return min(whole, int(asked))

    def _weights(self, checkpoint: Checkpoint) -> tuple[str, str]:
        """The model's name and digest: the very files of all-MiniLM-L6-v2 have the identity of `MiniLM`."""
        state = checkpoint.state()
        if state not in _digests:
            _digests[state] = checkpoint.digests()
        digests = _digests[state]
        if digests.get("model.safetensors") == weights.SHA256 and checkpoint.window == 256:
            try:
                weights.verify(checkpoint.folder)
            except EmbedderError:
                pass
            else:
                return weights.MODEL, f"sha256:{weights.SHA256}"
        lines = [f"{name}\0{digest}\n" for name, digest in sorted(digests.items())]
        if self._pooling is not None:
            lines.append(f"pooling\0{self._pooling}\n")
        return self._model, "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    # The model

    def _load(self) -> LoadedModel:
        checkpoint, dimensions = self._files(), self.identity.dimensions
        key = ("sentence-transformers", checkpoint.folder, self._pooling, self._device)
        return once(key, lambda: self._loaded(checkpoint, dimensions))

    def _loaded(self, checkpoint: Checkpoint, dimensions: int) -> LoadedModel:
        if checkpoint.state() not in _digests:
            raise EmbedderError(
                f"the files of {self._model} were changed after its identity was declared; start anew with them",
                model=self._model,
            )
        loaded = load(checkpoint, pooling=self._pooling, device=self._device)
        length = loaded.model.get_embedding_dimension()
        if length is not None and length < dimensions:
            raise EmbedderError(f"{self._model} gives {length} dimensions, and its files say {dimensions}")
        return loaded

    def _embed(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        import numpy as np

        for text in texts:
            _check(text)
        vectors = np.empty((len(texts), self.identity.dimensions), dtype=np.float32)
        if not len(texts):
            return vectors
        loaded = self._load()
        prompt = self.identity.document_role if role == "document" else self.identity.query_role
        with failures(self._model, texts=len(texts)):
            for numbers, matrix in loaded.read(texts, prompt=prompt, role=role, batch=self._batch):
                vectors[numbers] = self._unit(matrix)
        return vectors

    def _unit(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut to the identity's dimensions, and then of length 1: the other way round they would be shorter."""
        import numpy as np

        matrix = matrix[:, : self.identity.dimensions]
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        # A vector of zeros stays one, and is refused where vectors are checked.
        unit: NDArray[np.float32] = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
        return unit


def _refuse(checkpoint: Checkpoint, *, pooling: Pooling | None) -> None:
    """What is a model, but not one that gives a vector a text in a known way."""
    model, architecture = checkpoint.model, checkpoint.architecture
    kind = checkpoint.settings.get("model_type", "SentenceTransformer")
    if kind == "CrossEncoder":
        raise EmbedderError(f"{model} is a cross-encoder: it compares two texts, and gives no vectors; {_RERANKER}")
    if kind != "SentenceTransformer":
        raise EmbedderError(f"{model} is a {kind}: it does not give one vector of a fixed length a text", model=model)
    if checkpoint.modules or checkpoint.projects:
        if pooling is not None:
            raise InvalidInputError(f"{model} says itself how it pools; leave pooling= out")
        first = checkpoint.modules[0] if checkpoint.modules else None
        pools = any(module.kind in ("Pooling", "Router") for module in checkpoint.modules)
        if first is None or first.kind != "Transformer" or pools:
            return
        if first.config.get("module_output_name") == "sentence_embedding":
            return
    elif pooling is not None:
        return
    what, hint = "has no modules.json", ""
    if checkpoint.modules:
        what = "has a modules.json without pooling"
    elif architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        what = f"is a language model for writing ({architecture}) and has no modules.json"
        hint = "; a chat model that was not trained as an embedder gives vectors that do not measure meaning"
    elif architecture.endswith("ForSequenceClassification"):
        hint = f"; if it is a cross-encoder, {_RERANKER}"
    raise EmbedderError(
        f"{model} {what}, so how it pools is unknown, and a guess gives vectors that look right and find little; pass "
        f"SentenceTransformerEmbedder(..., pooling=) as it was trained ({', '.join(map(repr, _POOLINGS))}){hint}",
        model=model,
        reason="pooling_unknown",
    )


_RERANKER: Final = "pass it as reranker=CrossEncoderReranker(...)"


def _check(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
