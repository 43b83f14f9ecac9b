"""examples/four_providers.py, with each provider's own SDK against a server that speaks its format."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.loopback import Loopback

EXAMPLE = Path(__file__).parents[3] / "examples" / "four_providers.py"
BASE_URLS = {
    "OPENAI_API_KEY": ("openai", "OPENAI_BASE_URL", "/v1"),
    "ANTHROPIC_API_KEY": ("anthropic", "ANTHROPIC_BASE_URL", ""),
    "GEMINI_API_KEY": ("google_genai", "GOOGLE_GEMINI_BASE_URL", ""),
    "OLLAMA_HOST": ("ollama", "OLLAMA_HOST", ""),
}

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openai", "anthropic", "google", "ollama")),
    reason="the four SDKs are in another environment",
)


def example() -> Any:
    spec = importlib.util.spec_from_file_location("four_providers", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def closing(answer: Any) -> Any:
    """Answers that end the connection: the oldest ollama has no way to close its client."""
    return lambda request: replace(made := answer(request), headers={**made.headers, "connection": "close"})


@pytest.fixture
def servers(monkeypatch):
    """A server for each provider, which the variables of the environment name."""
    for name in ("GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        made = {}
        for key, (wire, variable, path) in BASE_URLS.items():
            chatbot = import_module(f"tests.adapters.wires.{wire}").Chatbot
            reply = f"{wire} says: no nuts"
            made[key] = stack.enter_context(Loopback(closing(chatbot(reply))))
            monkeypatch.setenv(key, "none")
            monkeypatch.setenv(variable, made[key].url + path)
        yield made


def test_what_the_first_is_told_all_four_know(servers, alice, capsys):
    """The fact goes to the first provider only; each of the four gets it back from memory, in a chat of its own."""
    module = example()
    assert set(module.PROVIDERS) == set(BASE_URLS)
    module.converse(alice, module.PROVIDERS)
    told = [variable for variable, server in servers.items() if len(server.bodies) == 2]
    assert told == ["OPENAI_API_KEY"]
    assert module.TOLD in json.dumps(servers["OPENAI_API_KEY"].bodies[0])
    for server in servers.values():
        sent = json.dumps(server.bodies[-1])
        assert sent.count(module.ASKED) == 1
        assert sent.count(module.TOLD) == 1
    printed = capsys.readouterr().out
    for wire, _, _ in BASE_URLS.values():
        assert printed.count(f": {wire} says: no nuts\n") == (2 if wire == "openai" else 1)


def test_the_four_conversations_are_remembered(servers, alice):
    """Both sides of each conversation are there once, under the session that names the provider."""
    module = example()
    module.converse(alice, module.PROVIDERS)
    remembered = [(turn.session, turn.role, turn.text) for turn in alice.history()]
    expected = [("openai", "user", module.TOLD), ("openai", "assistant", "openai says: no nuts")]
    for session, wire in (
        ("openai", "openai"),
        ("anthropic", "anthropic"),
        ("google", "google_genai"),
        ("ollama", "ollama"),
    ):
        expected += [(session, "user", module.ASKED), (session, "assistant", f"{wire} says: no nuts")]
    assert remembered == expected


def test_a_provider_whose_sdk_is_missing_is_named(servers, alice, capsys, monkeypatch):
    """Where an SDK is not installed the example says so, and tells the next provider instead."""
    monkeypatch.setitem(sys.modules, "openai", None)
    module = example()
    module.converse(alice, module.PROVIDERS)
    assert "openai: openai is not installed" in capsys.readouterr().out
    assert [len(server.bodies) for server in servers.values()] == [0, 2, 1, 1]
