"""Rules of the house that the import graph and the syntax tree can show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "memlayer"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "adapters" not in path.parts)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside of a function."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("name", ["tables", "rows", "database", "migrations"])
def test_the_sql_layer_knows_no_keys_and_no_memories(name):
    """What speaks SQL imports nothing that seals, opens or names a memory, so it can only handle bytes."""
    own = {module for module in _imports(PACKAGE / f"{name}.py") if module.startswith("memlayer.")}
    allowed = ("memlayer.database", "memlayer.errors", "memlayer.gate", "memlayer.migrations", "memlayer.rows")
    assert all(module.startswith(allowed) for module in own), own


@pytest.mark.parametrize(
    "name",
    ["envelope", "manifest", "ranking", "answering", "columns", "lexical", "timeline", "questions", "dates",
     "languages", "filters", "prompt", "payload", "sealer", "codec"],
)  # fmt: skip
def test_the_middle_is_pure(name):
    """What seals, sums, filters, ranks and renders imports no database, no file and no clock."""
    impure = {"sqlalchemy", "sqlcipher3", "apsw", "sqlite_vec", "pathlib", "socket", "time", "subprocess", "threading"}
    impure |= {
        f"memlayer.{module}" for module in ("database", "tables", "store", "opening", "vault", "resident", "guard")
    }
    assert not _imports(PACKAGE / f"{name}.py") & impure


def test_only_the_index_and_its_engines_read_plaintext_rows_with_sql():
    """apsw and sqlite-vec are used in the in-memory index alone, and SQLAlchemy in the three files of the SQL layer."""
    users = {name: {path.stem for path in MODULES if _imports(path) & {name}} for name in ("apsw", "sqlite_vec")}
    assert users == {"apsw": {"index", "searching", "vectors"}, "sqlite_vec": {"vectors"}}
    at_run_time = {
        path.stem
        for path in MODULES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Import) and any(alias.name == "sqlalchemy" for alias in node.names)
    }
    assert at_run_time == {"database", "tables"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_can_run_code_that_is_data(path):
    """No pickle, marshal, yaml, eval, exec or remote model code anywhere in the package."""
    assert not _imports(path) & {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle", "joblib"}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def test_no_file_is_called_after_nothing():
    """There is no utils, helpers, common, manager or base: a file is named after what it holds."""
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "manager", "base", "misc"}
