"""all-MiniLM-L6-v2 on onnxruntime: the vectors of `MiniLM` without torch, in 0.2 GB installed and a load of 0.3 s.

What runs is the graph that `onnx_graph.py` writes, with the weights that `weights.py` finds and whose digests it
checks, at every load. Nothing is exported and nothing is cached, so that nothing can be stale, damaged or half written.
A few known texts are embedded before the model is used: an onnxruntime that gave other vectors would otherwise write
them under MiniLM's identity.

Threads: one session serves all threads and all `OnnxMiniLM` objects of a process, and nothing but loading takes a lock;
onnxruntime's `run` may be called by many at once. It has as many threads as this process may use processors; they
sleep between the calls (`allow_spinning` is off), for they are guests in somebody's server.

Forks: the threads of a session do not exist in a forked child, where a call would wait for them for ever. The child
therefore leaves the session alone, loads its own when it embeds its first text, and gives it one thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memlayer.embedders import weights
from memlayer.embedders.batching import by_length, padded
from memlayer.embedders.onnx_graph import INPUTS, Bert, bert_graph, scale_of
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.embedders.splitting import split
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["OnnxMiniLM"]

# As config.json says, whose digest is checked; not read from there, so that what was tested is what runs.
_BERT: Final = Bert(hidden=384, intermediate=1536, layers=6, heads=12, vocabulary=30522, positions=512, epsilon=1e-12)
_IDENTITY: Final = EmbedderIdentity(model=weights.MODEL, weights=f"sha256:{weights.SHA256}", dimensions=_BERT.hidden)
_INT8_IDENTITY: Final = _IDENTITY.model_copy(update={"model": f"{weights.MODEL}/int8"})

# As in minilm.py: [CLS], the text's pieces, [SEP].
_MAX_PIECES: Final = 256
_WINDOW: Final = _MAX_PIECES - 2
# onnxruntime keeps the memory of its largest batch: 8 texts of 256 pieces take about 70 MB, and 32 are no faster.
_BATCH: Final = 8
# The scale of what a layer reads is taken from the whole batch, so an int8 vector would depend on its neighbours.
_INT8_BATCH: Final = 1
# Seven bits, not eight: processors without VNNI add two products in 16 bits, which would overflow (255 * 127 * 2), and
# the vectors would differ from machine to machine.
_INT8_LARGEST: Final = 64

# The first numbers of the vectors that sentence-transformers gives, and how far off they may be.
_KNOWN: Final = {
    "I'm allergic to peanuts": (-0.00795, -0.01339, 0.03261, 0.04714, 0.02034, 0.01402, 0.08214, 0.09475),
    "¿Qué no puedo comer? 花生过敏 😀": (-0.04537, 0.02468, 0.01075, -0.01101, 0.02449, 0.00098, 0.05301, -0.04102),
}
_TOLERANCE: Final = 1e-4
_INT8_TOLERANCE: Final = 0.03


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A session, the tokenizer that memlayer has for itself, and the memory that the session reads its weights from."""

    session: Any  # onnxruntime ships no types for its sessions
    tokenizer: Tokenizer
    weights: list[Any]


# By folder (None is wherever `weights.find` finds them) and whether it is int8. Entries are added and never changed.
_loaded: Final[dict[tuple[Path | None, bool], _Loaded]] = {}
_loading = threading.Lock()
# Sessions of the parent in a forked child: freeing one would wait for its threads.
_left_alone: Final[list[_Loaded]] = []


class OnnxMiniLM:
    """all-MiniLM-L6-v2 on onnxruntime, on the CPU. Shareable by threads; cheap to make.

    In float32 its identity is MiniLM's own, and a store that was written with one opens with the other: their vectors
    agree to 1e-4 (measured 3e-7). In int8 a query takes about half the time, the vectors are others (their
    cosine to the float32 ones is about .99), and so is the identity.

    Args:
        folder: the folder with the model's files, where it is not one that `memlayer.embedders.weights` finds by
            itself. The files have to be the same: their digests are checked.
        int8: multiply in eight bits. A store is bound to this choice.
    """

    def __init__(self, *, folder: str | Path | None = None, int8: bool = False) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self._int8 = bool(int8)

    def __repr__(self) -> str:
        return f"<OnnxMiniLM {self.identity.model}>"

    @property
    def identity(self) -> EmbedderIdentity:
        """Known without the weights."""
        return _INT8_IDENTITY if self._int8 else _IDENTITY

    @property
    def languages(self) -> frozenset[str]:
        """English."""
        return weights.LANGUAGES

    def load(self) -> None:
        """Loads the model, unless it is loaded; without it the first text does. Raises as `embed_query` does."""
        self._load([])

    def split(self, text: str) -> list[str]:
        """As `MiniLM.split`, to the character.

        Raises:
            EmbedderError: the text could not be tokenized.
            WeightsUnavailableError, MissingExtraError: as in `embed_query`.
        """
        # No ASCII character makes more than one piece.
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
            MissingExtraError: onnxruntime, tokenizers or safetensors is not installed.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed_documents takes a sequence of texts, and got one text")
        import numpy as np

        vectors = np.empty((len(texts), _BERT.hidden), dtype=np.float32)
        if not len(texts):
            return vectors
        loaded = self._load(texts)
        for batch in by_length(texts, size=_INT8_BATCH if self._int8 else _BATCH):
            vectors[batch] = _embed([texts[number] for number in batch], loaded)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(384,)` float32 of length 1; of a query beyond 254 word pieces the rest is not read.

        Raises:
            EmbedderError: the text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the weights are nowhere, or not the expected ones.
            MissingExtraError: onnxruntime, tokenizers or safetensors is not installed.
        """
        vector: NDArray[np.float32] = _embed([text], self._load([text]))[0]
        return vector

    def _load(self, texts: Sequence[str]) -> _Loaded:
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
        key = self._folder, self._int8
        loaded = _loaded.get(key)
        if loaded is None:
            with _loading:
                loaded = _loaded.get(key)
                if loaded is None:
                    loaded = _loaded[key] = _load(self._folder, int8=self._int8)
        return loaded


def _load(folder: Path | None, *, int8: bool) -> _Loaded:
    """Find, check and load the model, and try it."""
    # Since 1.29 onnxruntime sends its maker what it runs, unless this is set before it is first imported; no memory is
    # in that, but memlayer promises no network. The thread that sends also keeps forked children from ending.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"{weights.MODEL} on onnxruntime needs onnxruntime, tokenizers and safetensors, of which one cannot be "
            f'imported ({type(error).__name__}); install them with `pip install "memlayer-sdk[onnx]"`, or pass '
            "another embedder",
            extra="onnx",
        ) from error
    onnxruntime.disable_telemetry_events()  # On Windows, and where the program itself imported it earlier.
    if folder is None:
        folder = weights.find()
    weights.verify(folder)
    try:
        arrays = _arrays(load_file(folder / "model.safetensors"), int8=int8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
        # Named, so that an onnxruntime that was built for a GPU does not take it.
        session = onnxruntime.InferenceSession(
            bert_graph(_BERT, int8=int8), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Three libraries that promise nothing about what they raise; no text has come near them yet.
    except Exception as error:
        raise EmbedderError(
            f"{weights.MODEL} could not be loaded on onnxruntime ({type(error).__name__})", model=weights.MODEL
        ) from error
    # The file asks for 128 pieces, padded. Set once and here, before threads share it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    loaded = _Loaded(session, tokenizer, values)
    _try(loaded, tolerance=_INT8_TOLERANCE if int8 else _TOLERANCE)
    return loaded


def _arrays(tensors: dict[str, NDArray[Any]], *, int8: bool) -> dict[str, NDArray[Any]]:
    """The weights by the names that the graph has for them, in its layout."""
    import numpy as np

    arrays = {}
    for name, tensor in tensors.items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue  # not part of a sentence's embedding
        if tensor.ndim == 2 and not name.startswith("embeddings."):
            tensor = np.ascontiguousarray(tensor.T)
            if int8:
                scale = np.abs(tensor).max(axis=0) / _INT8_LARGEST
                arrays[scale_of(name)] = scale
                tensor = np.rint(tensor / scale).astype(np.int8)
        arrays[name] = tensor
    return arrays


def _threads() -> int:
    if _left_alone:
        return 1  # in a forked child; see the module's head
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _try(loaded: _Loaded, *, tolerance: float) -> None:
    """Embed the known texts.

    Raises:
        EmbedderError: a vector is not the one that it should be.
    """
    for text, expected in _KNOWN.items():
        found = _embed([text], loaded)[0, : len(expected)]
        # Written so that NaN is refused too.
        if not all(abs(float(one) - two) <= tolerance for one, two in zip(found, expected, strict=True)):
            raise EmbedderError(
                f"onnxruntime gives other vectors for {weights.MODEL} on this machine than it should; nothing was "
                "stored. Install another version of onnxruntime, or open the store, unless it is an int8 one, with "
                'embedder="torch"',
                model=weights.MODEL,
            )


def _embed(texts: Sequence[str], loaded: _Loaded) -> NDArray[np.float32]:
    """One batch: `(len(texts), 384)` float32."""
    with _failures(texts=len(texts)):
        inputs = padded(texts, loaded.tokenizer, longest=_MAX_PIECES)
        vectors: NDArray[np.float32] = loaded.session.run(None, dict(zip(INPUTS, inputs, strict=True)))[0]
        return vectors


@contextmanager
def _failures(*, texts: int) -> Iterator[None]:
    """What onnxruntime and the tokenizer raise, as an EmbedderError without their words, which may hold the text."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - neither library says what it raises
        raise EmbedderError(f"{weights.MODEL} failed on onnxruntime ({type(error).__name__})", texts=texts) from None


def _after_fork() -> None:
    """In a forked child: leave the parent's sessions alone, and take the lock that another thread may have held."""
    global _loading
    _loading = threading.Lock()
    for loaded in _loaded.values():
        # One reference that nobody drops: Python frees what is left when it exits, and would wait here for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded.session))
        _left_alone.append(loaded)
    _loaded.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
