"""Each environment has the SDKs of some adapters; what cannot be imported in this one is run in another (Makefile)."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from memlayer.injector import Injector

# What is there where the folder or file is meant to run, and nowhere else.
_NEEDS = {"frameworks": "langchain", "proxy": "litellm_enterprise", "providers/test_litellm.py": "litellm"}

collect_ignore = [str(Path(__file__).parent / name) for name, module in _NEEDS.items() if find_spec(module) is None]

# Without it LiteLLM asks a server for its price map as soon as it is imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine is no failure: recall may take its time, except where a test says how long."""
    monkeypatch.setitem(Injector.__init__.__kwdefaults__, "recall_timeout", 60.0)  # type: ignore[arg-type]
