"""The command mcp: a server of the Model Context Protocol, for hosts that start one or connect to one."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from memlayer.cli.opening import open_existing
from memlayer.cli.options import DEFAULT_STORE, EmbedderName, KeyFilePath, PassphraseAsked, RecoveryKeyAsked, Store
from memlayer.cli.output import Warnings, say
from memlayer.cli.tokens import Tokens
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.mcpserver import MCPServer

    from memlayer.memory import UserMemory
    from memlayer.store import MemoryStore

__all__ = ["mcp"]

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  to recognise them
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Clients keep a stream open for as long as they run: whoever stops the server does not wait for them.
_GOODBYE_SECONDS = 2


def mcp(
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", metavar="ID", help="Whose memory; taken exactly. There is no default user."),
    ] = None,
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option("--transport", help="stdio, for a host that starts the server; or streamable HTTP."),
    ] = "stdio",
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="FILE", help='For http, instead of --user: JSON, {"token": "user"}.'),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", "-s", metavar="NAME", help="The conversation to write to where none is named."),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="For http: where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="For http; 0 takes a free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="For http: a name that clients use for this server."),
    ] = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
) -> None:
    """Serve a user's memory to any MCP host.

    Over stdio the server is one user's. Over http it is too, on this machine alone; or each request's token says whose
    memory it means (Authorization: Bearer TOKEN). No tool takes a user, so that nothing a model writes can name one.

    Tokens travel as they are: beyond this machine, put a proxy with TLS in front.
    """
    names = allow_host or []
    _check(transport, user=user, tokens=tokens, host=host, names=names)
    known = None if tokens is None else Tokens.read(tokens)
    # Before a key is asked for.
    from memlayer.adapters.mcp import server

    # The SDK would set up the root logger, to show tracebacks; here as everywhere a warning is one line on stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("asyncio", "mcp", "uvicorn"):
        logging.getLogger(name).addHandler(Warnings(logging.WARNING))
    with open_existing(
        store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
    ) as opened:
        if user is not None:
            made = server(opened.user(user), session=session)
        else:
            assert known is not None  # noqa: S101  _check
            made = server(verify=_verify(opened, known), session=session)
        if transport == "stdio":
            # Python's own handler would wait for the thread that reads, until the host closes the pipe. What has been
            # answered is on the disk.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            made.run("stdio")
        else:
            # What service managers stop it with. uvicorn says goodbye first and raises it again; then the store closes.
            signal.signal(signal.SIGTERM, _stop)
            _serve(made, host=host, port=port, names=names)


def _check(transport: str, *, user: str | None, tokens: Path | None, host: str, names: list[str]) -> None:
    if transport == "stdio" and (user is None or tokens is not None):
        raise InvalidInputError("over stdio the server is one user's: use --user, and no --tokens")
    if (user is None) == (tokens is None):
        raise InvalidInputError("use one of --user and --tokens")
    if user is not None and transport == "http" and (names or not _is_loopback(host)):
        raise InvalidInputError("with --user everybody who reaches the port is this user: for others, use --tokens")
    if host in _WILDCARDS and not names:
        raise InvalidInputError("listening everywhere, say by which name clients reach this server: --allow-host NAME")


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def _verify(opened: MemoryStore, tokens: Tokens) -> Callable[[str], UserMemory | None]:
    # One embedder serves all users: the first request should not wait for its weights.
    opened.user(tokens.users[0]).loading.start()

    def verify(token: str) -> UserMemory | None:
        user = tokens.user(token)
        return None if user is None else opened.user(user)

    return verify


def _serve(made: MCPServer[Any], *, host: str, port: int, names: list[str]) -> None:
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    # Requests must name this server as its clients do: a page in a browser, which can point its own name at this
    # machine (DNS rebinding), cannot.
    own = [*names, *(_LOOPBACK if _is_loopback(host) else [host] * (host not in _WILDCARDS))]
    hosts = [form for name in own for form in (name, f"{name}:*")]
    security = TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=[f"{scheme}://{form}" for scheme in ("http", "https") for form in hosts]
    )
    app = made.streamable_http_app(transport_security=security, host=host)
    # log_config: uvicorn's own writes to stdout. access_log: who asked when is nobody's business.
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_GOODBYE_SECONDS)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidInputError(f"cannot listen at {host}, port {port} ({reason})", port=port) from None
    with listening:
        at = f"[{host}]" if ":" in host else host
        say(f"Serving at http://{at}:{listening.getsockname()[1]}/mcp", stderr=True)
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
