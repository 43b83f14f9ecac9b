"""The MCP server against the public conformance runner, `@modelcontextprotocol/conformance`.

The runner is a program for Node 22. `make test` puts both into the environment's folder `conformance`; where they are
not, these tests are skipped.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from memlayer import MemoryStore
from memlayer.adapters.mcp import server
from memlayer.testing import HashingEmbedder
from tests.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = Path(sys.prefix) / "conformance" / "node_modules"
NODE = MODULES / ".bin" / "node"
RUNNER = MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
NOT_APPLICABLE = Path(__file__).with_name("mcp_conformance.yml")

APPLICABLE = [
    "server-initialize",
    "ping",
    "completion-complete",
    "tools-list",
    "tools-call-error",
    "resources-list",
    "prompts-list",
    "server-sse-multiple-streams",
    "dns-rebinding-protection",
]
# It passes, and says little: an answer in text is all that it asks of a tool that is not here.
VACUOUS = ["tools-call-simple-text"]

pytestmark = pytest.mark.skipif(
    not (NODE.exists() and RUNNER.exists()),
    reason="the MCP conformance runner is not installed (npm packages @modelcontextprotocol/conformance and node@22)",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of one user who has something to list, on a free port of 127.0.0.1."""
    path = tmp_path_factory.mktemp("conformance") / "memories.db"
    listening = socket.create_server(("127.0.0.1", 0))
    with MemoryStore.open(path, keys=KEY, embedder=HashingEmbedder()) as store, listening:
        alice = store.user("alice")
        alice.remember("likes tea", session="kitchen")
        app = server(alice).streamable_http_app()
        running = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            for _ in range(400):
                if running.started:
                    break
                time.sleep(0.025)
            assert running.started
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        finally:
            running.should_exit = True
            thread.join(20)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(NODE), str(RUNNER), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("scenario", APPLICABLE)
def test_scenario(url, scenario):
    """The scenario passes, with at least one check and none that failed."""
    result = run("server", "--url", url, "--scenario", scenario)
    assert result.returncode == 0, result.stdout + result.stderr
    passed, checks = map(int, re.findall(r"Passed: (\d+)/(\d+)", result.stdout)[0])
    assert 1 <= passed == checks


def test_every_scenario_passes_or_is_listed_as_not_applicable(url):
    """Of all scenarios of the runner those fail that are listed with their reasons, and no others."""
    result = run("server", "--url", url, "--suite", "all", "--expected-failures", str(NOT_APPLICABLE))
    assert result.returncode == 0, result.stdout[-4000:]
    passed = re.findall(r"^✓ ([\w-]+):", result.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(APPLICABLE + VACUOUS)
    listed = re.findall(r"^  - ([\w-]+)$", NOT_APPLICABLE.read_text(), re.MULTILINE)
    failed = re.findall(r"^[^✓\s] ([\w-]+): \d+ passed, [1-9]", result.stdout, re.MULTILINE)
    assert sorted(failed) == sorted(listed)
