"""Embedders: what turns a text into a vector.

    protocol.py   what memlayer asks of an embedder, and the identity that decides which vectors may be compared
    minilm.py     all-MiniLM-L6-v2 on this machine, the embedder that a store gets when none is named
    weights.py    where its weights are, and whether they are the right ones
    resolve.py    from what `MemoryStore.open(embedder=...)` takes to an embedder

Importing this loads no model and no library that could run one; that happens when the first text is embedded.
"""

from __future__ import annotations

from memlayer.embedders.minilm import MiniLM
from memlayer.embedders.protocol import Embedder, EmbedderIdentity, SplittingEmbedder
from memlayer.embedders.resolve import resolve

__all__ = ["Embedder", "EmbedderIdentity", "MiniLM", "SplittingEmbedder", "resolve"]
