"""One call of a provider through LiteLLM: quiet, tried again where that helps, and with errors that hold no text.

What holds for every call that is made here:

- Nothing of it is logged or kept. LiteLLM hands what it sends to the callbacks and the cache that an application has
  set up for its chats, writes it to its log at DEBUG, and a failed rerank with the provider's words at ERROR. Here each
  call has a logging object of its own that does nothing, the cache is off, and LiteLLM's and OpenAI's loggers drop
  what is said during the call. What remains is `litellm.set_verbose = True`, deprecated, which prints requests to the
  terminal before anybody can object.
- It is tried again after a rate limit, a server's error, a timeout and a broken connection, never after another 4xx
  and never after an answer that makes no sense. `Retry-After` is obeyed. Tries and time are bounded.
- An error says which model, which status and what to do. It is raised with no cause and no context, because LiteLLM's
  exceptions quote the provider, and providers quote the text.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import sys
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Caller", "require_litellm"]

log = logging.getLogger("memlayer")

# The first pause; each later one is twice as long, up to the second number (seconds). Half of it is left to chance,
# so that many processes that were turned away at once do not come back at once.
_PAUSES: Final = (0.5, 16.0)
_LOGGERS: Final = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai", "openai._base_client")
# What is told to try later. 408, 425 and 429 are the 4xx among them; 529 is Anthropic's and Voyage's "overloaded".
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# LiteLLM gives the OpenAI client of these no number of retries: it tries three times by itself and obeys Retry-After.
_RETRY_THEMSELVES: Final = frozenset({"mistral", "fireworks_ai", "nebius", "wandb", "xinference"})
_RESERVED: Final = frozenset(
    {"model", "input", "query", "documents", "dimensions", "input_type", "task", "embeddingPurpose", "encoding_format"}
    | {"timeout", "max_retries", "num_retries", "api_base", "api_key", "caching", "cache", "no-log", "mock_response"}
    | {"litellm_logging_obj", "return_documents", "top_n"}
)

_speaking: ContextVar[bool] = ContextVar("memlayer_litellm_call", default=False)
_importing = threading.Lock()
_forked = False
_left: Final[list[Any]] = []


def require_litellm() -> None:
    """Checks that LiteLLM is installed, without importing it, which takes seconds.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("litellm") is None:
        raise MissingExtraError('LiteLLM is missing: pip install "memlayer-sdk[litellm]"', extra="litellm")


class Caller:
    """Calls one model of one provider. Shareable by threads; a class, because these settings go with every call.

    Args:
        model: as LiteLLM takes it, "<provider>/<model>".
        api_base: where the provider is, as LiteLLM takes it for this provider; None for its public address.
        api_key: None for the provider's environment variable.
        options: more arguments for LiteLLM, such as `{"aws_region_name": "eu-central-1"}`.
        retries: how many times at most a call is made again.
        timeout: seconds for one request.
        patience: seconds after which nothing is tried again.

    Raises:
        InvalidInputError: a number out of range, or an option that memlayer sets itself.
    """

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None,
        api_key: str | None,
        options: Mapping[str, Any] | None,
        retries: int,
        timeout: float,
        patience: float,
    ) -> None:
        if retries < 0 or timeout <= 0 or patience <= 0:
            raise InvalidInputError("retries must be 0 or more, timeout and patience more than 0 seconds")
        taken = sorted(_RESERVED & set(options or {}))
        if taken:
            raise InvalidInputError(f"options cannot have {', '.join(taken)}: memlayer sets that itself")
        self.model = model
        self._retries = 0 if model.partition("/")[0] in _RETRY_THEMSELVES else retries
        self._timeout = timeout
        self._patience = patience
        self._settings: dict[str, Any] = {"api_base": api_base, "api_key": api_key}
        self._settings = {name: value for name, value in self._settings.items() if value is not None} | dict(
            options or {}
        )

    def __repr__(self) -> str:
        return f"<Caller {self.model}>"

    def call(
        self, kind: Literal["embedding", "rerank", "completion"], arguments: Mapping[str, Any], *, texts: int
    ) -> Any:
        """LiteLLM's answer.

        Args:
            kind: which of LiteLLM's functions.
            arguments: what is asked, with the texts in it.
            texts: how many those are, for the error.

        Raises:
            EmbedderError: the provider refused, failed or could not be reached.
            MissingExtraError: LiteLLM cannot be imported, or lacks a library for this provider.
        """
        send: Callable[..., Any] = getattr(_litellm(), kind)
        end = time.monotonic() + self._patience
        # What the caller is handling, if anything: it hangs on every exception that is raised from here on.
        outer = sys.exception()
        failure, tried = _Failure(""), 0
        while True:
            tried += 1
            with _silence():
                try:
                    return send(
                        model=self.model,
                        timeout=self._timeout,
                        max_retries=_NEVER,
                        caching=False,
                        cache={"no-cache": True, "no-store": True},
                        **{"no-log": True},
                        **_nothing_logged(kind, self.model),
                        **self._settings,
                        **arguments,
                    )
                except Exception as error:  # noqa: BLE001 - LiteLLM lets out what its many providers' code raises
                    failure = _Failure.of(error, outer=outer)
            pause = _pause(tried, failure.retry_after)
            if not failure.again or tried > self._retries or time.monotonic() + pause > end:
                break
            log.info("%s: %s, trying again in %.1f s", self.model, failure.kind, pause)
            time.sleep(pause)
        # Out here, where no exception is being handled: its context would be LiteLLM's, and hold the text.
        raise _error(failure, model=self.model, tries=tried, texts=texts)


class _Never(int):
    """0 retries, but true: LiteLLM reads `max_retries or 2` before it makes OpenAI's client, whose pauses would come
    on top of those here."""

    def __bool__(self) -> bool:
        return True


_NEVER: Final = _Never(0)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is known of a failed call, and may be told.

    Attributes:
        kind: the class of what was raised.
        status: the HTTP status that the provider gave; None if it gave none.
        reached: whether the trouble is not the connection.
        retry_after: seconds that the provider asks for; None if it does not.
        missing: a module that could not be imported.
    """

    kind: str
    status: int | None = None
    reached: bool = True
    retry_after: float | None = None
    missing: str | None = None

    @classmethod
    def of(cls, error: BaseException, *, outer: BaseException | None) -> _Failure:
        """Read from the whole chain: LiteLLM's own exception says 500 for a wrong argument and an unreadable answer as
        well, and keeps the headers only of some providers."""
        import httpx

        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link is not outer and len(chain) < 16:
            chain.append(link)
            link = link.__cause__ or link.__context__
        kind = type(error).__name__
        for one in chain:
            if isinstance(one, ImportError):
                return cls(kind, missing=one.name or "a library")
            if isinstance(one, httpx.HTTPStatusError):
                return cls(kind, one.response.status_code, retry_after=_retry_after(one.response.headers))
        if any(isinstance(one, httpx.TransportError | OSError) for one in chain):
            return cls(kind, reached=False)
        # Where a provider's own library spoke HTTP (such as botocore), LiteLLM's word is all there is.
        status = getattr(error, "status_code", None)
        told = kind in {"RateLimitError", "ServiceUnavailableError", "Timeout", "AuthenticationError", "NotFoundError"}
        return cls(kind, status if told and isinstance(status, int) else None)

    @property
    def again(self) -> bool:
        """Whether the same call may go well later."""
        return not self.reached or self.status in _AGAIN


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` (OpenAI, Azure) or `Retry-After` as a number or a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        value = headers["retry-after"]
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except ValueError:
        return None


def _pause(tried: int, retry_after: float | None) -> float:
    """Seconds before the next try. What the provider asks for is never shortened."""
    if retry_after is not None:
        return retry_after
    first, longest = _PAUSES
    return min(longest, first * 2.0 ** (tried - 1)) * (0.5 + random.random() / 2)  # noqa: S311 - no secret


def _error(failure: _Failure, *, model: str, tries: int, texts: int) -> EmbedderError | MissingExtraError:
    if failure.missing is not None:
        return MissingExtraError(
            f"LiteLLM needs {failure.missing} for {model}, which is not installed; install it with pip", model=model
        )
    status = failure.status
    if not failure.reached:
        said = "could not be reached, or did not answer in time; see that api_base is right and the network is there"
    elif status is None:
        said = f"gave no usable answer, or LiteLLM could not make the request ({failure.kind}); see the model's name, "
        said += "api_base and options"
    elif status == 429:
        said = "turned the request away for its rate limit or quota; wait, send less at once, or raise the quota"
    elif status in _AGAIN:
        said = "failed; try again later"
    elif status in (401, 403):
        said = "refused the key; set the provider's environment variable, or pass api_key="
    elif status == 404:
        said = "knows no such model or address; see the model's name and api_base"
    elif status == 413:
        said = "refused the request as too large; make batch smaller"
    else:
        said = "refused the request; see that the model takes texts of this length, and these dimensions"
    http = "" if status is None else f" (HTTP {status})"
    after = f" after {tries} tries" if tries > 1 else ""
    return EmbedderError(f"{model} {said}{http}{after}", model=model, status=status, tries=tries, texts=texts)


def _litellm() -> Any:
    # Otherwise LiteLLM asks the network for its list of prices while it is being imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with _importing:
        try:
            import litellm
        except ImportError as error:
            raise MissingExtraError('LiteLLM is missing: pip install "memlayer-sdk[litellm]"') from error
        # A banner with a link, printed to the application's terminal for every error, those handled here included.
        litellm.suppress_debug_info = True
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            if _not_ours not in logger.filters:
                logger.addFilter(_not_ours)
        if _forked:
            _leave_connections(litellm)
    return litellm


def _leave_connections(litellm: Any) -> None:
    """In a forked child: clients of its own. The parent's connections came along, and two processes that speak over
    one connection may read each other's answers: vectors of other texts.

    LiteLLM makes both anew when they are asked for. The old ones are kept and never used, because closing them is the
    parent's business.
    """
    global _forked
    for name in ("in_memory_llm_clients_cache", "module_level_client"):
        old = vars(litellm).pop(name, None)
        if old is not None:
            _left.append(old)
            if not hasattr(litellm, name):  # a LiteLLM that makes it only once, while it is imported
                setattr(litellm, name, old)
    _forked = False


def _after_fork() -> None:
    global _forked, _importing
    _forked = True
    _importing = threading.Lock()  # a thread that was importing held it, and will never let go of this copy


def _not_ours(record: logging.LogRecord) -> bool:
    """A filter: drops what is said during a call of this module, in the threads that LiteLLM starts for it as well."""
    return not _speaking.get()


@contextmanager
def _silence() -> Iterator[None]:
    token = _speaking.set(True)
    try:
        yield
    finally:
        _speaking.reset(token)


def _nothing_logged(kind: str, model: str) -> dict[str, Any]:
    """LiteLLM's logging object for one call, without what it does: no callback of the application sees the texts.

    It is no public interface of LiteLLM. Should a later version make it in another way, the call goes without: then
    "no-log" still keeps the call from callbacks after it, but those before it see the request.
    """
    from uuid import uuid4

    try:
        return {
            "litellm_logging_obj": _silent_class()(
                model=model,
                messages=None,
                stream=False,
                call_type=kind,
                start_time=datetime.now(),  # noqa: DTZ005 - LiteLLM compares it with naive times
                litellm_call_id=str(uuid4()),
                function_id="",
            )
        }
    except (ImportError, TypeError):
        return {}


def _silent_class() -> Any:
    global _silent
    if _silent is None:
        from litellm.litellm_core_utils.litellm_logging import Logging

        def pre_call(self: Any, input: Any = None, *_: Any, **__: Any) -> None:
            self.model_call_details["input"] = input  # LiteLLM counts Cohere's tokens from this

        def nothing(*_: Any, **__: Any) -> None:
            return None

        hooks = dict.fromkeys(("post_call", "success_handler", "failure_handler"), nothing)
        _silent = type("SilentLogging", (Logging,), {"pre_call": pre_call, **hooks})
    return _silent


_silent: Any = None

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
