"""What memlayer asks of an embedder: the librarian that measures meaning.

An embedder is never prompted and never writes; it turns a text into a vector of a fixed length. Documents (what is
remembered) and queries (what is asked) go through the same embedder, each in its own role.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Embedder", "EmbedderIdentity", "ImageEmbedder", "SplittingEmbedder"]


class EmbedderIdentity(BaseModel):
    """Everything that decides whether two vectors may be compared.

    A store keeps the identity of the embedder that wrote it, sealed, and binds its digest into every sealed vector:
    vectors of another space do not open.

    Attributes:
        model: the model's public name, such as "sentence-transformers/all-MiniLM-L6-v2".
        weights: the digest of the weights, "sha256:<64 hex digits>"; "" where a provider does not publish one.
        dimensions: the length of a vector.
        normalised: whether the embedder itself gives vectors of length 1 (memlayer normalises them in any case).
        document_role: the prefix that a remembered text gets before it is embedded; "" for none.
        query_role: the prefix that a query gets before it is embedded; "" for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=512)
    weights: str = ""
    dimensions: int = Field(ge=1, le=65535)
    normalised: bool = True
    document_role: str = ""
    query_role: str = ""

    def to_json(self) -> bytes:
        """The canonical form: sorted keys, no spaces, UTF-8."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        return hashlib.sha256(self.to_json()).digest()


@runtime_checkable
class Embedder(Protocol):
    """Anything with an identity that embeds documents and queries.

    `identity` is declared without loading weights; they are loaded when the first text is embedded.

    Two more attributes are used where they are there. `load()` loads the weights ahead of the first text. `languages`,
    a `frozenset` of ISO 639-1 codes or None, says which languages the vectors can be trusted in: for a text in another
    one, ranking leans on its words instead. None, or no such attribute, is any language.
    """

    @property
    def identity(self) -> EmbedderIdentity: ...

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, one row a text, in the order given."""
        ...

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """`(dimensions,)` float32."""
        ...


@runtime_checkable
class SplittingEmbedder(Embedder, Protocol):
    """An embedder that reads only so much of a text at once, and says where to cut."""

    def split(self, text: str) -> list[str]:
        """The text in order, in parts that the model reads whole; `[text]` where it fits."""
        ...


@runtime_checkable
class ImageEmbedder(Embedder, Protocol):
    """An embedder that may put pictures into the space of its texts, so that a question finds a picture.

    Whether it does is known without loading weights: one class may serve models that do and models that do not.
    """

    @property
    def reads_images(self) -> bool: ...

    def embed_images(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """`(n, dimensions)` float32, one row an image file, in the order given; only where `reads_images`."""
        ...
