"""Embedders: what turns a text into a vector.

    protocol.py               what memlayer asks of an embedder, and the identity that decides what may be compared
    minilm.py                 all-MiniLM-L6-v2 on this machine, the embedder that a store gets when none is named
    weights.py                where its weights are, and whether they are the right ones
    sentence_transformers.py  any other model of sentence-transformers, by name or folder
    hub.py                    where the files of a named model are
    checkpoint.py             which kind of model a folder holds, and the digest of what decides its vectors
    prompts.py                what stands before a query or a document
    loaded_model.py           a model in memory; loading.py: one for the process
    tokens.py, splitting.py, batching.py, images.py    what goes into it
    resolve.py                from what `MemoryStore.open(embedder=...)` takes to an embedder

Importing this loads no model and no library that could run one; that happens when the first text is embedded.
"""

from __future__ import annotations

from memlayer.embedders.minilm import MiniLM
from memlayer.embedders.protocol import Embedder, EmbedderIdentity, ImageEmbedder, SplittingEmbedder
from memlayer.embedders.resolve import resolve
from memlayer.embedders.sentence_transformers import SentenceTransformerEmbedder

__all__ = [
    "Embedder",
    "EmbedderIdentity",
    "ImageEmbedder",
    "MiniLM",
    "SentenceTransformerEmbedder",
    "SplittingEmbedder",
    "resolve",
]
