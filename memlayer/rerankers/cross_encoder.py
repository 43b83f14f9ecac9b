"""A cross-encoder of sentence-transformers as reranker: it reads the query and a text together.

That is slower than comparing two vectors by the length of the text, and better: it is meant for the first few dozen
hits. What it gives per pair is one number without bounds; the sigmoid of it is a relevance between 0 and 1, which is
also what such models are trained towards. Whatever activation a model's configuration names is left out: some name the
sigmoid and some nothing, for the same training.

Loading, threads and forks are as in `memlayer.embedders.sentence_transformers`: safetensors only, no code of the
model's own, one load a process, a tokenizer of memlayer's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memlayer.embedders.checkpoint import TRANSFORMER, Checkpoint, read
from memlayer.embedders.hub import find, folder_of, name_in_cache
from memlayer.embedders.loaded_model import longest, pieces_together
from memlayer.embedders.loading import borrowing, failures, once, quiet
from memlayer.embedders.tokens import Tokens, take_over
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import CrossEncoder

__all__ = ["CrossEncoderReranker"]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in memory, and memlayer's own copy of its tokenizer; None where pairs go through the model's own."""

    model: CrossEncoder
    tokens: Tokens | None


class CrossEncoderReranker:
    """A model that says how well a text answers a query. Shareable by threads; cheap to make: nothing is loaded yet.

    Args:
        model: its name at the hub ("cross-encoder/ms-marco-MiniLM-L6-v2"; a name without an organisation is one of
            cross-encoder), or a folder.
        max_length: how many pieces of query and text together are read; None is what the model was made for. Of a
            longer pair the longer of the two is cut.
        batch: how many pairs are computed together at most.
        revision: a commit, tag or branch at the hub; None is what is in the cache, else the main branch.
        device: of torch. Anything but "cpu" does not survive a fork.

    Raises:
        InvalidInputError: no such folder, or a value that cannot be.
        EmbedderError: a folder that memlayer does not load, and why; for a name that comes with the first `rerank`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_length: int | None = None,
        batch: int = 32,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        # Four: a first piece, one that parts the two texts, a last one, and one of a text.
        if max_length is not None and max_length < 4:
            raise InvalidInputError(f"max_length must be 4 or more, not {max_length!r}")
        if batch < 1:
            raise InvalidInputError(f"batch must be 1 or more, not {batch!r}")
        self._max_length, self._batch, self._revision, self._device = max_length, batch, revision, device
        folder = folder_of(model)
        if folder is None:
            self.name = str(model) if "/" in str(model) else f"cross-encoder/{model}"
            self._checkpoint = None
        else:
            self.name = name_in_cache(folder) or folder.name
            self._checkpoint = _read(folder, self.name)

    def __repr__(self) -> str:
        return f"<CrossEncoderReranker {self.name}>"

    def load(self) -> None:
        """Loads the model, unless it is loaded; without it the first `rerank` does, and raises as that does."""
        self._load()

    def rerank(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n,)` float32 between 0 and 1, how well each text answers the query, in the order given.

        Raises:
            EmbedderError: the model failed, or is one that memlayer does not load; the message holds no text.
            WeightsUnavailableError: the model is not on this machine, and the hub does not give it.
            MissingExtraError: sentence-transformers is not installed.
        """
        import numpy as np

        if isinstance(texts, str):
            raise InvalidInputError("rerank takes a sequence of texts, and got one text")
        for text in (query, *texts):
            if not isinstance(text, str):
                raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
        scores = np.empty(len(texts), dtype=np.float32)
        if not len(texts):
            return scores
        loaded = self._load()
        with failures(self.name, texts=len(texts)):
            for numbers, logits in _logits(loaded, query, texts, batch=self._batch):
                # In float64, where the exponential of no logit that a model gives overflows.
                scores[numbers] = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return scores

    def _load(self) -> _Loaded:
        if self._checkpoint is None:
            self._checkpoint = _read(find(self.name, revision=self._revision), self.name)
        checkpoint = self._checkpoint
        key = ("cross-encoder", checkpoint.folder, self._max_length, self._device)
        return once(key, lambda: _load(checkpoint, max_length=self._max_length, device=self._device))


def _read(folder: Path, name: str) -> Checkpoint:
    checkpoint = read(folder, name)
    kind = checkpoint.settings.get("model_type")
    if checkpoint.modules and kind != "CrossEncoder":
        raise EmbedderError(f"{name} is an embedder: it gives a vector a text; pass it as embedder=", model=name)
    classifies = checkpoint.architecture.endswith("ForSequenceClassification")
    if not checkpoint.modules and not classifies and kind != "CrossEncoder":
        what = checkpoint.architecture or "no architecture that is named"
        raise EmbedderError(
            f"{name} is no cross-encoder: a text classification model with one label is due, and it is {what}",
            model=name,
        )
    labels = checkpoint.config.get("num_labels") or len(checkpoint.config.get("id2label") or "12")
    if classifies and labels != 1:
        raise EmbedderError(
            f"{name} gives {labels} numbers a pair, not one relevance; take a cross-encoder made for ranking",
            model=name,
            labels=labels,
        )
    # Raises where the weights are no safetensors.
    checkpoint.files()
    return checkpoint


def _load(checkpoint: Checkpoint, *, max_length: int | None, device: str) -> _Loaded:
    name = checkpoint.model
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs sentence-transformers, which cannot be imported ({type(error).__name__}); install it with "
            '`pip install "memlayer-sdk[local]"`, or leave the reranker out',
            extra="local",
        ) from error
    with quiet():
        try:
            model = CrossEncoder(
                str(checkpoint.folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                max_length=max_length,
                model_kwargs={"use_safetensors": True},
            ).eval()
        # Libraries that promise nothing about what they raise; no text has come near them yet.
        except Exception as error:
            raise EmbedderError(f"{name} could not be loaded ({type(error).__name__})", model=name) from error
    first: Any = model[0]
    # A language model as reranker wants its chat template, a prompt, and its padding on the left.
    plain = type(first).__name__ in TRANSFORMER and first.transformer_task == "sequence-classification"
    prompted = "message" in first.modality_config or model.default_prompt_name is not None
    tokens = take_over(model.tokenizer, longest=longest(first)) if plain and not prompted else None
    return _Loaded(model, tokens)


def _logits(
    loaded: _Loaded, query: str, texts: Sequence[str], *, batch: int
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Batch by batch: the numbers of its texts, and what the model says of each with the query."""
    import torch

    model = loaded.model
    if loaded.tokens is None:
        for start in range(0, len(texts), batch):
            some = list(texts[start : start + batch])
            numbers = list(range(start, start + len(some)))
            with borrowing(), torch.inference_mode():
                # The identity for an activation: what comes out is the logit.
                scores = model.predict(
                    [(query, text) for text in some], activation_fn=torch.nn.Identity(), show_progress_bar=False
                )
            yield numbers, scores
        return
    encodings = [loaded.tokens.cut.encode(query, text) for text in texts]
    for numbers in pieces_together(encodings, size=batch):
        features = loaded.tokens.batch([encodings[number] for number in numbers])
        there = {name: tensor.to(model.device) for name, tensor in features.items()}
        with torch.inference_mode():
            out = model(there)["scores"]
        logits: NDArray[np.float32] = out.float().cpu().numpy().reshape(len(numbers))
        yield numbers, logits
