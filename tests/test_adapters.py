"""Rules of the house for adapters, that the files themselves can show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADAPTERS = sorted(path for path in (ROOT / "adapters").glob("*.py") if path.stem != "__init__")

# What an adapter may know of memlayer: the small interface. Everything else only for type checkers.
KNOWN = {
    "adapters", "cli", "codec", "errors", "injector", "items", "prompt", "records", "workers", "wrapping"
}  # fmt: skip


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                for child in ast.walk(inner):
                    if isinstance(child, ast.Import | ast.ImportFrom):
                        child.names = []
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.names:
            found.add(str(node.module) if node.module != "memlayer" else f"memlayer.{node.names[0].name}")
    return found


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_knows_a_provider_and_one_small_interface(path):
    """It imports no store, no key, no vault and no database, and no other provider's adapter."""
    imported = _imports(ast.parse(path.read_text(encoding="utf-8")))
    own = {module.split(".")[1] for module in imported if module.startswith("memlayer.")}
    assert own <= KNOWN
    others = {module.split(".")[2] for module in imported if module.startswith("memlayer.adapters.")}
    family = path.stem.split("_")[0]
    assert all(other.startswith((family, "stainless")) or path.stem.startswith(other) for other in others), others


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_is_short(path):
    """About 200 lines at the most: what is longer is two things."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 220


def test_each_provider_is_one_that_wrap_finds():
    """The adapters that `wrap` names are there, each with a function of that name."""
    from memlayer.wrapping import _ADAPTERS

    for name in _ADAPTERS.values():
        tree = ast.parse((ROOT / "adapters" / f"{name}.py").read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert "wrap" in functions, name
