"""What an operator puts beside the gateway's configuration: the hook, and which key belongs to whom.

The gateway of the tests imports a copy of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litellm.proxy._types import UserAPIKeyAuth

from memlayer import MemoryStore, RawKey, query_cache
from memlayer.adapters.litellm_proxy import MemoryHook
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Recalls are counted by the questions that are embedded: none is answered from the last ones.
query_cache._QUESTIONS = 0
USERS = {"sk-alice": "alice", "sk-bob": "bob"}


class Counting(HashingEmbedder):
    """Notes each recall in a file, because the gateway is a process of its own."""

    def embed_query(self, text: str) -> NDArray[np.float32]:
        with Path(os.environ["TEST_RECALLS"]).open("a") as file:
            file.write("x")
        return super().embed_query(text)


async def who_is_it(request: Any, api_key: str) -> UserAPIKeyAuth:
    """The user of a key, as a gateway without a database can say it."""
    if api_key == "sk-nobody":
        return UserAPIKeyAuth()
    if api_key == "sk-nameless":
        return UserAPIKeyAuth(api_key=api_key)
    return UserAPIKeyAuth(api_key=api_key, user_id=USERS[api_key])


handler = MemoryHook(
    MemoryStore.open(os.environ["TEST_STORE"], keys=RawKey(bytes(range(32))), embedder=Counting()), recall_timeout=20
)
