"""Pydantic AI: memory as a capability of an agent.

    agent = Agent(model, capabilities=[MemoryCapability(store.user("alice"), session="s1")])
    agent = Agent(model, deps_type=Deps, capabilities=[MemoryCapability(lambda ctx: store.user(ctx.deps.user))])

It stands around each request to the model: what it puts in is in that request only, never in the run's messages. Of a
tool loop the user's turn and the final reply are remembered, once each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import (
        ModelRequest,
        ModelResponse,
        RetryPromptPart,
        SystemPromptPart,
        TextPart,
        ToolCallPart,
        ToolReturnPart,
        UserPromptPart,
    )
except ImportError as error:
    raise MissingExtraError('pydantic-ai is missing: pip install "memlayer-sdk[pydantic-ai]"') from error

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.models import ModelRequestContext

    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory

__all__ = ["MemoryCapability", "RequestContexts"]


class RequestContexts:
    """The codec of a `ModelRequestContext`, and of the `ModelResponse` that it is answered with."""

    def messages(self, request: ModelRequestContext) -> list[Message]:
        return [_message(message, place) for place, message in enumerate(request.messages)]

    def insert(self, request: ModelRequestContext, blocks: Mapping[int, str]) -> ModelRequestContext:
        messages = list(request.messages)
        for place, block in blocks.items():
            message: Any = messages[place]
            parts = list(message.parts)
            last = max(number for number, part in enumerate(parts) if isinstance(part, UserPromptPart))
            content = parts[last].content
            own = [content] if isinstance(content, str) else list(content)
            parts[last] = replace(parts[last], content=[*own, block])
            messages[place] = replace(message, parts=parts)
        return replace(request, messages=messages)

    def instruct(self, request: ModelRequestContext, block: str) -> ModelRequestContext:
        messages = list(request.messages)
        first = next(number for number, message in enumerate(messages) if isinstance(message, ModelRequest))
        message: Any = messages[first]
        own = [part for part in message.parts if isinstance(part, SystemPromptPart)]
        rest = [part for part in message.parts if not isinstance(part, SystemPromptPart)]
        messages[first] = replace(message, parts=[*own, SystemPromptPart(block), *rest])
        return replace(request, messages=messages)

    def is_stateful(self, request: ModelRequestContext) -> bool:
        settings: Mapping[str, Any] = request.model_settings or {}
        return any(settings.get(name) for name in ("openai_previous_response_id", "openai_conversation_id"))

    def reply(self, response: ModelResponse) -> Piece:
        return Piece(
            text="".join(part.content for part in response.parts if isinstance(part, TextPart)),
            calls=any(isinstance(part, ToolCallPart) for part in response.parts),
            refused=response.finish_reason == "content_filter",
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        return Piece()


def _message(message: Any, place: int) -> Message:
    if isinstance(message, ModelResponse):
        return Message(
            "assistant", "".join(part.content for part in message.parts if isinstance(part, TextPart)), place
        )
    prompts = [part for part in message.parts if isinstance(part, UserPromptPart)]
    if prompts:
        return Message("user", "\n".join(text for prompt in prompts for text in _texts(prompt.content)), place)
    answers = any(isinstance(part, ToolReturnPart | RetryPromptPart) for part in message.parts)
    return Message("tool" if answers else "system", "", place)


def _texts(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else content
    texts = (part if isinstance(part, str) else getattr(part, "content", None) for part in parts)
    return [text for text in texts if isinstance(text, str)]


class MemoryCapability(AbstractCapability[Any]):
    """Memory for an agent.

    Args:
        memory: the user's; or a function of the run's context that gives it.
        session: the conversation, or None.
        options: as `Injector` takes them.

    Raises:
        InvalidInputError: not the memory of one user; where a function gives it, before the first request of a run.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory | Callable[[RunContext[Any]], UserMemory | AsyncUserMemory],
        *,
        session: str | None = None,
        **options: Any,
    ) -> None:
        self._options: dict[str, Any] = {"session": session, **options}
        self._find = memory if callable(memory) else None
        self._injector = None if callable(memory) else Injector(one_user(memory), **self._options)
        self._codec = RequestContexts()

    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: Any
    ) -> ModelResponse:
        """Puts memory into a request, and remembers what it is answered."""
        injector = self._injector
        if injector is None:
            assert self._find is not None  # noqa: S101  one of the two is there
            injector = Injector(one_user(self._find(ctx)), **self._options)
        call = await injector.abefore(self._codec, request_context)
        with call:
            response: ModelResponse = await handler(call.request)
        await call.aafter(response)
        return response
