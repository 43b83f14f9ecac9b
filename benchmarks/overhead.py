"""What a wrapped call costs beyond the provider's answer.

The real OpenAI client against a server on loopback, plain and wrapped in turns, so that both see the same machine. The
embedder costs nothing (a fixed vector) and recall is stubbed with memories that were found before, so what is left is
memlayer's own work: reading the request, the ledger, rendering, the copy, reading the reply, and remembering both
turns. Remembering is measured apart too ("remember two": the same two turns by `remember_many`), for it is an fsync.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from benchmarks.data import Known
from benchmarks.figures import Figure, timed
from memlayer import MemoryStore, RawKey, Turn, wrap
from memlayer.injector import Injector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memlayer.memory import UserMemory

__all__ = ["measure"]

_SECTION = "A wrapped call, recall and embedding stubbed"
# In milliseconds, by the number of messages; how many are asked for is the issue of whoever changes this.
_LIMITS = {1: 1.0, 20: 1.0, 200: 5.0}

ANSWER = json.dumps({
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Noted."}}],
}).encode()  # fmt: skip


class Server(BaseHTTPRequestHandler):
    """Answers at once."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        pass


def conversation(messages: int) -> list[Any]:
    """So many messages of 2 kB, the last one the user's."""
    roles = ("user", "assistant") if messages % 2 else ("assistant", "user")
    return [{"role": roles[n % 2], "content": f"message {n} " + "lorem ipsum dolor " * 110} for n in range(messages)]


def _medians(memory: UserMemory, other: UserMemory, client: OpenAI, *, messages: int, rounds: int) -> dict[str, float]:
    """In milliseconds, for one length of conversation."""
    from memlayer.adapters.openai import CHAT

    wrapped = wrap(client, memory, session="bench")
    injector = Injector(memory, session="bench")
    # Of another user: what is written of this one has to be taken into RAM by the next call.
    found: dict[str, list[float]] = {"plain": [], "wrapped": [], "before": [], "after": [], "remember two": []}
    for round_ in range(rounds):
        # Between two turns somebody reads and types, for longer than this.
        time.sleep(0.03)
        body = conversation(messages)
        body[-1] = {"role": "user", "content": f"question {round_} of many, what do I like to eat?"}
        found["plain"].append(timed(partial(client.chat.completions.create, model="m", messages=body)))
        found["wrapped"].append(timed(partial(wrapped.chat.completions.create, model="m", messages=body)))
        body[-1] = {"role": "user", "content": f"question {round_} once more, what do I like to eat?"}
        time.sleep(0.03)
        start = time.perf_counter()
        call = injector.before(CHAT, {"model": "m", "messages": body})
        found["before"].append((time.perf_counter() - start) * 1e3)
        found["after"].append(timed(partial(call.after, json.loads(ANSWER))))
        turns = [Turn(text=f"plain {round_}"), Turn(text="Noted.", role="assistant")]
        found["remember two"].append(timed(partial(other.remember_many, turns)))
    return {name: statistics.median(values) for name, values in found.items()}


def serve() -> None:
    """The provider, in a process of its own: in this one it would wait for our threads, and we for its."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measure(*, rounds: int) -> Iterator[Figure]:
    """For conversations of one message, of twenty and of two hundred."""
    with (
        _provider() as url,
        tempfile.TemporaryDirectory() as folder,
        OpenAI(base_url=url, api_key="none") as client,
        MemoryStore.open(Path(folder) / "bench.db", keys=RawKey(bytes(32)), embedder=Known()) as store,
    ):
        memory = store.user("bench")
        memory.remember_many(
            [Turn(text=f"I like dish number {number}, with a good deal of salt") for number in range(100)]
        )
        hits = memory.recall("dish", k=10, min_score=0)
        memory.recall = lambda *_, **__: hits  # type: ignore[method-assign]  # the stub
        for messages in (1, 20, 200):
            times = _medians(memory, store.user("other"), client, messages=messages, rounds=rounds)
            added = times["wrapped"] - times["plain"]
            yield Figure(
                section=_SECTION, name=f"added to a call of {messages} messages", value=added, unit="ms",
                floor=times["remember two"], floor_name="remembering the same two turns by themselves",
            )  # fmt: skip
            yield Figure(
                section=_SECTION, name=f"of that beyond the remembering, {messages} messages", unit="ms",
                value=added - times["remember two"], limit=_LIMITS[messages],
            )  # fmt: skip
        wraps = statistics.median(timed(lambda: wrap(client, memory)) * 1e3 for _ in range(rounds))
        yield Figure(section=_SECTION, name="wrap()", value=wraps, unit="us", limit=100)


@contextmanager
def _provider() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.overhead"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # noqa: S101
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.kill()


if __name__ == "__main__":
    serve()
