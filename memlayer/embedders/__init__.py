"""Embedders: what turns a text into a vector.

    protocol.py               what memlayer asks of an embedder, and the identity that decides what may be compared
    minilm.py                 all-MiniLM-L6-v2 on this machine, the embedder that a store gets when none is named
    weights.py                where its weights are, and whether they are the right ones
    onnx.py, onnx_graph.py    the same model on onnxruntime, without torch
    static.py                 static vectors: a table of word pieces; distilling.py makes one from a model
    sentence_transformers.py  any other model of sentence-transformers, by name or folder
    hub.py                    where the files of a named model are
    checkpoint.py             which kind of model a folder holds, and the digest of what decides its vectors
    prompts.py                what stands before a query or a document
    loaded_model.py           a model in memory; loading.py: one for the process
    litellm.py                a provider's model; litellm_models.py: what is known of it without asking
    tokens.py, splitting.py, batching.py, images.py    what goes into a model
    resolve.py                from what `MemoryStore.open(embedder=...)` takes to an embedder

Importing this loads no model and no library that could run one; that happens when the first text is embedded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from memlayer.embedders.minilm import MiniLM
from memlayer.embedders.protocol import Embedder, EmbedderIdentity, ImageEmbedder, SplittingEmbedder
from memlayer.embedders.resolve import resolve
from memlayer.embedders.sentence_transformers import SentenceTransformerEmbedder

if TYPE_CHECKING:
    from memlayer.embedders.litellm import LiteLLMEmbedder
    from memlayer.embedders.onnx import OnnxMiniLM
    from memlayer.embedders.static import StaticEmbedder

__all__ = [
    "Embedder",
    "EmbedderIdentity",
    "ImageEmbedder",
    "LiteLLMEmbedder",
    "MiniLM",
    "OnnxMiniLM",
    "SentenceTransformerEmbedder",
    "SplittingEmbedder",
    "StaticEmbedder",
    "resolve",
]

_LATER: Final = {"LiteLLMEmbedder": "litellm", "OnnxMiniLM": "onnx", "StaticEmbedder": "static"}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this gives

    def __getattr__(name: str) -> object:
        # Most programs use one embedder: the modules of the others are imported when they are asked for.
        if name in _LATER:
            return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
