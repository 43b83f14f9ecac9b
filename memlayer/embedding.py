"""Unit vectors, from the embedder or from the caller: checked here once, so that everything behind can trust them.

Each vector is stored with length 1, whatever the embedder gives: the product of two is then their cosine.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memlayer.embedders.protocol import ImageEmbedder
from memlayer.errors import EmbedderError, InvalidInputError, MemlayerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder

__all__ = [
    "TurnVectors",
    "embed_query",
    "embed_texts",
    "embed_turns",
    "given_query",
    "given_vectors",
    "reads_images",
]

log = logging.getLogger("memlayer")

# Enough for the embedder to sort by length and fill its batches, and short enough for a progress bar to move.
_TEXTS_A_CALL = 256
# Opened, each may be 150 MB.
_IMAGES_A_CALL = 8


class TurnVectors(NamedTuple):
    """All vectors of one turn, as its vector field takes them.

    Attributes:
        vectors: `(n, dimensions)`: those of the parts of the text, then those of the image.
        pictures: how many of them are of the image: 0 or 1.
    """

    vectors: NDArray[np.float32]
    pictures: int = 0


def reads_images(embedder: Embedder) -> bool:
    """Whether it puts pictures into the space of its texts."""
    return isinstance(embedder, ImageEmbedder) and embedder.reads_images


def embed_turns(
    embedder: Embedder,
    texts: Sequence[str],
    images: Sequence[bytes | None],
    *,
    strict: bool,
    progress: bool = False,
) -> list[TurnVectors]:
    """For each turn the vectors of its text, and of its image where it has one and the embedder reads them.

    Args:
        texts, images: of the turns, one each.
        strict: a file that cannot be opened is an error. Otherwise, for what was remembered long ago, it is found by
            its caption, and a log line says how many are.

    Raises:
        EmbedderError: as `embed_texts` raises it.
        InvalidInputError: an image cannot be opened.
        LimitExceededError: an image has too many pixels.
    """
    of_texts = embed_texts(embedder, texts, progress=progress)
    pictures: dict[int, NDArray[np.float32]] = {}
    if reads_images(embedder):
        numbers = [number for number, image in enumerate(images) if image is not None]
        for start in range(0, len(numbers), _IMAGES_A_CALL):
            some = numbers[start : start + _IMAGES_A_CALL]
            rows = _embed_images(embedder, [images[number] or b"" for number in some], strict=strict)
            pictures.update((number, row) for number, row in zip(some, rows, strict=True) if row is not None)
        if len(pictures) != len(numbers):
            log.warning("%d images cannot be opened; they are found by their captions", len(numbers) - len(pictures))
    return [
        TurnVectors(np.concatenate([vectors, pictures[number]]), 1) if number in pictures else TurnVectors(vectors)
        for number, vectors in enumerate(of_texts)
    ]


def _embed_images(embedder: Embedder, images: list[bytes], *, strict: bool) -> list[NDArray[np.float32] | None]:
    """For each image `(1, dimensions)`; None for one that cannot be opened, unless that is an error."""
    assert isinstance(embedder, ImageEmbedder)  # noqa: S101 - for mypy: `reads_images` has said so
    try:
        with _own_errors():
            matrix = np.asarray(embedder.embed_images(images))
    except InvalidInputError:
        if strict:
            raise
        if len(images) == 1:
            return [None]
        return [row for image in images for row in _embed_images(embedder, [image], strict=False)]
    return list(_checked(embedder, matrix, rows=len(images))[:, None])


def embed_texts(embedder: Embedder, texts: Sequence[str], *, progress: bool = False) -> list[NDArray[np.float32]]:
    """For each text `(parts, dimensions)`: one row where it fits the embedder's window, else one a part.

    Raises:
        EmbedderError: the embedder failed, or gave something else than finite vectors of its dimensions.
    """
    split = getattr(embedder, "split", None)
    with _own_errors():
        parts = [split(text) if split is not None else [text] for text in texts]
    flat = [part for own in parts for part in own]
    chunks = [flat[i : i + _TEXTS_A_CALL] for i in range(0, len(flat), _TEXTS_A_CALL)]
    matrices = [_embed(embedder, chunk) for chunk in (_shown(chunks) if progress else chunks)]
    rows = np.concatenate(matrices) if matrices else np.empty((0, embedder.identity.dimensions), np.float32)
    ends = np.cumsum([len(own) for own in parts])
    return np.split(rows, ends[:-1]) if parts else []


def embed_query(embedder: Embedder, text: str) -> NDArray[np.float32]:
    """`(dimensions,)`, in the query role. Raises as `embed_texts` does."""
    with _own_errors():
        vector = np.asarray(embedder.embed_query(text))
    return _first(_checked(embedder, vector.reshape(1, -1), rows=1))


def given_vectors(embeddings: object, *, rows: int, dimensions: int) -> NDArray[np.float32]:
    """The caller's vectors, `(rows, dimensions)`.

    Raises:
        InvalidInputError: another shape, NaN, infinity, or a vector of zeros, which points nowhere.
    """
    try:
        matrix = np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError("embeddings must be an array of numbers") from None
    if matrix.shape != (rows, dimensions):
        raise InvalidInputError(
            f"embeddings must have the shape {(rows, dimensions)}, not {matrix.shape}", expected=f"{(rows, dimensions)}"
        )
    unit, fault = _unit(matrix)
    if fault:
        raise InvalidInputError(f"an embedding {fault}")
    return unit


def given_query(vector: object, *, dimensions: int) -> NDArray[np.float32]:
    """The caller's query vector, `(dimensions,)`. Raises as `given_vectors` does."""
    return _first(given_vectors([vector], rows=1, dimensions=dimensions))


def _embed(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    with _own_errors():
        matrix = np.asarray(embedder.embed_documents(texts))
    return _checked(embedder, matrix, rows=len(texts))


def _checked(embedder: Embedder, matrix: NDArray[Any], *, rows: int) -> NDArray[np.float32]:
    expected = (rows, embedder.identity.dimensions)
    if matrix.shape != expected:
        raise EmbedderError(f"the embedder gave vectors of shape {matrix.shape} where {expected} was due")
    matrix = matrix.astype(np.float32, copy=False)
    unit, fault = _unit(matrix)
    if fault:
        raise EmbedderError(f"the embedder gave a vector that {fault}")
    return unit


def _first(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    row: NDArray[np.float32] = matrix[0]
    return row


def _unit(matrix: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """The vectors at length 1; and what is wrong with one of them, or nothing."""
    if not np.isfinite(matrix).all():
        return matrix, "has NaN or infinity in it"
    # In float64, where the square of no float32 overflows.
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    if (lengths == 0).any():
        return matrix, "is all zeros, and points nowhere"
    # What is of length 1 but for rounding is kept to the bit, so that a vector comes back as it went in.
    off = np.flatnonzero(np.abs(lengths - 1) >= 1e-6)
    if len(off):
        matrix = matrix.copy()
        matrix[off] = (matrix[off] / lengths[off, None]).astype(np.float32)
    return matrix, ""


class _own_errors:
    """Whatever an embedder raises comes out as an `EmbedderError`; not chained, its cause may hold the text."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, MemlayerError):
            raise EmbedderError(f"the embedder failed with {type(error).__name__}") from None


def _shown(chunks: Sequence[list[str]]) -> Iterable[list[str]]:
    """The chunks, behind a progress bar where `rich` is installed, else with log lines."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return _logged(chunks)
    return track(chunks, description="embedding", console=Console(stderr=True))


def _logged(chunks: Sequence[list[str]]) -> Iterator[list[str]]:
    for number, chunk in enumerate(chunks):
        log.info("embedding: %d of %d", number * _TEXTS_A_CALL, sum(map(len, chunks)))
        yield chunk
