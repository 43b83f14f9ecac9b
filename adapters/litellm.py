"""LiteLLM: the module `litellm` with memory in its calls, and routers.

    litellm = wrap(litellm, store.user("alice"), session="monday")
    litellm.completion(model="ollama/llama3", messages=[...])

`completion`, `responses` and Anthropic's messages get memory, sync and async, whole and streamed, in the module and in
a `Router`; what LiteLLM does inside of one such call (retries, fallbacks, several deployments) is one turn. All else is
LiteLLM's own: embeddings, prompts without messages (`text_completion`), Google's format, and calls that answer several
conversations or with several models' replies.

What differs from other adapters: the client is a module, and what is set on it (`litellm.api_key = ...`) is set on the
one module that there is, because LiteLLM's calls read their settings there. A router of a LiteLLM before 1.109 is given
memory as it is: deployments that are exchanged later reach the wrapped one only through the router itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from memlayer.adapters.litellm_formats import AnthropicMessages, Chat, Responses
from memlayer.adapters.litellm_streams import is_stream, remembering
from memlayer.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from memlayer.injector import Call, Injector

# Otherwise LiteLLM asks the network for its list of prices while it is being imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
try:
    from litellm.router import Router
except ImportError as error:
    raise MissingExtraError('LiteLLM is missing: pip install "memlayer-sdk[litellm]"') from error

__all__ = ["wrap"]


class _Path(NamedTuple):
    """One of LiteLLM's calls: its format, the arguments that may come without a name, and whether it is awaited."""

    codec: Callable[[], Any]
    arguments: tuple[str, ...]
    is_async: bool

    def request(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name, as the codecs take them."""
        return {**kwargs, **dict(zip(self.arguments, args, strict=False))}

    def send(self, send: Callable[..., Any], args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        """Makes the call in the shape that it came in."""
        named = self.arguments[: len(args)]
        rest = {name: value for name, value in request.items() if name not in named}
        return send(*(request[name] for name in named), *args[len(named) :], **rest)


_CHAT = ("model", "messages")
_RESPONSES = ("input", "model", "include", "instructions")
_ANTHROPIC = ("max_tokens", "messages", "model", "metadata", "stop_sequences", "stream", "system")
_MODULE: Mapping[str, _Path] = {
    "completion": _Path(Chat, _CHAT, False),
    "acompletion": _Path(Chat, _CHAT, True),
    "completion_with_retries": _Path(Chat, _CHAT, False),
    "acompletion_with_retries": _Path(Chat, _CHAT, True),
    "batch_completion_models": _Path(Chat, (), False),  # Several models are asked, and the first reply counts.
    "responses": _Path(Responses, _RESPONSES, False),
    "aresponses": _Path(Responses, _RESPONSES, True),
    "anthropic_messages": _Path(AnthropicMessages, _ANTHROPIC, True),
    "messages.anthropic_messages": _Path(AnthropicMessages, _ANTHROPIC, True),
    "anthropic.messages.create": _Path(AnthropicMessages, _ANTHROPIC, False),
    "anthropic.messages.acreate": _Path(AnthropicMessages, _ANTHROPIC, True),
}
_ROUTER: Mapping[str, _Path] = {
    "completion": _Path(Chat, _CHAT, False),
    "acompletion": _Path(Chat, _CHAT, True),
    "schedule_acompletion": _Path(Chat, _CHAT, True),
    "abatch_completion_fastest_response": _Path(Chat, _CHAT, True),
    "responses": _Path(Responses, (), False),
    "aresponses": _Path(Responses, (), True),
    "anthropic_messages": _Path(AnthropicMessages, (), True),
    "aanthropic_messages": _Path(AnthropicMessages, (), True),
}


def wrap(client: Any, injector: Injector) -> Any:
    """The module or the router with memory; the one that is passed in stays as it is.

    Raises:
        InvalidInputError: it is neither.
    """
    if isinstance(client, ModuleType):
        return _Module(client, injector)
    if isinstance(client, Router):
        return _router(client, injector)
    raise InvalidInputError(f"of LiteLLM, wrap takes the module or a Router, not {type(client).__qualname__}")


class _Module(ModuleType):
    """A view of a module: some of its functions have memory, all else is the module's own."""

    def __init__(self, plain: ModuleType, injector: Injector, path: str = "") -> None:
        super().__init__(plain.__name__, plain.__doc__)
        own = {name: getattr(plain, name, None) for name in ("__spec__", "__package__", "__loader__")}
        vars(self).update(own, memlayer=injector, _memlayer_plain=plain, _memlayer_path=path)

    def __getattr__(self, name: str) -> Any:
        found, path = getattr(self._memlayer_plain, name), f"{self._memlayer_path}{name}"
        if path in _MODULE:
            found = _wrapped(found, _MODULE[path], self.memlayer)
        elif isinstance(found, ModuleType) and any(known.startswith(f"{path}.") for known in _MODULE):
            found = _Module(found, self.memlayer, f"{path}.")
        else:
            return found
        return vars(self).setdefault(name, found)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._memlayer_plain, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._memlayer_plain, name)

    def __dir__(self) -> list[str]:
        return [*dir(self._memlayer_plain), "memlayer"]


_Module.__name__ = _Module.__qualname__ = "module"  # As the type of every module is called.


def _router(router: Any, injector: Injector) -> Any:
    # No subclass: LiteLLM forbids them. What is in an instance goes before the methods of its class, and the router
    # itself does the work, so that both share deployments, cool-downs and counters.
    wrapped = object.__new__(type(router))
    own = vars(wrapped)
    own.update(vars(router), memlayer=injector, _memlayer_plain=router)
    for name, path in _ROUTER.items():
        if (plain := getattr(router, name, None)) is not None:
            own[name] = _wrapped(plain, path, injector)
    # `router.chat.completions.create` calls the router that it knows, and keeps what it was called with.
    own["chat"] = chat = copy.copy(router.chat)
    chat.completions = copy.copy(chat.completions)
    chat.completions.params = chat.params = dict(chat.params)
    chat.completions.router_obj = wrapped
    return wrapped


def _wrapped(send: Callable[..., Any], path: _Path, injector: Injector) -> Callable[..., Any]:
    return (_wrapped_async if path.is_async else _wrapped_sync)(send, path, injector)


def _wrapped_sync(send: Callable[..., Any], path: _Path, injector: Injector) -> Callable[..., Any]:
    @functools.wraps(send)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        call = injector.before(path.codec(), path.request(args, kwargs))
        with call:
            response = path.send(send, args, call.request)
        if inspect.isawaitable(response):  # `completion(acompletion=True)`
            return _awaited(call, response)
        if is_stream(response):
            return remembering(call, response)
        call.after(response)
        return response

    return remembered


def _wrapped_async(send: Callable[..., Any], path: _Path, injector: Injector) -> Callable[..., Any]:
    @functools.wraps(send)
    async def remembered(*args: Any, **kwargs: Any) -> Any:
        call = await injector.abefore(path.codec(), path.request(args, kwargs))
        with call:
            response = path.send(send, args, call.request)
        return await _awaited(call, response)

    return remembered


async def _awaited(call: Call, response: Any) -> Any:
    with call:
        response = await response
    if is_stream(response):
        return remembering(call, response)
    await call.aafter(response)
    return response
