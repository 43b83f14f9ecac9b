"""OpenAI Agents SDK: `Runner` with memory.

    runner = MemoryRunner(alice, session="s1")
    runner = MemoryRunner(lambda context: store.user(context.user))
    result = await runner.run(agent, "Which snack is good for me?")      # run_sync and run_streamed too

Each run gets a `call_model_input_filter`, which adds to what the model is sent and to nothing that the SDK keeps (a
session, the result), and hooks, which take the model's answers. The caller's own filter and hooks work as before: the
filter first, for what it makes is what is sent. Of a tool loop or a handoff the user's turn and the final answer are
remembered, once each. An agent that is a tool of another one talks with a model, not with the user: it gets nothing.

Different here: in a run that OpenAI keeps (`previous_response_id`, `auto_previous_response_id`, `conversation_id`) the
block is in the instructions of each request. Guardrails run beside the model or after it: what they reject may have
been remembered. A final output that a tool made (`stop_on_first_tool`) is no answer of the assistant's. A run that is
cancelled, and a streamed one that fails, keeps the user's turn.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memlayer.adapters.openai_agents_items import ModelInputs
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from agents import RunContextWrapper, RunHooks, Runner, RunState
    from agents.lifecycle import RunHooksBase
    from agents.run import RunConfig
except ImportError as error:
    raise MissingExtraError('openai-agents is missing: pip install "memlayer-sdk[openai-agents]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents import Agent, ModelResponse, RunResult, RunResultStreaming
    from agents.run import CallModelData, ModelInputData

    from memlayer.aio import AsyncUserMemory
    from memlayer.injector import Call
    from memlayer.memory import UserMemory

__all__ = ["MemoryRunner", "ModelInputs"]


class MemoryRunner:
    """Runs agents with the memory of the user whom they talk with.

    Args:
        memory: of one user; or a function that gets the run's context and gives that user's memory.
        session: the conversation, or None; or a function that gets the run's context. It is a name for memory; the
            SDK's own `session=` is an option of each run.
        options: as `Injector` takes them: placement, k, max_tokens, on_error, recall_timeout and others.

    Raises:
        InvalidInputError: this is not the memory of one user. Where a function gives it, the run raises this, before
            the model is called.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory | Callable[[Any], UserMemory | AsyncUserMemory],
        *,
        session: str | Callable[[Any], str | None] | None = None,
        **options: Any,
    ) -> None:
        self._memory = memory
        self._session = session
        self._options = options
        self._fixed: Injector | None = None
        if not callable(memory) and not callable(session):
            self._fixed = Injector(one_user(memory), session=session, **options)

    async def run(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResult:
        """As `Runner.run`, with the same options."""
        run = self._begin(input, options)
        try:
            return await Runner.run(starting_agent, input, **run.options)
        except asyncio.CancelledError:
            await run.cancelled()
            raise
        finally:
            run.end()

    def run_sync(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResult:
        """As `Runner.run_sync`, with the same options."""
        run = self._begin(input, options)
        try:
            return Runner.run_sync(starting_agent, input, **run.options)
        finally:
            run.end()

    def run_streamed(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResultStreaming:
        """As `Runner.run_streamed`, with the same options, by name."""
        run = self._begin(input, options)
        result = Runner.run_streamed(starting_agent, input, **run.options)
        if result.run_loop_task is not None:
            result.run_loop_task.add_done_callback(lambda _: run.end(keep=True))
        return result

    def _begin(self, input: Any, options: Mapping[str, Any]) -> _Run:
        codec = ModelInputs(stateful=_is_stateful(input, options))
        return _Run(self._injector(_context(input, options)), codec, options)

    def _injector(self, context: Any) -> Injector:
        if self._fixed is not None:
            return self._fixed
        memory = self._memory(context) if callable(self._memory) else self._memory
        session = self._session(context) if callable(self._session) else self._session
        return Injector(one_user(memory), session=session, **self._options)


class _Run(RunHooks[Any]):
    """One run: the filter of its requests and the hooks that take the answers, in front of the caller's own."""

    def __init__(self, injector: Injector, codec: ModelInputs, given: Mapping[str, Any]) -> None:
        self._injector = injector
        self._codec = codec
        self._agent: Any = None
        self._call: Call | None = None
        self._block = ""
        hooks, config = given.get("hooks"), given.get("run_config")
        self._hooks: Any = RunHooks() if hooks is None else hooks
        for name in vars(RunHooksBase):
            if name.startswith("on_") and name not in vars(_Run):
                setattr(self, name, getattr(self._hooks, name, None))
        if isinstance(config, RunConfig):
            self._filter: Any = config.call_model_input_filter
            config = replace(config, call_model_input_filter=self.add)
        else:
            # A dict, or nothing: then the SDK closes the model provider that it makes for this run.
            self._filter = (config or {}).get("call_model_input_filter")
            config = {**(config or {}), "call_model_input_filter": self.add}
        # What is no hooks of a run is for the SDK to refuse.
        self.options = {
            **given,
            "run_config": config,
            "hooks": self if isinstance(self._hooks, RunHooksBase) else hooks,
        }

    async def add(self, data: CallModelData[Any]) -> ModelInputData:
        """The filter: what the model is sent, with memory in it."""
        given: Any = data.model_data
        if self._filter is not None:
            given = self._filter(data)
            given = await given if inspect.isawaitable(given) else given
        if self._agent is not None and data.agent is not self._agent:
            return given  # type: ignore[no-any-return]  # An agent that is a tool has this filter, but not these hooks.
        self._call = call = await self._injector.abefore(self._codec, given)
        prepared = call.prepared
        if prepared is None:
            return call.request  # type: ignore[no-any-return]
        call.__enter__()  # The model is asked in this context; its answer is told of in another one.
        if not prepared.block and self._block and self._codec.is_stateful(given):
            # Only results of tools are sent, and instructions hold for one request.
            return self._codec.instruct(call.request, self._block)
        self._block = prepared.block
        return call.request  # type: ignore[no-any-return]

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self._agent = agent
        await self._hooks.on_agent_start(context, agent)

    async def on_llm_end(self, context: Any, agent: Any, response: ModelResponse) -> None:
        self.end()
        if self._call is not None:
            await self._call.aafter(response)
        await self._hooks.on_llm_end(context, agent, response)

    def end(self, *, keep: bool = False) -> None:
        """The request is over; with `keep` the user's turn is kept where no answer has come."""
        if self._call is not None:
            self._call.under_way = False
            if keep:
                self._call.drop()

    async def cancelled(self) -> None:
        """Keeps the user's turn."""
        if self._call is not None:
            await self._call.aend(broken=True)


_STATE = ("previous_response_id", "auto_previous_response_id", "conversation_id")


def _is_stateful(input: Any, options: Mapping[str, Any]) -> bool:
    kept = any(options.get(name) for name in _STATE)
    # A run that goes on after an approval has kept what it was started with.
    return kept or (isinstance(input, RunState) and any(getattr(input, f"_{name}", None) for name in _STATE))


def _context(input: Any, options: Mapping[str, Any]) -> Any:
    context = options.get("context")
    if context is None and isinstance(input, RunState):
        context = getattr(input, "_context", None)
    return context.context if isinstance(context, RunContextWrapper) else context
