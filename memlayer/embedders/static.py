"""Static vectors: a text's vector is the mean of its pieces' vectors, looked up in a table. No model runs.

A query takes about 0.1 ms, a load 0.1 s and 16 MB; neither torch nor onnxruntime is there. The price is that words have
one meaning each and their order none. `distilling.py` says how the table is made from a model.

`StaticEmbedder()` takes the vectors that memlayer distils from all-MiniLM-L6-v2 itself, from a folder in the user's
cache. They are made where the first text is embedded, if the `local` extra is installed, and made anew where they are
found damaged: they decide every vector, so that the digests of the files are checked at every load. The identity names
the recipe, not the files: what is made on another machine differs in the last bits of a float16, and its vectors agree
to 1e-3. That is checked too, on a few known texts. `StaticEmbedder(folder)` takes any folder in model2vec's format; its
identity is the digest of its files, unless they are those of the recipe.

Threads share one table, which is only read, and a tokenizer that is set up once. There are no threads of its own, so
that a forked child goes on as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memlayer.embedders import distilling, weights
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.embedders.splitting import split
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError, WeightsUnavailableError
from memlayer.newfile import private_folder, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["StaticEmbedder"]

log = logging.getLogger("memlayer")

_RECIPE: Final = f"{distilling.RECIPE}-{distilling.DIMENSIONS}"
_IDENTITY: Final = EmbedderIdentity(
    model=f"{_RECIPE}/{weights.MODEL}", weights=f"sha256:{weights.SHA256}", dimensions=distilling.DIMENSIONS
)
# The first numbers of the recipe's vectors.
_KNOWN: Final[dict[str, tuple[float, ...]]] = {
    "I'm allergic to peanuts": (-0.19877, -0.0028, -0.03319, -0.03854, 0.00291, 0.2338, -0.08496, 0.107),
    "¿Qué no puedo comer? 花生过敏 😀": (-0.25878, 0.10523, 0.06827, 0.05993, 0.24429, 0.13132, 0.05427, 0.08869),
}
_TOLERANCE: Final = 1e-3

# A mean over thousands of words says nothing of any of them: a long text is cut as for all-MiniLM-L6-v2.
_WINDOW: Final = 254


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Vectors in memory.

    Attributes:
        table: `(pieces, dimensions)`, in the type of the file, most often float16.
        rows: the row of a piece, where the table has fewer rows than the vocabulary has pieces.
        factors: what a piece's row is multiplied with, where they are not in the table already.
        unknown: the id of the piece that stands for all unknown ones, and counts for nothing.
        nothing: the vector of a text without a known piece, `(dimensions,)`: the direction of the last principal
            component, which is near to no text.
        tokenizer: memlayer's own.
    """

    table: NDArray[Any]
    rows: NDArray[np.int64] | None
    factors: NDArray[np.float32] | None
    unknown: int | None
    nothing: NDArray[np.float32]
    tokenizer: Tokenizer


# By folder. Entries are added and never changed: reading takes no lock.
_loaded: Final[dict[Path, _Loaded]] = {}
_loading = threading.Lock()


class StaticEmbedder:
    """Static vectors on numpy. Shareable by threads; cheap to make.

    Args:
        folder: a folder in model2vec's format, as `memlayer distil-embedder` makes it; safetensors only. None for the
            vectors that memlayer distils from all-MiniLM-L6-v2.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser().absolute()
        self._own_identity = _IDENTITY if folder is None else None

    def __repr__(self) -> str:
        return f"<StaticEmbedder {_RECIPE if self._folder is None else 'from a folder'}>"

    @property
    def identity(self) -> EmbedderIdentity:
        """Known without the vectors; of a folder its files are read, once.

        Raises:
            WeightsUnavailableError: the folder does not hold static vectors.
        """
        if self._own_identity is None:
            assert self._folder is not None  # noqa: S101 - only a folder's identity is not known from the start
            self._own_identity = _identity(_read(self._folder), self._folder)
        return self._own_identity

    @property
    def languages(self) -> frozenset[str] | None:
        """English, if the vectors are those of all-MiniLM-L6-v2; None is any. Raises as `identity` does."""
        return weights.LANGUAGES if self.identity == _IDENTITY else None

    def load(self) -> None:
        """Loads the vectors, unless they are loaded; without it the first text does. Raises as `embed_query` does."""
        self._load([])

    def split(self, text: str) -> list[str]:
        """The text in parts of 254 pieces at most; put together, they are the text.

        Any length could be embedded; the mean of a long text is that of no sentence in it.

        Raises:
            EmbedderError: the text could not be tokenized.
            WeightsUnavailableError, MissingExtraError: as in `embed_query`.
        """
        loaded = self._load([text])
        with _failures(texts=1):
            return split(text, loaded.tokenizer, window=_WINDOW)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, C-contiguous, one row of length 1 a text, in the order given.

        Raises:
            EmbedderError: a text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the vectors are not there and cannot be made here, or are damaged.
            MissingExtraError: tokenizers or safetensors is not installed.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed_documents takes a sequence of texts, and got one text")
        import numpy as np

        vectors = np.empty((len(texts), self.identity.dimensions), dtype=np.float32)
        if not len(texts):
            return vectors
        loaded = self._load(texts)
        with _failures(texts=len(texts)):
            for row, text in enumerate(texts):
                vectors[row] = _embed(text, loaded)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(dimensions,)` float32 of length 1.

        Raises:
            EmbedderError: the text could not be embedded; the message does not hold it.
            WeightsUnavailableError: the vectors are not there and cannot be made here, or are damaged.
            MissingExtraError: tokenizers or safetensors is not installed.
        """
        loaded = self._load([text])
        with _failures(texts=1):
            return _embed(text, loaded)

    def _load(self, texts: Sequence[str]) -> _Loaded:
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"a text must be a str, not {type(text).__name__}")
        folder = _own_folder() if self._folder is None else self._folder
        loaded = _loaded.get(folder)
        if loaded is None:
            with _loading:
                loaded = _loaded.get(folder)
                if loaded is None:
                    loaded = _load_own(folder) if self._folder is None else _load(folder, self.identity)
                    _loaded[folder] = loaded
        return loaded


def _own_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("memlayer") / _RECIPE


def _load_own(folder: Path) -> _Loaded:
    """Load the recipe's vectors, made before if they are not there or not right."""
    if folder.is_dir():
        try:
            return _load(folder, _IDENTITY)
        except WeightsUnavailableError as error:
            log.warning("static vectors: %s; they are made anew", error)
    else:
        log.warning("static vectors are not on this machine yet; they are made from %s now, once", weights.MODEL)
    _make_own(folder)
    return _load(folder, _IDENTITY)


def _make_own(folder: Path) -> None:
    draft = folder.with_name(f".memlayer-{secrets.token_hex(8)}.made")
    aside = folder.with_name(f".memlayer-{secrets.token_hex(8)}.old")
    try:
        private_folder(folder.parent)
        try:
            distilling.distil(draft)
        except (MissingExtraError, WeightsUnavailableError) as error:
            raise WeightsUnavailableError(
                "static vectors are not on this machine, and making them needs the model that they are made from: "
                'install it with `pip install "memlayer-sdk[local]"`, or make them where it is installed with '
                "`memlayer distil-embedder --out FOLDER`, bring FOLDER here and pass StaticEmbedder(FOLDER), which "
                "opens the same stores",
                model=_RECIPE,
            ) from error
        try:
            os.rename(draft, folder)  # which no system does where a folder with files in it stands
        except OSError:
            if _is_right(folder):
                return  # another process was quicker
            os.rename(folder, aside)
            os.rename(draft, folder)
    except OSError as error:
        # Another process put its folder there between the last two lines.
        if not _is_right(folder):
            raise storage_error(error, folder) from error
    finally:
        for rest in (draft, aside):
            with suppress(FileNotFoundError):
                shutil.rmtree(rest)


def _is_right(folder: Path) -> bool:
    try:
        _load(folder, _IDENTITY)
    except WeightsUnavailableError:
        return False
    return True


def _identity(files: dict[str, bytes], folder: Path) -> EmbedderIdentity:
    if _own(files, folder).get("recipe") == _RECIPE:
        return _IDENTITY
    digest = hashlib.sha256()
    for name in distilling.FILES:
        digest.update(hashlib.sha256(files[name]).digest())
    dimensions = _tensors(files, folder)["embeddings"].shape[1]
    return EmbedderIdentity(model="model2vec", weights=f"sha256:{digest.hexdigest()}", dimensions=dimensions)


def _load(folder: Path, identity: EmbedderIdentity) -> _Loaded:
    """Read, check and try the vectors.

    Raises:
        WeightsUnavailableError: they are not what they should be.
        MissingExtraError: tokenizers or safetensors is not installed.
    """
    import numpy as np

    files = _read(folder)
    expected = _own(files, folder).get("sha256")
    if isinstance(expected, dict):
        for name, digest in expected.items():
            if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
                raise _wrong(folder, f"{name} is damaged", file=name)
    if _identity(files, folder) != identity:
        raise _wrong(folder, "they are not those that the identity was taken from")
    tensors = _tensors(files, folder)
    tokenizer = _tokenizer(files, folder)
    table, rows, factors = tensors["embeddings"], tensors.get("mapping"), tensors.get("weights")
    pieces = tokenizer.get_vocab_size()
    if (
        (len(table) if rows is None else rows.size) < pieces
        or (rows is not None and (rows.ndim != 1 or rows.min() < 0 or rows.max() >= len(table)))
        or (factors is not None and (factors.ndim != 1 or len(factors) < pieces))
    ):
        raise _wrong(folder, "the vectors do not fit the tokenizer")
    if not np.isfinite(table).all():
        raise _wrong(folder, "the vectors are not finite")
    nothing = np.zeros(table.shape[1], dtype=np.float32)
    nothing[-1] = 1
    loaded = _Loaded(
        table=table,
        rows=None if rows is None else rows.astype(np.int64),
        factors=None if factors is None else factors.astype(np.float32),
        unknown=_unknown(_json(files, "tokenizer.json", folder).get("model"), tokenizer),
        nothing=nothing,
        tokenizer=tokenizer,
    )
    if identity == _IDENTITY and not _is_known(loaded):
        raise _wrong(folder, "they are not the vectors that the recipe makes")
    return loaded


def _is_known(loaded: _Loaded) -> bool:
    if loaded.table.shape[1] != _IDENTITY.dimensions:
        return False
    for text, expected in _KNOWN.items():
        found = _embed(text, loaded)[: len(expected)]
        # Written so that NaN is refused too.
        if not all(abs(float(one) - two) <= _TOLERANCE for one, two in zip(found, expected, strict=True)):
            return False
    return True


def _read(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in distilling.FILES}
    except OSError as error:
        raise _wrong(folder, f"{Path(error.filename or '').name or 'a file'} cannot be read") from error


def _own(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """What memlayer wrote into config.json; nothing in a folder that another program made."""
    own = _json(files, "config.json", folder).get("memlayer")
    return own if isinstance(own, dict) else {}


def _json(files: dict[str, bytes], name: str, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong(folder, f"{name} is no JSON object", file=name)
    return found


def _tensors(files: dict[str, bytes], folder: Path) -> dict[str, NDArray[Any]]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError as error:
        raise _missing() from error
    try:
        tensors = load(files["model.safetensors"])
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise _wrong(folder, "model.safetensors cannot be read") from None
    table = tensors.get("embeddings")
    if table is None or table.ndim != 2 or not 0 < table.shape[1] <= 65535 or not len(table):
        raise _wrong(folder, "model.safetensors holds no table of vectors called 'embeddings'")
    return tensors


def _tokenizer(files: dict[str, bytes], folder: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing() from error
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    # It raises bare Exceptions.
    except Exception as error:
        raise _wrong(folder, "tokenizer.json cannot be read") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unknown(model: object, tokenizer: Tokenizer) -> int | None:
    """The id of the unknown piece; `model` is the part of tokenizer.json that is called so."""
    if not isinstance(model, dict):
        return None
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    token = model.get("unk_token")
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


def _wrong(folder: Path, fault: str, **evidence: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"the static vectors in {folder} were not loaded: {fault}; make them anew with `memlayer distil-embedder`",
        folder=str(folder),
        **evidence,
    )


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "static vectors need tokenizers and safetensors; install them with "
        '`pip install "memlayer-sdk[static]"`, or pass another embedder',
        extra="static",
    )


def _embed(text: str, loaded: _Loaded) -> NDArray[np.float32]:
    import numpy as np

    # One text a call: no thread pool is left behind about which a later fork would print a warning.
    pieces = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    known = np.array([piece for piece in pieces if piece != loaded.unknown], dtype=np.int64)
    found = loaded.table[known if loaded.rows is None else loaded.rows[known]].astype(np.float32)
    if loaded.factors is not None:
        found *= loaded.factors[known][:, None]
    vector = found.sum(axis=0)
    norm = np.linalg.norm(vector)
    if norm == 0:
        return loaded.nothing.copy()
    unit: NDArray[np.float32] = vector / norm
    return unit


@contextmanager
def _failures(*, texts: int) -> Iterator[None]:
    """What the tokenizer raises, as an EmbedderError without its words, which may hold the text."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it does not say what it raises
        raise EmbedderError(f"static vectors failed ({type(error).__name__})", texts=texts) from None


def _after_fork() -> None:
    """In a forked child: take the lock that another thread of the parent may have held."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
