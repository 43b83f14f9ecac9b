"""LangChain: memory for an agent, and a retriever over what was remembered.

    agent = create_agent(model, tools, middleware=[MemoryMiddleware(alice, session="s1")])
    agent = create_agent(model, tools, middleware=[MemoryMiddleware(lambda runtime: store.user(runtime.context.user))])

The middleware stands around each call of the model: what it puts in is in that one request, never in the agent's state.
Of a tool loop the user's turn and the final answer are remembered, once each.

Different here: the system prompt stands apart from the messages. A HumanMessage that a middleware wrote (a summary of
what was said before) is nobody's turn. Where the model keeps the conversation with the provider (OpenAI's
`previous_response_id`, `conversation`), memory goes into nothing that stays there, so it is left out. A run that is
cancelled keeps the user's turn; a model that raises leaves nothing, as with every adapter.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from memlayer import workers
from memlayer.codec import Message, Piece, content_text, text_parts
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.documents import Document
    from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.retrievers import BaseRetriever
    from pydantic import Field, field_validator
except ImportError as error:
    raise MissingExtraError('langchain is missing: pip install "memlayer-sdk[langchain]"') from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from langchain.agents.middleware import ModelRequest
    from langgraph.runtime import Runtime

    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory
    from memlayer.records import Hit

__all__ = ["MemoryMiddleware", "MemoryRetriever", "ModelRequests"]


class ModelRequests:
    """The codec of what an agent's middleware sees: `ModelRequest` and `ModelResponse`."""

    def messages(self, request: ModelRequest[Any]) -> list[Message]:
        return [
            Message(role=_role(message), text=_text(message), place=place)
            for place, message in enumerate(request.messages)
        ]

    def insert(self, request: ModelRequest[Any], blocks: Mapping[int, str]) -> ModelRequest[Any]:
        messages = list(request.messages)
        for place, block in blocks.items():
            messages[place] = _appended(messages[place], block)
        return request.override(messages=messages)

    def instruct(self, request: ModelRequest[Any], block: str) -> ModelRequest[Any] | None:
        if self.is_stateful(request):
            return None  # The system prompt is one of the messages that the provider keeps.
        system = request.system_message
        return request.override(system_message=SystemMessage(block) if system is None else _appended(system, block))

    def is_stateful(self, request: ModelRequest[Any]) -> bool:
        given = {**(getattr(request.model, "model_kwargs", None) or {}), **request.model_settings}
        return bool(
            given.get("previous_response_id")
            or given.get("conversation")
            or getattr(request.model, "use_previous_response_id", False)
        )

    def reply(self, response: Any) -> Piece:
        response = getattr(response, "model_response", response)
        for message in reversed(getattr(response, "result", [response])):
            if isinstance(message, AIMessage):
                calls = bool(message.tool_calls or message.invalid_tool_calls)
                return Piece(text=_text(message), calls=calls, refused=_is_refused(message), ended=True)
        return Piece(ended=True)

    def event(self, event: Any) -> Piece:
        return self.reply(event)  # An agent's model is seen whole, also where its tokens are streamed.


class MemoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Gives an agent the memory of the user whom it talks with.

    Args:
        memory: of one user; or a function that gets the run's `Runtime` and gives that user's memory.
        session: the conversation, or None; or a function that gets the run's `Runtime`.
        options: as `Injector` takes them: placement, k, max_tokens, on_error, recall_timeout and others.

    Raises:
        InvalidInputError: this is not the memory of one user. Where a function gives it, the agent's run raises this,
            before the model is called.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory | Callable[[Runtime[Any]], UserMemory | AsyncUserMemory],
        *,
        session: str | Callable[[Runtime[Any]], str | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.tools = []
        self._memory = memory
        self._session = session
        self._options = options
        self._codec = ModelRequests()
        self._fixed: Injector | None = None
        if not callable(memory) and not callable(session):
            self._fixed = Injector(one_user(memory), session=session, **options)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Calls the model with memory in the request, and remembers what it answers."""
        call = self._injector(request).before(self._codec, request)
        with call:
            response = handler(call.request)
        call.after(response)
        return response

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """As `wrap_model_call`, and never on the event loop."""
        call = await self._injector(request).abefore(self._codec, request)
        try:
            with call:
                response = await handler(call.request)
        except asyncio.CancelledError:
            await call.aend(broken=True)  # The reader of a stream has gone; what the user said stays.
            raise
        await call.aafter(response)
        return response

    def _injector(self, request: ModelRequest[Any]) -> Injector:
        if self._fixed is not None:
            return self._fixed
        memory = self._memory(request.runtime) if callable(self._memory) else self._memory
        session = self._session(request.runtime) if callable(self._session) else self._session
        return Injector(one_user(memory), session=session, **self._options)


class MemoryRetriever(BaseRetriever):
    """What one user's memory has for a query, as documents: the text, its id, and as metadata the memory's own with
    role, speaker, session, at (ISO 8601), source and score, which win over the memory's own of the same name.

    Attributes:
        memory: of one user.
        k: at most how many.
        options: the other arguments of `UserMemory.recall`: session, where, sources, min_score and others.
    """

    memory: Any = Field(repr=False)
    k: int = 10
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("memory")
    @classmethod
    def _one_user(cls, memory: Any) -> UserMemory:
        return one_user(memory)

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        hits = self.memory.recall(query, k=self.k if k is None else k, **self.options)
        return [_document(hit) for hit in hits]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        future = workers.submit(self._get_relevant_documents, query, run_manager=None, k=k)
        return await asyncio.wrap_future(future)


def _role(message: Any) -> Any:
    if isinstance(message, HumanMessage):
        return "system" if "lc_source" in message.additional_kwargs else "user"
    if isinstance(message, AIMessage):
        return "assistant"
    return "tool" if isinstance(message, FunctionMessage | ToolMessage) else "system"


def _text(message: Any) -> str:
    # What a model says comes in pieces where it cites; they are one text.
    return str(message.text) if isinstance(message, AIMessage) else content_text(message.content)


def _appended(message: Any, block: str) -> Any:
    return message.model_copy(update={"content": [*text_parts(message.content), {"type": "text", "text": block}]})


# How the providers name it, in lower case: OpenAI, Anthropic, Google.
_REFUSALS = frozenset({"content_filter", "refusal", "safety", "prohibited_content", "blocklist", "recitation", "spii"})


def _is_refused(message: AIMessage) -> bool:
    told = message.response_metadata
    reasons = [told.get("finish_reason"), told.get("stop_reason"), (told.get("incomplete_details") or {}).get("reason")]
    parts = message.content if isinstance(message.content, list) else []
    return (
        bool(message.additional_kwargs.get("refusal"))
        or any(str(reason).lower() in _REFUSALS for reason in reasons)
        or any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)
    )


def _document(hit: Hit) -> Document:
    told = {"role": hit.role, "speaker": hit.speaker, "session": hit.session, "at": hit.at.isoformat()}
    metadata = {**hit.metadata, **told, "source": hit.source, "score": hit.score}
    return Document(page_content=hit.text, id=hit.id, metadata=metadata)
