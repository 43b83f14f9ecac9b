"""A server on 127.0.0.1 that speaks whatever wire format it is given, and keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a client sent.

    Attributes:
        path: with its query.
        body: the JSON that was sent, or None.
        headers: with names in lower case.
    """

    path: str
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What the server sends.

    Attributes:
        body: JSON that is sent whole; or an iterable of bytes, sent one by one in chunks as they come. An exception
            that the iterable raises cuts the connection off in the middle.
        kind: the content type.
    """

    body: Any
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Loopback:
    """The server; a context manager.

    Args:
        answer: makes the answer to a request. It runs in the server's threads.

    Attributes:
        url: such as "http://127.0.0.1:40001", without a slash at the end.
        requests: what it was sent, in order of arrival.
    """

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.path, json.loads(raw) if raw else None, headers)
                server.requests.append(request)
                self._send(server.answer(request))

            do_GET = do_DELETE = do_POST

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                self.send_header("content-type", answer.kind)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if isinstance(answer.body, Iterable) and not isinstance(answer.body, dict | list | str | bytes):
                    self.send_header("transfer-encoding", "chunked")
                    self.end_headers()
                    try:
                        for part in answer.body:
                            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                            self.wfile.flush()
                        self.wfile.write(b"0\r\n\r\n")
                    except Exception:  # noqa: BLE001  cut off on purpose, or the client has gone
                        self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256  # with the usual 5, some of 50 connections at once are reset

        self._http = Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is no news
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def bodies(self) -> list[Any]:
        """The JSON that was sent, in order of arrival."""
        return [request.body for request in self.requests]


def sse(events: Iterable[tuple[str | None, Any]]) -> Iterator[bytes]:
    """Server-sent events: (name or None, JSON or a str that is sent as it is)."""
    for name, data in events:
        head = f"event: {name}\n" if name else ""
        yield f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
