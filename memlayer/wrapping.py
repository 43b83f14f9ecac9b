"""`wrap`: from a provider's client to one with memory."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory

__all__ = ["wrap"]

C = TypeVar("C")

# By the root of the module that a client's class comes from.
_ADAPTERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google.genai": "google_genai",
    "ollama": "ollama",
    "litellm": "litellm",
}


def wrap(client: C, memory: UserMemory | AsyncUserMemory, *, session: str | None = None, **options: Any) -> C:
    """A client of the same type that remembers; the one that is passed in is left as it is.

    Args:
        client: of openai, anthropic, google-genai or ollama, sync or async, a LiteLLM router, or the module `litellm`.
        memory: of the one user whom this client talks with.
        session: the conversation, or None.
        options: as `Injector` takes them.

    Raises:
        InvalidInputError: there is no adapter for this client, or `memory` is not the memory of one user.
    """
    from memlayer.injector import Injector

    adapter = import_module(f"memlayer.adapters.{_adapter_name(client)}")
    wrapped: C = adapter.wrap(client, Injector(one_user(memory), session=session, **options))
    return wrapped


def one_user(memory: UserMemory | AsyncUserMemory) -> UserMemory:
    """The memory as the sync class has it. Raises for anything else: nothing may guess whose memory is meant."""
    # Imported here: it brings numpy, which `import memlayer` does without.
    from memlayer.memory import UserMemory

    bound = getattr(memory, "sync", memory)
    if not isinstance(bound, UserMemory):
        raise InvalidInputError(
            f"memory must be the memory of one user, from store.user(id), not {type(memory).__name__}"
        )
    return bound


def _adapter_name(client: object) -> str:
    kind = client if isinstance(client, type) else type(client)
    modules = [client.__name__] if isinstance(client, ModuleType) else [parent.__module__ for parent in kind.__mro__]
    for module in modules:
        for root, adapter in _ADAPTERS.items():
            if module == root or module.startswith(f"{root}."):
                return adapter
    raise InvalidInputError(
        f"there is no adapter for {kind.__module__}.{kind.__qualname__}; wrap knows clients of "
        f"{', '.join(_ADAPTERS)}. For others, use memory.prepare(messages) and memory.capture(prepared, reply)"
    )
