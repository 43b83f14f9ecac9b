"""Rerankers: the optional second stage of a recall, which reads each of the first hits together with the question.

    protocol.py        what memlayer asks of a reranker
    litellm.py         the rerank endpoints of providers
    cross_encoder.py   a cross-encoder on this machine

Importing this loads no model and no library that could run one.
"""

from __future__ import annotations

from memlayer.rerankers.protocol import Reranker

__all__ = ["Reranker"]
