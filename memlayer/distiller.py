"""Distilling: a model reads turns and writes down short facts. Opt-in: nothing else in memlayer asks a model anything.

    from memlayer import Distiller

    Distiller(alice, model="openai/gpt-4o-mini").run()       # now: whatever no model has read yet

    with Distiller(alice, model="ollama/llama3.2"):          # in the background, while the program talks with alice
        ...

The texts of the turns go to that model, in clear. Every turn stays as it is; a fact is one more memory, linked with the
turns that it was written from (`memory.facts()`). What a fact takes the place of stays too, and a recall leaves it out.

A round asks once, about the oldest turns of one conversation that no model has read, and is written whole or not at
all, together with the note that they have been read. Whoever is killed in the middle has lost one answer, and whoever
begins again adds nothing twice.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from memlayer.background import Background
from memlayer.embedders.litellm_models import mode_of
from memlayer.errors import (
    DistilError,
    EmbedderError,
    InvalidInputError,
    MemlayerError,
    ReadOnlyStoreError,
    StoreClosedError,
)
from memlayer.extraction import inquiry, origins, read_answer
from memlayer.facts import Draft, Reading
from memlayer.filters import Condition
from memlayer.health import Breaker
from memlayer.litellm_calls import Caller, require_litellm
from memlayer.portions import due_turns, first_of, portion_of
from memlayer.reports import DistilReport
from memlayer.wrapping import one_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from memlayer.aio import AsyncUserMemory
    from memlayer.extraction import Finding
    from memlayer.health import Health
    from memlayer.memory import UserMemory
    from memlayer.portions import Portion
    from memlayer.records import Source

    Writer = Callable[[list[dict[str, str]]], str]
    Progress = Callable[[int, int], None]

__all__ = ["Distiller"]

# Where the model has nothing usable to say about so many turns, each asked about alone, and never had, it never will.
_HOPELESS: Final = 3
_SET_HERE: Final = frozenset({"functions", "messages", "n", "stream", "tools"})

_background = Background()


class Distiller:
    """Has a model write facts from one user's turns. Shareable by threads; one round at a time.

    Args:
        memory: of the one user.
        model: "<provider>/<model>" as LiteLLM writes it, such as "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5" or
            "ollama/llama3.2"; or a function that takes messages (`{"role": ..., "content": ...}`) and gives the reply.
        every: in the background, a round begins when so many turns are due.
        batch: how many turns a round reads at most.
        facts: how many facts a round writes at most.
        sources: whose words are read. A tool's and a document's are not by default: anybody may have written them.
        api_base: where the provider is, as LiteLLM takes it for this provider; None for its public address.
        api_key: None for the provider's environment variable.
        options: more arguments for LiteLLM, such as `{"temperature": 0}`.
        retries: how many times a request is made again after a rate limit, a server's error or a broken connection.
        timeout: seconds for one request.

    Raises:
        InvalidInputError: a number out of range, or a model that cannot be meant.
        MissingExtraError: LiteLLM is not installed, and `model` is a name.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory,
        *,
        model: str | Writer,
        every: int = 10,
        batch: int = 20,
        facts: int = 10,
        sources: Sequence[Source] = ("user", "assistant", "import"),
        api_base: str | None = None,
        api_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        retries: int = 2,
        timeout: float = 60.0,
    ) -> None:
        for name, value, most in (("every", every, 10_000), ("batch", batch, 100), ("facts", facts, 50)):
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidInputError(f"{name} must be an int from 1 to {most}", name=name, limit=most)
        self._memory = one_user(memory)
        Condition(sources=sources)
        self._sources = tuple(sources)
        self._every = every
        self._batch = batch
        self._facts = facts
        self._model = _guarded(model) if callable(model) else _through_litellm(
            model, api_base=api_base, api_key=api_key, options=options, retries=retries, timeout=timeout
        )  # fmt: skip
        self._breaker = Breaker()
        # Turns that the model gave nothing usable for, in this process: asked about again and again, they would hold up
        # all that come after them.
        self._left_alone: set[bytes] = set()
        self._end: Callable[[], None] | None = None
        self._flushing = False
        self._lock = (os.getpid(), threading.Lock())

    def __repr__(self) -> str:
        return f"<Distiller, {'started' if self._end else 'not started'}>"

    @property
    def due(self) -> int:
        """How many turns no model has read."""
        return len(self._due())

    # ---------------------------------------------------------------- now

    def run(self, *, calls: int | None = None, progress: Progress | None = None) -> DistilReport:
        """Rounds until no turn is due, in this thread.

        Args:
            calls: how often the model is asked at most; None for as often as it takes.
            progress: is told how many turns have been read, and how many of them there are to read.

        Raises:
            DistilError: the model failed, or gives no list of facts; what was written until then stays.
            MissingExtraError: LiteLLM cannot be imported, or lacks a library for this provider.
            MemlayerError: as `remember` raises it.
        """
        if calls is not None and (type(calls) is not int or calls < 1):
            raise InvalidInputError("calls must be an int of 1 or more, or None")
        with self._working:
            return self._rounds(calls=calls, least=1, progress=progress, wanted=lambda: True)

    def _rounds(
        self, *, calls: int | None, least: int, progress: Progress | None, wanted: Callable[[], bool]
    ) -> DistilReport:
        if self._memory._database.mode != "rw":
            # Before anything is sent.
            raise ReadOnlyStoreError("the store cannot be written, so no fact can be kept")
        turns = facts = superseded = asked = unusable = in_vain = 0
        # What is left of answers that could not be used: each half of their turns is asked about alone, so that one odd
        # turn does not take the others along.
        halves: list[list[bytes]] = []
        while wanted() and (calls is None or asked < calls):
            portion = self._next(halves, least=least)
            if progress is not None:
                progress(turns, turns + len(self._due()))
            if portion is None:
                break
            asked += 1
            drafts = self._ask(portion)
            if drafts is None:
                ids = list(portion.turns)
                if len(ids) > 1:
                    halves += [ids[len(ids) // 2 :], ids[: len(ids) // 2]]
                    continue
                self._left_alone.update(ids)
                unusable += 1
                if unusable == _HOPELESS and not turns:
                    raise DistilError("the model gives no list of facts, whatever it is asked about; try another one")
                continue
            counts = self._keep(portion, drafts)
            turns, facts, superseded = turns + counts[0], facts + counts[1], superseded + counts[2]
            in_vain = 0 if counts[0] else in_vain + 1
            if in_vain == _HOPELESS:
                break  # Somebody changes these turns faster than a model reads them.
        return DistilReport(
            turns=turns, facts=facts, superseded=superseded, calls=asked, unusable=unusable, due=len(self._due())
        )

    # ---------------------------------------------------------------- in the background

    def start(self) -> Distiller:
        """From now on, rounds are made in the background as soon as enough turns are due, after each write of this
        process to this user. If one fails, no caller hears of it: see `health`. May be called twice."""
        if self._end is None:
            self._end = self._memory._vault.watch(self._memory._user_id, self._wake)
            self._wake()
        return self

    def flush(self, *, seconds: float = 60.0) -> bool:
        """Has all that is due read, however little it is, and waits for it; whether it was done in time."""
        if self._end is None:
            raise InvalidInputError("this distiller has not been started; use run()")
        self._flushing = True
        try:
            done = _background.put(self, self._work) and _background.wait(self, seconds=seconds)
        finally:
            self._flushing = False
        return done and not self._asked_about(self._due())

    def stop(self, *, seconds: float = 10.0) -> bool:
        """Begins no round any more, and waits for the one that is under way; whether it ended in time. What is due
        stays due. May be called twice; call it before the store is closed."""
        end, self._end = self._end, None
        if end is not None:
            end()
        _background.cancel(self)
        return _background.wait(self, seconds=seconds)

    @property
    def health(self) -> Health:
        """How the rounds in the background have been doing."""
        return self._breaker.health

    def __enter__(self) -> Distiller:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wake(self) -> None:
        # Where the queue is full nothing is lost: the turns are due, and the next write says so again.
        _background.put(self, self._work)

    def _work(self) -> None:
        if self._end is None or not self._breaker.allows():
            return
        try:
            with self._working:
                least = 1 if self._flushing else self._every
                self._rounds(calls=None, least=least, progress=None, wanted=lambda: self._end is not None)
            self._breaker.succeeded()
        except StoreClosedError:
            pass  # Nothing more will come.
        except Exception as error:  # noqa: BLE001  nobody is there to hear it, and the chat goes on
            self._breaker.failed(error, doing="distilling facts")

    @property
    def _working(self) -> threading.Lock:
        if self._lock[0] != os.getpid():
            self._lock = (os.getpid(), threading.Lock())  # A thread of the parent's may have held that one.
        return self._lock[1]

    # ---------------------------------------------------------------- one round

    def _due(self) -> list[bytes]:
        resident = self._memory._resident
        with resident.reading() as (_, index):
            return [] if index is None else due_turns(resident.lineage, index, sources=self._sources)

    def _asked_about(self, due: list[bytes]) -> list[bytes]:
        return [turn for turn in due if turn not in self._left_alone]

    def _next(self, halves: list[list[bytes]], *, least: int) -> Portion | None:
        """What the next request is about; None where too few turns are due."""
        resident = self._memory._resident
        with resident.reading() as (_, index):
            if index is None:
                return None
            due = self._asked_about(due_turns(resident.lineage, index, sources=self._sources))
            turns: list[bytes] = []
            while halves and not turns:
                half = halves.pop()
                turns = [turn for turn in due if turn in half]
            if not turns and len(due) >= least:
                turns = first_of(due, index, most=self._batch)
        return portion_of(turns, resident=resident) if turns else None

    def _ask(self, portion: Portion) -> list[Draft] | None:
        """What the model writes; None where that cannot be used. Nothing is locked meanwhile."""
        turns, known = list(portion.turns.values()), list(portion.known.values())
        answer = self._model(inquiry(turns, known, most=self._facts))
        findings = read_answer(answer, turns=len(turns), known=len(known), most=self._facts)
        if findings is None:
            return None
        return [_draft(finding, origins(finding, turns, known), portion) for finding in findings]

    def _keep(self, portion: Portion, drafts: Sequence[Draft]) -> tuple[int, int, int]:
        vault, resident, spaces = self._memory._vault, self._memory._resident, self._memory._spaces
        return Reading(portion, drafts, vault=vault, resident=resident, spaces=spaces).write()


def _draft(finding: Finding, origin: tuple[set[int], set[int]], portion: Portion) -> Draft:
    turns, known = list(portion.turns), list(portion.known)
    sources = {turns[number] for number in origin[0]}
    sources = sources.union(*(portion.behind[known[number]] for number in origin[1]))
    named = frozenset(turns[number] for number in finding.sources)
    return Draft(finding.text, named, frozenset(sources), tuple(known[number] for number in finding.supersedes))


def _guarded(function: Writer) -> Writer:
    """The caller's function, whose errors may quote what it was asked."""

    def write(messages: list[dict[str, str]]) -> str:
        try:
            return function(messages)
        except MemlayerError:
            raise
        except Exception as error:  # noqa: BLE001  told by its class alone
            kind = type(error).__name__
        # Out here, so that no context holds the other one.
        raise DistilError(f"the function that was given as the model raised {kind}")

    return write


def _through_litellm(
    model: str, *, api_base: str | None, api_key: str | None, options: Mapping[str, Any] | None, retries: int,
    timeout: float,
) -> Writer:  # fmt: skip
    require_litellm()
    if not isinstance(model, str) or not all(model.partition("/")):
        raise InvalidInputError('model must be written as <provider>/<model>, such as "openai/gpt-4o-mini"')
    mode = mode_of(model)
    if mode not in (None, "chat", "completion", "responses"):
        raise InvalidInputError(f"{model} is a model for {mode}, and writes no facts", model=model)
    taken = sorted(_SET_HERE & set(options or {}))
    if taken:
        raise InvalidInputError(f"options cannot have {', '.join(taken)}: memlayer sets that itself")
    caller = Caller(
        model,
        api_base=api_base,
        api_key=api_key,
        options=options,
        retries=retries,
        timeout=timeout,
        patience=timeout * (retries + 1),
    )

    def write(messages: list[dict[str, str]]) -> str:
        try:
            answer = _apart(lambda: caller.call("completion", {"messages": messages}, texts=1))
        except EmbedderError as error:
            message, evidence = str(error), dict(error.evidence)
        else:
            choices = getattr(answer, "choices", None) or [None]
            content = getattr(getattr(choices[0], "message", None), "content", None)
            return content if isinstance(content, str) else ""
        raise DistilError(message, **evidence)

    return write


def _apart(call: Callable[[], Any]) -> Any:
    """Makes a call in a thread of its own: LiteLLM leaves an open event loop in the thread that asks for a completion,
    unless it is none that could have one. A daemon, so that an interrupted program does not wait for the answer."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="memlayer-asking", daemon=True).start()
    return done.result()
