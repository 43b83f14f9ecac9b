"""all-MiniLM-L6-v2 on this machine: 384 dimensions, 256 word pieces, about 5 ms a query on a CPU.

The weights are found, checked and loaded when the first text is embedded; one loaded model serves all threads and all
`MiniLM` objects of a process.

What is shared between threads, and why nothing but loading takes a lock:

- transformers' tokenizers set truncation and padding on a shared object before every call, which fails with "Already
  borrowed" while another thread is tokenizing. memlayer does not use them: it has a `tokenizers.Tokenizer` of its own,
  set up once and never changed, cuts by hand, and tokenizes one text a call, so that no thread pool is left behind
  about which a later fork would print a warning.
- A forward pass in inference mode only reads the model. Measured with 8 threads: the same vectors bit for bit as one
  after the other, and on two cores about 40 % more queries a second than behind a lock.

After a fork the loaded model stays (its pages are shared), and runs on one thread in the child: see `_after_fork`.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memlayer.embedders import weights
from memlayer.embedders.batching import by_length, padded
from memlayer.embedders.loading import quiet
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.embedders.splitting import split
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = ["MiniLM"]

_DIMENSIONS: Final = 384
_IDENTITY: Final = EmbedderIdentity(
    model=weights.MODEL,
    weights=f"sha256:{weights.SHA256}",
    dimensions=_DIMENSIONS,
)

# What the model was made to read at once (sentence_bert_config.json): [CLS], the text's pieces, [SEP].
_MAX_PIECES: Final = 256
_WINDOW: Final = _MAX_PIECES - 2
# 32 texts of 256 pieces take about 200 MB while they are computed (measured); larger batches are no faster on a CPU.
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in memory, and the tokenizer that memlayer has for itself."""

    model: SentenceTransformer
    tokenizer: Tokenizer


# By folder; None is wherever `weights.find` finds them. Entries are added and never changed: reading takes no lock.
_loaded: Final[dict[Path | None, _Loaded]] = {}
_loading = threading.Lock()


class MiniLM:
    """all-MiniLM-L6-v2 through sentence-transformers, on the CPU. Shareable by threads; cheap to make.

    On the CPU also where there is a GPU: a query takes milliseconds as it is, and what a GPU holds does not survive a
    fork. Many vectors that were computed elsewhere can be handed to `remember_many(embeddings=...)`.

    Args:
        folder: the folder with the model's files, where it is not one that `memlayer.embedders.weights` finds by
            itself. The files have to be the same: their digests are checked.
    """

    def __init__(self, *, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder).absolute()

    def __repr__(self) -> str:
        return f"<MiniLM {_IDENTITY.model}>"

    @property
    def identity(self) -> EmbedderIdentity:
        """The same whichever way the weights came; known without them."""
        return _IDENTITY

    @property
    def languages(self) -> frozenset[str]:
        """English."""
        return weights.LANGUAGES

    def load(self) -> None:
        """Loads the model, unless it is loaded; without it the first text does. Raises as `embed_query` does."""
        self._load([])

    def split(self, text: str) -> list[str]:
        """The text in parts that the model reads whole: at most 254 word pieces each, and `[text]` where it fits.

        The parts, put together, are the text. They end after a sentence or a line, else after white space, if one ends
        within the last quarter of the window, and always between words. A "word" of more than 100 characters
        without a space or punctuation is one unknown piece to this model, however long it is.

        Raises:
            EmbedderError: the text could not be tokenized.
            WeightsUnavailableError, MissingExtraError: as in `embed_query`.
        """
        # No ASCII character makes more than one piece, so most turns of a chat are not tokenized twice.
        if isinstance(text, str) and len(text) <= _WINDOW and text.isascii():
            return [text]
        loaded = self._load([text])
        with _failures(texts=1):
            return split(text, loaded.tokenizer, window=_WINDOW)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, 384)` float32, C-contiguous, one row of length 1 a text, in the order given.

        What a text has beyond 254 word pieces is not read: `split` it first.

        Raises:
            EmbedderError: a text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the weights are nowhere, or not the expected ones.
            MissingExtraError: sentence-transformers is not installed.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed_documents takes a sequence of texts, and got one text")
        import numpy as np

        vectors = np.empty((len(texts), _DIMENSIONS), dtype=np.float32)
        if not len(texts):
            return vectors
        loaded = self._load(texts)
        for batch in by_length(texts, size=_BATCH):
            vectors[batch] = _embed([texts[number] for number in batch], loaded)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(384,)` float32 of length 1; of a query beyond 254 word pieces the rest is not read.

        Raises:
            EmbedderError: the text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the weights are nowhere, or not the expected ones.
            MissingExtraError: sentence-transformers is not installed.
        """
        vector: NDArray[np.float32] = _embed([text], self._load([text]))[0]
        return vector

    def _load(self, texts: Sequence[str]) -> _Loaded:
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
        loaded = _loaded.get(self._folder)
        if loaded is None:
            with _loading:
                loaded = _loaded.get(self._folder)
                if loaded is None:
                    loaded = _loaded[self._folder] = _load(self._folder)
        return loaded


def _load(folder: Path | None) -> _Loaded:
    """Find, check and load the model; about 5 s, nearly all of it Python imports."""
    try:
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"{weights.MODEL} needs sentence-transformers, which cannot be imported ({type(error).__name__}); install "
            'it with `pip install "memlayer-sdk[local]"`, or pass another embedder',
            extra="local",
        ) from error
    with quiet():
        if folder is None:
            folder = weights.find()
        weights.verify(folder)
        try:
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).eval()
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Three libraries that promise nothing about what they raise; no text has come near them yet.
        except Exception as error:
            raise EmbedderError(
                f"{weights.MODEL} could not be loaded ({type(error).__name__})", model=weights.MODEL
            ) from error
    # The file asks for 128 pieces, padded; see the module's head for why this is done once and here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _Loaded(model, tokenizer)


def _embed(texts: Sequence[str], loaded: _Loaded) -> NDArray[np.float32]:
    """One batch: `(len(texts), 384)` float32."""
    import numpy as np
    import torch

    with _failures(texts=len(texts)):
        input_ids, mask = padded(texts, loaded.tokenizer, longest=_MAX_PIECES)
        with torch.inference_mode():
            out = loaded.model({"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)})
        return np.ascontiguousarray(out["sentence_embedding"].numpy(), dtype=np.float32)


@contextmanager
def _failures(*, texts: int) -> Iterator[None]:
    """What torch and the tokenizer raise, as an EmbedderError without their words, which may hold the text."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - neither library says what it raises
        raise EmbedderError(f"{weights.MODEL} failed ({type(error).__name__})", texts=texts) from None


def _after_fork() -> None:
    """In a forked child: take what the parent's other threads may have left in the middle.

    OpenMP's worker threads do not exist in the child, yet the thread that forked still counts on them: the first large
    matrix product waits for ever, or now and then crashes (measured with torch 2.13 and libgomp). On one thread it
    needs none of them.
    """
    global _loading
    _loading = threading.Lock()  # a thread that was loading held it, and will never let go of this copy
    if _loaded:
        import torch

        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
