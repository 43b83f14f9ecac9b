"""The README's own code runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

README = Path(__file__).parent.parent / "README.md"


def test_the_code_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    """All Python blocks, one after the other in an empty folder, run; what a comment after a print says is printed."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    with Loopback(wire.Chatbot("Peanuts.")) as server:
        environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"}
        result = subprocess.run(
            [sys.executable, "-c", "\n".join(blocks)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    [request] = server.bodies
    assert "I'm allergic to peanuts" in request["messages"][0]["content"][1]["text"]
    assert result.returncode == 0, result.stderr
    promised = re.findall(r"print\(.*\)  # (I'm allergic to peanuts|0|2)\b", "\n".join(blocks))
    printed = result.stdout.splitlines()
    assert promised == ["I'm allergic to peanuts", "0", "2"]
    assert all(line in printed for line in promised)
    assert printed[0] == "I'm allergic to peanuts"
    assert "does not open the store" in printed[-1]


def test_the_readme_is_short_and_its_code_comes_early():
    """The README is short (two screens and a half), with code that runs within the first twenty lines."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 135
    assert lines.index("```python") < 20
