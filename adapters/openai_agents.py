"""OpenAI Agents: memory for the runs of any agent.

    memory = MemoryRun(store.user("alice"), session="s1")
    await Runner.run(agent, "What can't I eat?", run_config=memory.config(), hooks=memory.hooks)

The block is in what one call of the model gets, never in a session or in the run's own items. Of a tool loop or a
handoff the user's turn and the final reply are remembered, once each. For a run that OpenAI continues by itself
(`previous_response_id`, `conversation_id`), say `stateful=True`: the block then goes into that call's instructions.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from memlayer.codec import Message, Piece, content_text, text_parts
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from agents import RunConfig, RunHooks
    from agents.run import CallModelData, ModelInputData
except ImportError as error:
    raise MissingExtraError('openai-agents is missing: pip install "memlayer-sdk[openai-agents]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents import Agent, ModelResponse, RunContextWrapper

    from memlayer.aio import AsyncUserMemory
    from memlayer.injector import Call
    from memlayer.memory import UserMemory

__all__ = ["MemoryRun", "ModelInputs"]


class ModelInputs:
    """The codec of what a call of the model gets: items as the Responses API has them, and instructions.

    Args:
        stateful: whether OpenAI keeps the items.
    """

    def __init__(self, *, stateful: bool = False) -> None:
        self._stateful = stateful

    def messages(self, request: ModelInputData) -> list[Message]:
        return [_message(item, place) for place, item in enumerate(request.input)]

    def insert(self, request: ModelInputData, blocks: Mapping[int, str]) -> ModelInputData:
        items: list[Any] = list(request.input)
        for place, block in blocks.items():
            parts = text_parts(items[place].get("content"), kind="input_text")
            items[place] = {**items[place], "content": [*parts, {"type": "input_text", "text": block}]}
        return replace(request, input=items)

    def instruct(self, request: ModelInputData, block: str) -> ModelInputData:
        own = request.instructions
        return replace(request, instructions=f"{own}\n\n{block}" if own else block)

    def is_stateful(self, request: ModelInputData) -> bool:
        return self._stateful

    def reply(self, response: ModelResponse) -> Piece:
        kinds = {item.type for item in response.output}
        parts: list[Any] = [part for item in response.output if item.type == "message" for part in item.content]
        return Piece(
            text="".join(part.text for part in parts if part.type == "output_text"),
            calls=bool(kinds & _CALLS),
            refused=any(part.type == "refusal" for part in parts),
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        return Piece()


_CALLS = frozenset({
    "function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "mcp_approval_request",
})  # fmt: skip
_ROLES: Mapping[Any, Literal["user", "assistant", "system"]] = {
    "user": "user", "assistant": "assistant", "system": "system", "developer": "system",
}  # fmt: skip


def _message(item: Any, place: int) -> Message:
    kind = item.get("type") or "message"
    if kind != "message":
        return Message("tool" if kind.endswith("_output") else "assistant", "", place)
    return Message(_ROLES.get(item.get("role"), "tool"), content_text(item.get("content")), place)


class MemoryRun:
    """Memory for runs; one object serves as many as one likes, at once too.

    Args:
        memory: the user's; or a function of the run's context that gives it.
        session: the conversation, or None.
        stateful: whether the runs continue at OpenAI.
        options: as `Injector` takes them.

    Raises:
        InvalidInputError: not the memory of one user; where a function gives it, before the first request of a run.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory | Callable[[Any], UserMemory | AsyncUserMemory],
        *,
        session: str | None = None,
        stateful: bool = False,
        **options: Any,
    ) -> None:
        self._find: Callable[[Any], Any] | None = None
        self._injector: Injector | None = None
        if callable(memory):
            self._find = memory
        else:
            self._injector = Injector(one_user(memory), session=session, **options)
        self._options: dict[str, Any] = {"session": session, **options}
        self._codec = ModelInputs(stateful=stateful)
        # The call that the current task's run has under way.
        self._under_way: ContextVar[Call | None] = ContextVar("memlayer_agents", default=None)
        self.hooks: RunHooks[Any] = _Hooks(self)

    def config(self, base: RunConfig | None = None) -> RunConfig:
        """A run's configuration with memory; `base` is left as it is, and its own filter goes first."""
        base = base or RunConfig()
        return replace(base, call_model_input_filter=self._filter(base.call_model_input_filter))

    def _filter(self, first: Any) -> Any:
        async def filtered(data: CallModelData[Any]) -> ModelInputData:
            request = data.model_data
            if first is not None:
                found = first(data)
                request = await found if hasattr(found, "__await__") else found
            injector = self._injector
            if injector is None:
                assert self._find is not None  # noqa: S101  one of the two is there
                injector = Injector(one_user(self._find(data.context)), **self._options)
            call = await injector.abefore(self._codec, request)
            self._under_way.set(call)
            sent: ModelInputData = call.request
            return sent

        return filtered

    async def answered(self, response: ModelResponse) -> None:
        """Remembers what a call of the model gave."""
        call = self._under_way.get()
        if call is not None:
            await call.aafter(response)


class _Hooks(RunHooks[Any]):
    """Tells of replies."""

    def __init__(self, memory: MemoryRun) -> None:
        self._memory = memory

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        await self._memory.answered(response)
