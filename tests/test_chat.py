"""`memlayer chat`: what it says, what it remembers, and what it does not let a model do to the terminal."""

from __future__ import annotations

import base64
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from typer.testing import CliRunner

from memlayer import MemoryStore, RawKey
from memlayer.cli.app import app
from memlayer.prompt import is_block
from tests.adapters.loopback import Answer, Loopback, Request
from tests.adapters.wires import openai as wire

if TYPE_CHECKING:
    from typer.testing import Result

needs_litellm = pytest.mark.skipif(find_spec("litellm") is None, reason="LiteLLM is not in this environment")
# LiteLLM's own, of which there are many.
pytestmark = pytest.mark.filterwarnings("ignore")

KEY = bytes(range(1, 33))
SECONDS = 90  # For what takes five on an idle machine: the weights and LiteLLM are loaded.
QUESTION = "What is there for me to eat?"
FACT = "I am allergic to peanuts"


class Chat(Protocol):
    def __call__(self, *lines: str, options: tuple[str, ...] = (), fails: int = 0) -> Result: ...


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that the command finds, with its key, by the environment."""
    path = tmp_path / "memories.db"
    MemoryStore.open(path, keys=RawKey(KEY)).close()
    monkeypatch.setenv("MEMLAYER_STORE", str(path))
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(KEY).decode())
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return path


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(wire.Chatbot("Rice and beans.")) as running:
        yield running


@pytest.fixture
def chat(store: Path, server: Loopback) -> Chat:
    """Types lines into a chat of ana's, to the end; in this process."""

    def typed(*lines: str, options: tuple[str, ...] = (), fails: int = 0) -> Result:
        arguments = ["chat", *arguments_for(server), *options]
        result = CliRunner().invoke(app, arguments, input="".join(f"{line}\n" for line in lines))
        assert result.exit_code == fails, result.output
        assert "Traceback" not in result.output
        return result

    return typed


def arguments_for(server: Loopback) -> list[str]:
    return ["--model", "openai/gpt-test", "--user", "ana", "--api-base", f"{server.url}/v1"]


def turns(store: Path) -> list[tuple[str, str]]:
    """What is remembered of ana."""
    with MemoryStore.open(store, keys=RawKey(KEY)) as opened:
        return [(turn.role, turn.text) for turn in opened.user("ana").history()]


def blocks(body: Any) -> list[str]:
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [part["text"] for content in contents for part in content if is_block(part["text"])]


# ---------------------------------------------------------------- a conversation


@needs_litellm
def test_a_conversation(chat, server, store):
    """Each line is answered by the model, streamed, with the conversation so far; both sides are remembered."""
    done = chat(FACT, "", "And what of cashew nuts, may I eat those?")
    assert (done.stdout, done.stderr) == ("Rice and beans.\nRice and beans.\n", "")
    first, second = server.bodies
    assert first["stream"] is second["stream"] is True
    assert first["messages"] == [{"role": "user", "content": FACT}]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    said = [("user", FACT), ("assistant", "Rice and beans.")]
    assert turns(store) == [*said, ("user", "And what of cashew nuts, may I eat those?"), said[1]]


@needs_litellm
def test_a_later_chat_remembers(chat, server, store):
    """The next chat is given what the first one left; /why shows it with its score, /forget takes it away."""
    chat(FACT)
    done = chat(QUESTION, "/why", "/forget 1", "/why", "/forget 1")
    assert FACT in blocks(server.bodies[-1])[0]
    reply, header, first, second, forgotten, *again, nothing = done.stdout.splitlines()
    assert (reply, header.split()) == ("Rice and beans.", ["#", "score", "date", "(UTC)", "who", "text"])
    assert again == [header, first, second]
    assert (forgotten, nothing) == ("Forgotten: 1", "There is no such memory.")
    number, score, _, _, who, *text = first.split()
    assert (number, who, " ".join(text)) == ("1", "assistant", "Rice and beans.")
    assert 0 < float(second.split()[1]) <= float(score) < 1
    assert second.rstrip().endswith(FACT)
    assert len(turns(store)) == 3


@needs_litellm
def test_what_is_forgotten_is_sent_no_more(chat, server, store):
    """Forgetting a turn of this very conversation takes it out of what is sent with the next request, too."""
    chat(FACT, "/recall what am I allergic to?", "/forget 1", QUESTION, "/recall allergic peanuts")
    assert FACT not in str(server.bodies[-1])
    assert FACT not in [text for _, text in turns(store)]


@needs_litellm
def test_recall_and_forget_by_id(chat, store):
    """/recall numbers what it finds and asks no model; /forget takes an id as well."""
    with MemoryStore.open(store, keys=RawKey(KEY)) as opened:
        opened.user("ana").remember(FACT, id="allergy")
        opened.user("bob").remember("I am fond of peanuts", id="fondness")
    done = chat("/recall peanuts", "/forget fondness", "/forget allergy", "/recall peanuts", "/recall", "/forget")
    rows = done.stdout.splitlines()
    assert rows[1].split()[0] == "1"
    assert rows[1].endswith(FACT)
    assert rows[2:] == ["There is no such memory.", "Forgotten: 1", "Nothing found."]
    assert [line.partition("?")[0] for line in done.stderr.splitlines()] == ["What should be recalled", "Which one"]
    with MemoryStore.open(store, keys=RawKey(KEY)) as opened:
        assert [turn.text for turn in opened.user("bob").history()] == ["I am fond of peanuts"]


@needs_litellm
def test_a_session_is_gone_on_with(chat, server):
    """--session begins with the turns that it has; without it each chat is a conversation of its own."""
    chat(FACT, options=("--session", "kitchen"))
    chat(QUESTION, options=("--session", "kitchen"))
    chat(QUESTION)
    _, second, third = server.bodies
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert len(third["messages"]) == 1


@needs_litellm
def test_commands_that_need_no_model(chat, server):
    """/help, /why before anything was said, an unknown command, and /quit, after which nothing is read."""
    done = chat("/help", "/why", "/nope", "/quit", QUESTION)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("/recall", "/why", "/forget", "/help", "/quit"),
        "Nothing",
    ]
    assert done.stderr == "There is no command /nope; /help shows them.\n"
    assert server.bodies == []


# ---------------------------------------------------------------- what goes wrong


@needs_litellm
def test_an_answer_cannot_act_on_the_terminal(chat, server):
    """Lines stay lines; every other control character of an answer, and of what is listed, comes as an escape."""
    server.answer = wire.Chatbot("one\n\ttwo \x1b]0;title\x07 \u202ethree\x9b31m")
    done = chat(FACT, "/recall title")
    escaped = "\\x1b]0;title\\x07 \\u202ethree\\x9b31m"
    assert done.stdout.startswith(f"one\n    two {escaped}\n")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.output)


@needs_litellm
def test_a_provider_that_fails_is_one_line(chat, server, store):
    """An error of the provider's is one line, and as if the line had not been typed; the chat goes on."""
    server.answer = wire.Chatbot("Rice.", failures=1, status=401)
    done = chat(FACT, QUESTION)
    (line,) = done.stderr.splitlines()
    assert line.startswith("memlayer: no answer: AuthenticationError: ")
    assert done.stdout == "Rice.\n"
    assert [message["content"] for message in server.bodies[-1]["messages"]] == [QUESTION]
    assert turns(store) == [("user", QUESTION), ("assistant", "Rice.")]


@needs_litellm
def test_an_answer_that_breaks_off_keeps_what_was_asked(chat, server, store):
    """What came stays on the screen, the user's turn in memory, and the chat goes on."""
    server.answer = wire.Chatbot("Rice and beans.", cut=2)
    done = chat(FACT, "/help")
    assert done.stdout.startswith("Rice and\n/recall")
    assert len(done.stderr.splitlines()) == 1
    assert turns(store) == [("user", FACT)]


@needs_litellm
def test_a_model_of_no_provider(chat):
    """A model that LiteLLM cannot place is refused before anything is typed."""
    done = chat(options=("--model", "nothing-of-the-kind", "--api-base", "http://127.0.0.1:9"), fails=2)
    assert done.stderr.startswith("memlayer: LiteLLM knows no provider for the model nothing-of-the-kind;")


@needs_litellm
def test_a_store_that_is_not_there(chat, tmp_path):
    """A mistyped store is no new one."""
    done = chat(options=("--store", str(tmp_path / "typo.db")), fails=7)
    assert "make one with: memlayer init" in done.stderr


def test_without_litellm_it_says_what_to_install(store):
    """Where LiteLLM is missing the command says what to install, with the exit code of every missing extra."""
    program = "import sys; sys.modules['litellm'] = None; from memlayer.cli import main; main()"
    arguments = ["chat", "--model", "ollama/llama3", "--user", "ana"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == 'memlayer: memlayer chat needs LiteLLM: pip install "memlayer-sdk[litellm]"\n'


def test_its_help_loads_no_litellm():
    """`memlayer chat --help` names the commands' way, and imports neither LiteLLM nor a model."""
    program = (
        "import sys; from memlayer.cli import main\n"
        "try: main()\n"
        "except SystemExit: sys.exit(bool({'litellm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "chat", "--help"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Talk with a model that remembers." in done.stdout


# ---------------------------------------------------------------- at a terminal


class Terminal:
    """`memlayer chat` in a child process with a terminal of its own; a context manager."""

    def __init__(self, arguments: list[str]) -> None:
        import pty

        self.seen = ""
        self._screen, inner = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "memlayer", "chat", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            # Ctrl-C goes to who owns the terminal.
            preexec_fn=own_terminal,
            env=os.environ | {"TERM": "dumb", "COLUMNS": "120"},
        )
        os.close(inner)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def insist(self, key: str, text: str) -> None:
        """Types a key until this text is shown: Python's readline may take note of Ctrl-C and act on it at the next key
        only, and whoever sits there types it again."""
        for _ in range(SECONDS):
            self.type(key)
            if select.select([self._screen], [], [], 1)[0]:
                break
        self.wait_for(text)

    def wait_for(self, text: str) -> str:
        """All that has been shown since the last time, up to this text."""
        until = time.monotonic() + SECONDS
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self._screen], [], [], 1)[0]:
                self.seen += os.read(self._screen, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before.replace("\r\n", "\n")

    def end(self) -> int:
        return self._process.wait(SECONDS)


def own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    # A shell has what it starts in the background ignore Ctrl-C, and so would this test's children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@needs_litellm
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("words", [0, 2], ids=["before its first word", "after some words"])
def test_ctrl_c_stops_an_answer_and_ctrl_d_the_chat(store, server, words):
    """Ctrl-C in an answer keeps what was asked, drops what came, and goes on; at the prompt it gives the line up."""
    go_on = threading.Event()
    asked = threading.Event()

    def slowly(request: Request) -> Answer:
        whole = iter(wire.Chatbot("Rice and beans, said slowly.")(request).body)
        asked.set()
        if not words:
            go_on.wait(SECONDS)

        def parts() -> Iterator[bytes]:
            for _ in range(1 + words):
                yield next(whole)
            go_on.wait(SECONDS)
            yield from whole

        return Answer(parts(), kind="text/event-stream")

    server.answer = slowly
    try:
        with Terminal(arguments_for(server)) as terminal:
            greeting = terminal.wait_for("> ")
            assert "openai/gpt-test, with the memory of ana." in greeting
            terminal.type(f"{FACT}\n")
            assert asked.wait(SECONDS)
            terminal.wait_for("Rice and" if words else FACT)
            terminal.type("\x03")
            terminal.wait_for("Stopped.")
            terminal.wait_for("> ")
            server.answer = wire.Chatbot("Beans.")
            terminal.type("half a line")
            terminal.wait_for("half a line")
            terminal.insist("\x03", "> ")
            terminal.type(f"{QUESTION}\n")
            terminal.wait_for("Beans.")
            terminal.wait_for("> ")
            terminal.type("\x04")
            assert terminal.end() == 0
    finally:
        go_on.set()
    assert turns(store) == [("user", FACT), ("user", QUESTION), ("assistant", "Beans.")]
    said = [(message["role"], message["content"]) for message in server.bodies[-1]["messages"]]
    partial = [("assistant", "Rice and")] if words else []
    assert said == [("user", FACT), *partial, ("user", QUESTION)]
