"""The MCP server below its tools: whose request it is, and what is said when one fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from memlayer.errors import InvalidInputError, MemlayerError, MissingExtraError, NotFoundError
from memlayer.workers import submit
from memlayer.wrapping import one_user

try:
    from mcp.server.auth.middleware.auth_context import get_access_token
    from mcp.server.auth.provider import AccessToken
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError, UnexpectedToolError
    from mcp.shared.exceptions import MCPError
    from mcp.types import INTERNAL_ERROR, INVALID_PARAMS
    from pydantic import Field, ValidationError
except ImportError as error:
    raise MissingExtraError('the MCP server is missing: pip install "memlayer-sdk[mcp]"') from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory

    AnyMemory = UserMemory | AsyncUserMemory
    Verify = Callable[[str], AnyMemory | Awaitable[AnyMemory | None] | None]

__all__ = ["TellingServer", "Verifier", "memory_of_request", "off_loop"]

log = logging.getLogger("memlayer")

P = ParamSpec("P")
R = TypeVar("R")


class TellingServer(MCPServer[Any]):
    """Says what failed in memlayer's words, which hold no contents. The SDK's own repeat the arguments to the client,
    and in the log show tracebacks and the names of conversations."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if error.__cause__ is None and not isinstance(error, UnexpectedToolError):
                raise  # There is no tool of this name.
            raise ToolError(_told(error)[1]) from None

    async def read_resource(self, uri: Any, context: Any = None) -> Any:
        try:
            return await super().read_resource(uri, context)
        except MCPError:
            raise
        except ResourceNotFoundError:
            raise MCPError(code=INVALID_PARAMS, message="there is no such resource", data={"uri": str(uri)}) from None
        except Exception as error:  # noqa: BLE001  the SDK wraps what a resource raises in classes of several kinds
            code, message = _told(error)
            raise MCPError(code=code, message=message, data={"uri": str(uri)}) from None

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None, context: Any = None) -> Any:
        try:
            return await super().get_prompt(name, arguments, context)
        except MCPError:
            raise
        except Exception as error:  # noqa: BLE001  likewise
            # One level down and nothing below it: the SDK's own words, of a prompt or an argument that is missing.
            own = error.__cause__ is not None and error.__cause__.__cause__ is None
            code, message = (INVALID_PARAMS, str(error)) if own else _told(error)
            raise MCPError(code=code, message=message) from None


class _Bearer(AccessToken):
    """A token that was verified, with the memory that it opens."""

    memory: Any = Field(exclude=True, repr=False)


class Verifier:
    """What the SDK asks of every HTTP request."""

    def __init__(self, verify: Verify) -> None:
        self._verify = verify

    async def verify_token(self, token: str) -> _Bearer | None:
        found: Any = await (
            self._verify(token) if inspect.iscoroutinefunction(self._verify) else off_loop(self._verify, token)
        )
        if found is None:
            return None
        memory = one_user(found)
        memory.loading.start()
        # An MCP session belongs to the token that began it: the SDK compares client_id, and the token stays out of it.
        return _Bearer(token="", client_id=sha256(token.encode()).hexdigest(), scopes=[], memory=memory)


def memory_of_request() -> UserMemory:
    """The memory that the token of this request opens. Raises where there is none: nothing is guessed."""
    token = get_access_token()
    if not isinstance(token, _Bearer):
        raise InvalidInputError("this request has no token, so there is no user whose memory could be meant")
    memory: UserMemory = token.memory
    return memory


async def off_loop(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs in a worker what would block the event loop."""
    # Shielded: a request that is cancelled must not take a write back that is queued.
    return await asyncio.shield(asyncio.wrap_future(submit(call, *args, **kwargs)))


def _told(error: BaseException) -> tuple[int, str]:
    """The code and the words for what is at the bottom of an error of the SDK's."""
    cause: BaseException = error
    while not isinstance(cause, MemlayerError | ValidationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, MemlayerError):
        return (INVALID_PARAMS if isinstance(cause, InvalidInputError | NotFoundError) else INTERNAL_ERROR), str(cause)
    if isinstance(cause, ValidationError):
        wrong = cause.errors(include_input=False, include_url=False, include_context=False)
        return INVALID_PARAMS, "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong)
    log.error("an MCP request failed (%s)", type(cause).__name__)
    return INTERNAL_ERROR, f"this should not happen ({type(cause).__name__})"
