"""A hook for LiteLLM's own gateway: memory for programs in any language, which need not know of it.

    # memory_hook.py, beside the gateway's config.yaml
    handler = MemoryHook(MemoryStore.open("memories.db"))

    # config.yaml
    litellm_settings:
      callbacks: memory_hook.handler

Every request to /chat/completions, /v1/messages and /v1/responses, streamed or not, goes out with the memories of the
user whom its key belongs to: the key's `user_id`, or where it has none, the key itself. What the request says of itself
(`user`, `metadata.user_id`) is anybody's to write and counts for nothing, unless `trust_end_user` says that whoever
holds a key speaks for all users. The master key is one user. Where the gateway checks no keys, there is no user, and
the request is refused before it goes out.

The conversation is what the header `x-memlayer-session` says, else `session_id` in the request's metadata.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from memlayer.adapters.litellm_formats import AnthropicMessages, Chat, Responses
from memlayer.adapters.litellm_streams import is_stream
from memlayer.errors import InvalidInputError, MissingExtraError
from memlayer.injector import Injector
from memlayer.records import valid_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from memlayer.injector import Call
    from memlayer.store import MemoryStore

# Otherwise LiteLLM asks the network for its list of prices while it is being imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
try:
    from fastapi import HTTPException  # type: ignore[import-not-found,unused-ignore]
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as error:
    raise MissingExtraError(
        'LiteLLM\'s gateway is missing: pip install "memlayer-sdk[litellm]" "litellm[proxy]"'
    ) from error

__all__ = ["MemoryHook"]

SESSION_HEADER = "x-memlayer-session"

# By what the gateway calls the kinds of requests; all others pass untouched.
_FORMATS: Mapping[str, Callable[[], Any]] = {
    "completion": Chat,
    "acompletion": Chat,
    "anthropic_messages": AnthropicMessages,
    "responses": Responses,
    "aresponses": Responses,
}


class MemoryHook(CustomLogger):  # type: ignore[misc,unused-ignore]  # LiteLLM's types are not followed
    """The gateway's callback; made once, in a module beside its configuration.

    Args:
        store: an open store; it stays open as long as the gateway runs.
        trust_end_user: take the user whom the request names, where it names one. Only for a gateway whose callers are
            your own servers: everybody who has a key can then read everybody's memory.
        options: as `Injector` takes them, without the session.
    """

    def __init__(self, store: MemoryStore, *, trust_end_user: bool = False, **options: Any) -> None:
        super().__init__()
        self._store: MemoryStore = getattr(store, "sync", store)
        self._trust_end_user = trust_end_user
        self._options = options
        # The call of the request that the current task serves. Never looked up by an id, which a request could choose.
        self._under_way: ContextVar[Call | None] = ContextVar("memlayer_under_way", default=None)
        Injector(self._store.user("memlayer"), **options)  # Wrong options are an error now; and loading has begun.

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Puts memory into a request."""
        self._under_way.set(None)
        codec = _FORMATS.get(call_type)
        if codec is None:
            return data
        memory = self._store.user(self._user(user_api_key_dict, data))
        call = await Injector(memory, session=_session(data), **self._options).abefore(codec(), data)
        self._under_way.set(call)
        request: dict[str, Any] = call.request
        return request

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Remembers both sides of a whole reply."""
        call = self._under_way.get()
        if call is not None and not is_stream(response):
            await call.aafter(response)
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Remembers both sides of a streamed reply as it passes through."""
        call = self._under_way.get()
        if call is None:
            async for event in response:
                yield event
            return
        events = call.atee(aiter(response))
        try:
            async for event in events:
                yield event
        finally:  # Whoever asked may have gone.
            await events.aclose()

    def _user(self, key: Any, data: dict[str, Any]) -> str:
        """Whose memory a request is about.

        Raises:
            HTTPException: nobody's.
        """
        if self._trust_end_user and (named := key.end_user_id or data.get("user")):
            return str(named)
        if key.user_id:
            return str(key.user_id)
        if key.api_key and _checks_keys():
            # LiteLLM keeps most keys as digests; what is stored here never is one that opens the gateway.
            return "key:" + hashlib.sha256(b"memlayer litellm key" + key.api_key.encode()).hexdigest()[:32]
        raise HTTPException(401, "this gateway has memory, and the request's key belongs to no user")


def _checks_keys() -> bool:
    """Whether a key that gets here is one that somebody gave out."""
    server = sys.modules.get("litellm.proxy.proxy_server")
    return getattr(server, "master_key", None) is not None or getattr(server, "user_custom_auth", None) is not None


def _session(data: dict[str, Any]) -> str | None:
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    given: list[Any] = [{name.lower(): value for name, value in headers.items()}.get(SESSION_HEADER)]
    for place in ("metadata", "litellm_metadata"):
        metadata = data.get(place)
        given.append(metadata.get("session_id") if isinstance(metadata, dict) else None)
    for session in given:
        try:
            return valid_name(session, name="session")
        except InvalidInputError:  # None, or what cannot be a name: the request goes out without one.
            continue
    return None
