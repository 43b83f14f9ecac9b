"""The examples run as they stand, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


# What would make an example ask a model.
PROVIDERS = ("OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "OLLAMA_")


def run(name: str, folder: Path, *, typed: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(PROVIDERS)},
        input=typed,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_recalls_and_forgets(tmp_path):
    """The quickstart finds the allergy first, prints the prompt block, and forgets the session but nothing else."""
    lines = run("quickstart.py", tmp_path).splitlines()
    assert lines[0] == "alice has 0 memories"
    assert lines[1].endswith("user: I'm allergic to peanuts")
    assert lines[2].startswith("<memory-")  # nothing else fits the question
    assert lines[-1] == "and now 2; bob has 0"
    assert (tmp_path / "memories.db").exists()


def test_the_chat_loop_recalls_what_was_typed(tmp_path):
    """What the user typed first is in the block for what they type next, and an empty line ends the chat."""
    printed = run("chat_loop.py", tmp_path, typed="I play the cello\nWhich instrument do I play?\n\nnot read\n")
    first, second, rest = printed.split("[no model: ")
    assert "cello" not in first
    assert '"text": "I play the cello"' in second
    assert rest.count("\n") == 1


@pytest.mark.parametrize("name", ["four_providers.py", "fastapi_service.py"])
def test_without_a_key_it_says_what_to_set(name, tmp_path):
    """An example that asks a model says in one line what it needs, and makes no store."""
    printed = run(name, tmp_path)
    assert printed.count("\n") == 1
    assert "OPENAI_API_KEY" in printed or "pip install" in printed
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_run_here():
    """No example is left out of this file."""
    here = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in here] == []
