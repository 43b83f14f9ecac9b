"""From what a caller names or brings to a reranker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.rerankers.protocol import Reranker

__all__ = ["resolve_reranker"]

_ATTRIBUTES: Final = ("name", "rerank")
_LITELLM: Final = "litellm/"


def resolve_reranker(reranker: str | Path | Reranker) -> Reranker:
    """The reranker that is meant; nothing is loaded, and nobody is asked.

    Args:
        reranker: one of
            "litellm/<provider>/<model>": a provider's rerank endpoint
            any other name: a cross-encoder of sentence-transformers at the hub
            a folder: a cross-encoder of sentence-transformers
            an object with the `Reranker` protocol: that object

    Raises:
        InvalidInputError: neither a name nor a folder, or an object that is no reranker.
        EmbedderError: a folder with a model that memlayer does not load, and why.
        MissingExtraError: LiteLLM is named and not installed.
    """
    if isinstance(reranker, str):
        return _named(reranker)
    if isinstance(reranker, Path):
        return _local(reranker)
    if isinstance(reranker, type):
        raise InvalidInputError(f"reranker is the class {reranker.__name__}; pass an object of it")
    missing = [name for name in _ATTRIBUTES if not hasattr(reranker, name)]
    if missing:
        raise InvalidInputError(f"{type(reranker).__name__} is no reranker: it has no {', '.join(missing)}")
    return reranker


def _named(name: str) -> Reranker:
    if name == _LITELLM.rstrip("/") or name.startswith(_LITELLM):
        model = name.removeprefix(_LITELLM)
        if not all(model.partition("/")):
            raise InvalidInputError(
                f'{name!r} names no provider and model; write "litellm/<provider>/<model>", such as '
                '"litellm/cohere/rerank-v3.5"'
            )
        from memlayer.rerankers.litellm import LiteLLMReranker

        return LiteLLMReranker(model)
    if not name.strip():
        raise InvalidInputError("reranker is an empty name; leave it out to rerank nothing")
    return _local(name)


def _local(model: str | Path) -> Reranker:
    from memlayer.rerankers.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(model)
