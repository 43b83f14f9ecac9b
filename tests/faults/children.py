"""Functions of this folder's modules, run in processes of their own.

A test that holds no open store looks at the files from outside, as SQLite's locks require; a process that is killed or
that crashes takes no test run with it. A child is a fresh interpreter, started by this file's path: it needs neither
pytest nor an installed package `tests`, and sees the same `sys.path` as the test.

The function gets a `Link`, whose other end is the `Child`: messages are JSON, one a line.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent

SCALE = 10 if os.environ.get("MEMLAYER_FAULTS") == "soak" else 1
"""How many times as much as in `make test`. Read on import: for the tests themselves the variable is taken away."""

PATIENCE = 120.0
"""How many seconds a message may take. A bound on what hangs, never what is measured."""


class ChildError(AssertionError):
    """A child ended, or was silent, where a message was due."""


class Link:
    """One end of two pipes with messages in them."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._received = bytearray()

    def send(self, message: object) -> None:
        """Sends a message; of up to 4 kB in one piece, whatever kills the sender."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._writing, data) :]

    def receive(self, *, patience: float = PATIENCE) -> Any:
        """The next message; EOFError when the other end was closed, TimeoutError when it is silent."""
        while b"\n" not in self._received:
            if not select.select([self._reading], [], [], patience)[0]:
                raise TimeoutError
            received = os.read(self._reading, 65_536)
            if not received:
                raise EOFError
            self._received += received
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        return json.loads(line)

    def rest(self) -> list[Any]:
        """All messages until the other end is closed; half a one at the end was never sent."""
        messages = []
        while True:
            try:
                messages.append(self.receive())
            except EOFError:
                return messages

    def close(self) -> None:
        """Closes both pipes."""
        for descriptor in {self._reading, self._writing}:
            os.close(descriptor)


class Child:
    """A function in a process of its own; at the end of the `with` block it is killed if it still runs.

    Args:
        function: of a module of this folder; it is called as `function(link, **arguments)`.
        environment: variables that differ from this process's.
        arguments: anything that JSON can hold.
    """

    def __init__(
        self, function: Callable[..., None], *, environment: dict[str, str] | None = None, **arguments: Any
    ) -> None:
        self.name = f"{function.__module__}:{function.__name__}"
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", __file__, self.name, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path} | (environment or {}),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._link = Link(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.pid = self._process.pid

    def send(self, message: object) -> None:
        """Sends the function a message."""
        self._link.send(message)

    def receive(self, *, patience: float = PATIENCE) -> Any:
        """What the function sent next."""
        try:
            return self._link.receive(patience=patience)
        except EOFError:
            raise ChildError(f"{self.name} ended with {self._process.wait(PATIENCE)}") from None
        except TimeoutError:
            raise ChildError(f"{self.name} is silent for {patience} s") from None

    def has_sent(self) -> bool:
        """Whether a message, or the end, can be received without waiting."""
        return bool(self._link._received or select.select([self._link._reading], [], [], 0)[0])

    def finish(self) -> list[Any]:
        """Waits for the end, which must be a good one; what was sent until then."""
        messages = self._link.rest()
        code = self._process.wait(PATIENCE)
        if code:
            raise ChildError(f"{self.name} ended with {code}")
        return messages

    def kill(self) -> int:
        """Kills it, if it still runs; its return code, negative for a signal."""
        self._process.kill()
        return self._process.wait(PATIENCE)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _main() -> None:
    # Without this folder, which is the first of a script's path: its modules are no top-level ones.
    sys.path.pop(0)
    for name, folder in (("tests", HERE.parent), ("tests.faults", HERE)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    module, _, function = sys.argv[1].partition(":")
    # The pipes get numbers of their own, so that a stray print or read does not mix with the messages.
    link = Link(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    getattr(importlib.import_module(module), function)(link, **json.loads(sys.argv[2]))


if __name__ == "__main__":
    _main()
