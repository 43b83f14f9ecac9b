"""Rerankers: the optional second stage of a recall, which reads each of the first hits together with the question.

    protocol.py        what memlayer asks of a reranker
    litellm.py         the rerank endpoints of providers
    cross_encoder.py   a cross-encoder of sentence-transformers on this machine
    resolve.py         from a name, a folder or an object to a reranker

Importing this loads no model and no library that could run one; that happens when the first texts are reranked.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from memlayer.rerankers.protocol import Reranker
from memlayer.rerankers.resolve import resolve_reranker

if TYPE_CHECKING:
    from memlayer.rerankers.cross_encoder import CrossEncoderReranker
    from memlayer.rerankers.litellm import LiteLLMReranker

__all__ = ["CrossEncoderReranker", "LiteLLMReranker", "Reranker", "resolve_reranker"]

_LATER: Final = {"CrossEncoderReranker": "cross_encoder", "LiteLLMReranker": "litellm"}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this gives

    def __getattr__(name: str) -> object:
        # Most programs use no reranker, and the others one.
        if name in _LATER:
            return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
