"""Pydantic AI: memory as a capability of an agent.

    agent = Agent(model, capabilities=[MemoryCapability(alice, session="s1")])
    agent = Agent(model, deps_type=Deps, capabilities=[MemoryCapability(lambda ctx: store.user(ctx.deps.user))])

What it adds is in one request only: never in the run's messages, nor in what a history processor keeps. Of a tool loop
the user's turn and the answer that ends the run are remembered, once each; one that a validator sent back is not.

Different here: an agent with an `output_type` that is no str answers by calling a tool, which is no text to remember.
`placement="system"` is among the instructions; so is the block while OpenAI keeps the conversation
(`openai_previous_response_id`, `openai_conversation_id`), and what xAI keeps gets none. A run that is cancelled keeps
the user's turn, and so does a stream that breaks off or is left; what the program raises inside of `run_stream` counts
as a refusal of the answer, also where that had come in whole.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import InstructionPart, ModelResponse, TextContent, TextPart, ToolCallPart, UserPromptPart
    from pydantic_ai.models.wrapper import WrapperModel

    AbstractCapability.get_wrapper_model  # noqa: B018  not there before 2.68: no request would have memory
except (ImportError, AttributeError) as error:
    raise MissingExtraError('pydantic-ai 2.68 is missing: pip install "memlayer-sdk[pydantic-ai]"') from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from pydantic_ai import RunContext
    from pydantic_ai.models import Model, ModelRequestContext, StreamedResponse

    from memlayer.aio import AsyncUserMemory
    from memlayer.injector import Call
    from memlayer.memory import UserMemory

__all__ = ["MemoryCapability", "RequestContexts"]


class RequestContexts:
    """The codec of `ModelRequestContext` and of `ModelResponse`."""

    def messages(self, request: ModelRequestContext) -> list[Message]:
        return [_message(message, place) for place, message in enumerate(request.messages)]

    def insert(self, request: ModelRequestContext, blocks: Mapping[int, str]) -> ModelRequestContext:
        messages: list[Any] = list(request.messages)
        for place, block in blocks.items():
            parts = list(messages[place].parts)
            last = max(number for number, part in enumerate(parts) if isinstance(part, UserPromptPart))
            own = parts[last].content
            parts[last] = replace(parts[last], content=[*([own] if isinstance(own, str) else own), block])
            messages[place] = replace(messages[place], parts=parts)
        return replace(request, messages=messages)

    def instruct(self, request: ModelRequestContext, block: str) -> ModelRequestContext | None:
        if _keeps(request, "xai"):
            return None  # It keeps instructions too.
        own = request.model_request_parameters
        parts = [*(own.instruction_parts or []), InstructionPart(block, dynamic=True)]
        return replace(request, model_request_parameters=replace(own, instruction_parts=parts))

    def is_stateful(self, request: ModelRequestContext) -> bool:
        return _keeps(request, "openai") or _keeps(request, "xai")

    def reply(self, response: ModelResponse) -> Piece:
        return Piece(
            text=_said(response),
            calls=any(isinstance(part, ToolCallPart) for part in response.parts),
            refused=response.finish_reason == "content_filter",
            ended=response.state == "complete",
        )

    def event(self, event: ModelResponse) -> Piece:
        return self.reply(event)  # A stream that was left gives what it had so far, as one answer.


class MemoryCapability(AbstractCapability[Any]):
    """Gives an agent the memory of the user whom it talks with.

    Args:
        memory: of one user; or a function that gets the run's `RunContext` and gives that user's memory.
        session: the conversation, or None; or a function that gets the run's `RunContext`.
        options: as `Injector` takes them: placement, k, max_tokens, on_error, recall_timeout and others.

    Raises:
        InvalidInputError: this is not the memory of one user. Where a function gives it, the agent's run raises this,
            before the model is called.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory | Callable[[RunContext[Any]], UserMemory | AsyncUserMemory],
        *,
        session: str | Callable[[RunContext[Any]], str | None] | None = None,
        **options: Any,
    ) -> None:
        self._memory = memory
        self._session = session
        self._options = options
        self._fixed: Injector | None = None
        if not callable(memory) and not callable(session):
            self._fixed = Injector(one_user(memory), session=session, **options)

    async def for_run(self, ctx: RunContext[Any]) -> AbstractCapability[Any]:
        """One run's own capability, with its user."""
        if self._fixed is not None:
            return _Run(self._fixed)
        memory = self._memory(ctx) if callable(self._memory) else self._memory
        session = self._session(ctx) if callable(self._session) else self._session
        return _Run(Injector(one_user(memory), session=session, **self._options))


class _Run(AbstractCapability[Any]):
    """One run: its latest request, and the answer to it."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector
        self.call: Call | None = None
        self._answer: ModelResponse | None = None

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        # Behind all that the run keeps, and before what the framework itself writes into the prompts.
        self.call = await self._injector.abefore(CONTEXTS, request_context)
        return self.call.request  # type: ignore[no-any-return]

    def get_wrapper_model(self, model: Model) -> Model:
        return _Guarded(model, self)

    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: Any
    ) -> ModelResponse:
        self.call = self._answer = None
        try:
            response: ModelResponse = await handler(request_context)
        except asyncio.CancelledError:
            await self._end()
            raise
        self._answer = response
        if any(isinstance(part, ToolCallPart) for part in response.parts):
            await self._end()
        return response

    async def wrap_run(self, ctx: RunContext[Any], *, handler: Any) -> Any:
        try:
            result = await handler()
        except asyncio.CancelledError:
            await self._end()
            raise
        except BaseException:
            # Where there is an answer, something behind the model failed or would not have it.
            if self._answer is not None:
                self._answer = None
                await self._end()
            raise
        await self._end()
        return result

    async def _end(self) -> None:
        if self.call is None:
            return
        if self._answer is not None:
            self.call.see(self._answer)
        await self.call.aend(broken=self._answer is None or self._answer.state != "complete")


class _Guarded(WrapperModel):
    """The model of one run: within it is no place for memory a second time."""

    def __init__(self, wrapped: Model, run: _Run) -> None:
        super().__init__(wrapped)
        self._run = run

    async def request(self, *sent: Any) -> ModelResponse:
        with self._run.call or nullcontext():
            return await self.wrapped.request(*sent)

    @asynccontextmanager
    async def request_stream(self, *sent: Any, **more: Any) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack:
            with self._run.call or nullcontext():
                stream = await stack.enter_async_context(self.wrapped.request_stream(*sent, **more))
            yield stream


def _message(message: Any, place: int) -> Message:
    if isinstance(message, ModelResponse):
        return Message(role="assistant", text=_said(message), place=place)
    prompts = [part.content for part in message.parts if isinstance(part, UserPromptPart)]
    contents = [one for content in prompts for one in ([content] if isinstance(content, str) else content)]
    texts = [one.content if isinstance(one, TextContent) else one for one in contents]
    text = "\n".join(one for one in texts if isinstance(one, str))
    # A request without a prompt is what tools gave, or a system prompt: nothing that anybody said.
    return Message(role="user" if prompts else "tool", text=text, place=place)


def _said(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def _keeps(request: ModelRequestContext, provider: str) -> bool:
    """Whether the provider keeps the conversation that this request is part of."""
    settings: Mapping[str, Any] = {**(request.model.settings or {}), **(request.model_settings or {})}
    named = any(settings.get(f"{provider}_{name}") for name in ("previous_response_id", "conversation_id"))
    return named or settings.get(f"{provider}_transport") == "websocket"


CONTEXTS = RequestContexts()
