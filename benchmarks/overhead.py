"""What a wrapped call costs beyond the provider's answer: `make bench`, or python benchmarks/overhead.py.

The real OpenAI client against a server on loopback, plain and wrapped in turns, so that both see the same machine. The
embedder costs nothing (a fixed vector) and recall is stubbed with memories that were found before, so what is left is
memlayer's own work: reading the request, the ledger, rendering, the copy, reading the reply, and remembering both
turns. Remembering is measured apart too ("remember two": the same two turns by `remember_many`), for it is an fsync.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from openai import OpenAI

from memlayer import EmbedderIdentity, MemoryStore, RawKey, Turn, wrap
from memlayer.injector import Injector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from memlayer.memory import UserMemory

ANSWER = json.dumps({
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Noted."}}],
}).encode()  # fmt: skip


class Fixed:
    """An embedder that costs nothing."""

    identity = EmbedderIdentity(model="benchmarks/fixed", dimensions=384)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.full((len(texts), 384), 384**-0.5, dtype=np.float32)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        return np.full(384, 384**-0.5, dtype=np.float32)


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


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def p50(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def measure(memory: UserMemory, client: OpenAI, *, messages: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds for one length of conversation."""
    from memlayer.adapters.openai import CHAT

    wrapped = wrap(client, memory, session="bench")
    injector = Injector(memory, session="bench")
    found: dict[str, list[float]] = {"plain": [], "wrapped": [], "before": [], "after": [], "remember two": []}
    for round_ in range(rounds):
        body = conversation(messages)
        body[-1] = {"role": "user", "content": f"question {round_} of many, what do I like to eat?"}
        found["plain"].append(milliseconds(lambda b=body: client.chat.completions.create(model="m", messages=b)))
        found["wrapped"].append(milliseconds(lambda b=body: wrapped.chat.completions.create(model="m", messages=b)))
        body[-1] = {"role": "user", "content": f"question {round_} once more, what do I like to eat?"}
        start = time.perf_counter()
        call = injector.before(CHAT, {"model": "m", "messages": body})
        middle = time.perf_counter()
        call.after(json.loads(ANSWER))
        found["before"].append((middle - start) * 1e3)
        found["after"].append((time.perf_counter() - middle) * 1e3)
        turns = [Turn(text=f"plain {round_}"), Turn(text="Noted.", role="assistant")]
        found["remember two"].append(milliseconds(lambda t=turns: memory.remember_many(t)))
    medians = {name: p50(values) for name, values in found.items()}
    medians["wrapped - plain"] = round(medians["wrapped"] - medians["plain"], 3)
    medians["beyond remembering"] = round(medians["wrapped - plain"] - medians["remember two"], 3)
    return medians


def serve() -> None:
    """The provider, in a process of its own: in this one it would wait for our threads, and we for its."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def report(memory: UserMemory, client: OpenAI, *, rounds: int) -> dict[str, Any]:
    """All figures."""
    memory.remember_many([Turn(text=f"I like dish number {number}, with a good deal of salt") for number in range(100)])
    hits = memory.recall("dish", k=10)
    memory.recall = lambda *_, **__: hits  # type: ignore[method-assign]  # the stub
    found: dict[str, Any] = {
        f"{messages} messages": measure(memory, client, messages=messages, rounds=rounds) for messages in (1, 20, 200)
    }
    wrap(client, memory)
    found["wrap, microseconds"] = p50([milliseconds(lambda: wrap(client, memory)) * 1e3 for _ in range(rounds)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What a wrapped call costs beyond the provider's answer.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert server.stdout is not None  # noqa: S101
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            OpenAI(base_url=url, api_key="none") as client,
            MemoryStore.open(Path(folder) / "bench.db", keys=RawKey(bytes(32)), embedder=Fixed()) as store,
        ):
            print(json.dumps(report(store.user("bench"), client, rounds=options.rounds), indent=2))
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
