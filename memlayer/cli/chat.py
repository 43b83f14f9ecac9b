"""The command chat: a chatbot at the terminal, on any model that LiteLLM knows, with one user's memory.

Every turn is remembered as it is said. What begins with / is no turn but a command: /recall, /forget, /why, /help,
/quit. The conversation goes to stdout, all else to stderr, so that a script can pipe one through it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import sys
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayer.cli.opening import at_terminal, open_existing
from memlayer.cli.options import (
    DEFAULT_STORE,
    EmbedderName,
    KeyFilePath,
    PassphraseAsked,
    RecoveryKeyAsked,
    Store,
    User,
)
from memlayer.cli.output import print_table, say, shown, time, told
from memlayer.errors import InvalidInputError, MemlayerError, MissingExtraError
from memlayer.injector import Injector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from memlayer.injector import Call
    from memlayer.memory import UserMemory
    from memlayer.records import Hit

__all__ = ["chat"]

_HELP = """\
/recall QUERY   what is remembered that fits it, numbered
/why            what the last request was given of it, and how well each fitted
/forget WHICH   forget one, by its number in the last list or by its id
/help           this
/quit           end; so does Ctrl-D. Ctrl-C stops an answer."""

# Somebody is waiting at a terminal, who would rather wait than be answered without memory.
_RECALL_SECONDS = 10.0
# A conversation that is gone on with begins with its last turns; what was before is what recall is for.
_TURNS_TAKEN_UP = 40
_LONGEST_ERROR = 300
_LEAST = 70


def chat(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="As LiteLLM calls it, such as ollama/llama3.")
    ],
    user: User,
    store: Store = DEFAULT_STORE,
    embedder: EmbedderName = None,
    session: Annotated[
        str | None,
        typer.Option("--session", "-s", metavar="NAME", help="Go on with this conversation; by default a new one."),
    ] = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", metavar="URL", help="Where the model is, if not at its provider's.")
    ] = None,
    passphrase: PassphraseAsked = False,
    key_file: KeyFilePath = None,
    recovery_key: RecoveryKeyAsked = False,
) -> None:
    """Talk with a model that remembers.

    Any model that LiteLLM knows, at a provider (openai/gpt-5, with OPENAI_API_KEY set) or on this machine
    (ollama/llama3). What you say and what it answers is remembered; what fits is given to it with each request, and so
    leaves this machine when the model is elsewhere. /help shows what else can be typed.
    """
    if not _is_installed():
        raise MissingExtraError('memlayer chat needs LiteLLM: pip install "memlayer-sdk[litellm]"')
    # Two that begin in one second are two conversations.
    name = session or f"chat-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    with (
        open_existing(
            store, embedder=embedder, passphrase=passphrase, key_file=key_file, recovery_key=recovery_key
        ) as opened,
        _quiet(),
    ):
        memory = opened.user(user)
        # Made first: the embedder is loaded while LiteLLM is imported, which takes seconds too.
        injector = Injector(memory, session=name, recall_timeout=_RECALL_SECONDS)
        talk = _Talk(memory, injector, session=name, ask=_model(model, api_base))
        if at_terminal():
            say(f"{model}, with the memory of {user}. /help shows what can be typed, Ctrl-D ends.", stderr=True)
        while (line := _typed()) is not None and line.strip() != "/quit":
            talk.take(line)


class _Talk:
    """One conversation at the terminal."""

    def __init__(self, memory: UserMemory, injector: Injector, *, session: str, ask: Callable[[Any], Any]) -> None:
        self._memory = memory
        self._injector = injector
        self._session = session
        self._ask = ask
        turns = memory.history(session=session, limit=_TURNS_TAKEN_UP)
        self._messages = [
            {"role": turn.role, "content": turn.text} for turn in turns if turn.role in ("user", "assistant")
        ]
        self._last: Call | None = None
        self._listed: Sequence[Hit] = ()

    def take(self, line: str) -> None:
        """Answers what was typed."""
        word, _, rest = line.strip().partition(" ")
        commands = {"/recall": self._recall, "/why": self._why, "/forget": self._forget, "/help": self._help}
        try:
            if not word.startswith("/"):
                if word:
                    self._answer(line.strip())
            elif word in commands:
                commands[word](rest.strip())
            else:
                say(f"There is no command {word}; /help shows them.", stderr=True)
        except MemlayerError as error:
            say(f"memlayer: {told(error)}", stderr=True)
        except KeyboardInterrupt:
            say("Interrupted.", stderr=True)

    # ---------------------------------------------------------------- a turn

    def _answer(self, text: str) -> None:
        from memlayer.adapters.litellm_formats import Chat

        codec = Chat()
        messages = [*self._messages, {"role": "user", "content": text}]
        call = self._injector.before(codec, {"messages": messages})
        self._last = call
        said: list[str] = []
        try:
            with call:
                events = call.tee(iter(self._ask(call.request["messages"])))
            with contextlib.closing(events):
                for event in events:
                    piece = codec.event(event).text
                    said.append(piece)
                    print(_as_it_comes(piece), end="", flush=True)
        except KeyboardInterrupt:
            call.end(broken=True)  # Where the request was still on its way, no stream has done it.
            print(flush=True)
            say("Stopped.", stderr=True)
        except Exception as error:  # noqa: BLE001  a hundred providers, each with errors of its own; the chat goes on
            if said:
                print(flush=True)
            say(f"memlayer: no answer: {_why_not(error)}", stderr=True)
            if not said:
                return  # Nothing was said back and nothing remembered: it is as if it had not been typed.
        else:
            print(flush=True)
        reply = "".join(said)
        self._messages = [*messages, *([{"role": "assistant", "content": reply}] if reply.strip() else [])]

    # ---------------------------------------------------------------- commands

    def _recall(self, query: str) -> None:
        if not query:
            say("What should be recalled? /recall QUERY", stderr=True)
            return
        self._list(self._memory.recall(query), otherwise="Nothing found.")

    def _why(self, _: str) -> None:
        call, prepared = self._last, None if self._last is None else self._last.prepared
        if call is None:
            say("Nothing has been asked yet.")
        elif prepared is None:
            health = self._injector.health
            say(f"Memory stayed out of it ({health.error or 'it is paused'}).")
        else:
            self._list(prepared.hits, otherwise="Nothing new was put into the last request.")
            earlier = _blocks(call.request["messages"][:-1])
            if earlier:
                say(f"What was put in earlier in this conversation still stands there: {earlier} times.")

    def _forget(self, which: str) -> None:
        if not which:
            say("Which one? /forget NUMBER, from the last list, or /forget ID", stderr=True)
            return
        listed = {str(number): hit for number, hit in enumerate(self._listed, start=1)}
        found = listed.get(which) or next((hit for hit in self._listed if hit.id == which), None)
        forgotten = self._memory.forget(which if found is None else found.id)
        if forgotten and found is not None and found.session == self._session:
            # It was said in this very conversation, which is sent along with each request.
            self._messages = [message for message in self._messages if message["content"] != found.text]
        say(f"Forgotten: {forgotten}" if forgotten else "There is no such memory.")

    def _help(self, _: str) -> None:
        for line in _HELP.splitlines():
            say(line)

    def _list(self, hits: Sequence[Hit], *, otherwise: str) -> None:
        self._listed = hits
        if not hits:
            say(otherwise)
            return
        print_table(
            ["#", "score", "date (UTC)", "who", "text"],
            [
                [str(number), f"{hit.score:.3f}", time(hit.at), hit.role, hit.text]
                for number, hit in enumerate(hits, start=1)
            ],
            right=["#", "score"],
            wrapped=["text"],
            least=_LEAST,
        )


def _is_installed() -> bool:
    # Looked for, not imported: that takes seconds, and comes after the questions for a key.
    try:
        return importlib.util.find_spec("litellm") is not None
    except ValueError:
        return False


def _model(model: str, api_base: str | None) -> Callable[[Any], Any]:
    """What asks the model.

    Raises:
        InvalidInputError: LiteLLM knows no provider for it.
    """
    # Otherwise LiteLLM asks the network for its list of prices while it is being imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True  # It would print advice on every error.
    try:
        litellm.get_llm_provider(model=model, api_base=api_base)
    except Exception:  # noqa: BLE001  what it raises is no promise of LiteLLM's
        raise InvalidInputError(
            f"LiteLLM knows no provider for the model {model}; name both, such as ollama/llama3"
        ) from None

    def ask(messages: Any) -> Any:
        return litellm.completion(model=model, messages=messages, stream=True, api_base=api_base)

    return ask


def _typed() -> str | None:
    """The next line, or None at the end."""
    while True:
        try:
            if not at_terminal():
                return sys.stdin.readline() or None
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  arrow keys in `input`; not on every platform
            return input("> ")
        except EOFError:
            print(flush=True)
            return None
        except KeyboardInterrupt:
            say("", stderr=True)  # The line is given up, as in a shell.


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what LiteLLM logs and warns of, which is for its own developers; what matters comes as an error."""
    if os.environ.get("MEMLAYER_DEBUG"):
        yield
        return
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_it_comes(piece: str) -> str:
    """A piece of an answer with its lines, and nothing else that acts on a terminal."""
    return "\n".join(shown(line.replace("\t", "    ").removesuffix("\r")) for line in piece.split("\n"))


def _why_not(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"


def _blocks(messages: Any) -> int:
    """How many blocks of memories stand in the messages."""
    from memlayer.prompt import is_block

    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return sum(is_block(part.get("text", "")) for content in contents for part in content)
