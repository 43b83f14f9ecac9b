"""From what a caller names or brings to an embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlayer.embedders.minilm import MiniLM
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.embedders.protocol import Embedder

__all__ = ["resolve"]

_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_ATTRIBUTES = ("identity", "embed_documents", "embed_query")


def resolve(embedder: str | Embedder | None) -> Embedder:
    """The embedder that is meant; nothing is loaded.

    Args:
        embedder: None or a name of all-MiniLM-L6-v2 for that model on this machine, or an object with the `Embedder`
            protocol, which is returned as it is.

    Raises:
        InvalidInputError: a name that this version does not know, or an object that is no embedder.
    """
    if embedder is None:
        return MiniLM()
    if isinstance(embedder, str):
        if embedder in _NAMES:
            return MiniLM()
        raise InvalidInputError(
            f"no embedder is called {embedder!r}; this version knows {' and '.join(map(repr, _NAMES))}, and takes any "
            "object with the Embedder protocol (more names come in a later release)"
        )
    if isinstance(embedder, type):
        raise InvalidInputError(f"embedder is the class {embedder.__name__}; pass an object of it")
    # Spelled out in place of isinstance(embedder, Embedder), which cannot say what is missing.
    missing = [name for name in _ATTRIBUTES if not hasattr(embedder, name)]
    if missing:
        raise InvalidInputError(f"{type(embedder).__name__} is no embedder: it has no {', '.join(missing)}")
    if not isinstance(embedder.identity, EmbedderIdentity):
        raise InvalidInputError(
            f"the identity of {type(embedder).__name__} must be an EmbedderIdentity, "
            f"not {type(embedder.identity).__name__}"
        )
    return embedder
