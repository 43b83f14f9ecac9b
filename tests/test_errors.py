"""`memlayer.errors`: the tree is the one that is drawn, every class has a code, and none is left out at the top."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

import memlayer
from memlayer import errors
from memlayer.errors import MemlayerError

CLASSES = {name: getattr(errors, name) for name in errors.__all__}
CODES = {
    "MemlayerError": "memlayer",
    "InvalidInputError": "invalid_input",
    "InvalidFilterError": "invalid_filter",
    "LimitExceededError": "limit_exceeded",
    "NotFoundError": "not_found",
    "ConflictError": "conflict",
    "KeyUnavailableError": "key_unavailable",
    "WrongKeyError": "wrong_key",
    "StorageError": "storage",
    "NotAStoreError": "not_a_store",
    "StoreMissingError": "store_missing",
    "StoreDamagedError": "store_damaged",
    "RollbackDetectedError": "rollback_detected",
    "FormatTooNewError": "format_too_new",
    "StoreBusyError": "store_busy",
    "StorageFullError": "storage_full",
    "ReadOnlyStoreError": "read_only",
    "StoreClosedError": "closed",
    "ExportDamagedError": "export_damaged",
    "EmbedderError": "embedder",
    "EmbedderMismatchError": "embedder_mismatch",
    "WeightsUnavailableError": "weights_unavailable",
    "DistilError": "distil",
    "RecallTimeoutError": "recall_timeout",
    "MissingExtraError": "missing_extra",
}


def drawn():
    """The tree in the docstring: for each name its parent, and the builtin that it also is."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+Error)\s*(?:\(also (\w+)\))?", line)
        if found is None:
            continue
        depth, name, builtin = len(found[1]), found[2], found[3]
        while above and above[-1][0] >= depth:
            above.pop()
        tree[name] = (above[-1][1] if above else None, builtin)
        above.append((depth, name))
    return tree


def test_the_tree_is_the_one_that_is_drawn():
    """Every class stands in the docstring, under its parent, with the builtin that it also is; and none besides."""
    built = {}
    for name, kind in CLASSES.items():
        parents = [base.__name__ for base in kind.__bases__ if issubclass(base, MemlayerError)]
        builtins = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
        built[name] = (parents[0] if parents else None, builtins[0] if builtins else None)
    assert len(drawn()) == len(CODES)
    assert drawn() == built


def test_every_class_has_a_line_in_the_tree():
    """Each name is followed by what it means."""
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    [│├└─ ]+\w+Error\s*(\(also \w+\))?\s*(.*)", line)
        assert found is None or len(found[2]) > 10


def test_codes_are_unique_and_stay():
    """Scripts rely on them: each class has its own, the one it was released with."""
    assert {name: kind.code for name, kind in CLASSES.items()} == CODES
    assert len(set(CODES.values())) == len(CODES)


def test_every_error_is_exported_at_the_top():
    """`memlayer.X` is the class, for all of them, and the list is sorted."""
    assert set(CLASSES) <= set(memlayer.__all__)
    assert all(getattr(memlayer, name) is kind for name, kind in CLASSES.items())
    assert errors.__all__ == sorted(errors.__all__)


def test_every_error_class_is_listed():
    """No class of the module is left out of its `__all__`, and each explains itself."""
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == set(CLASSES)
    assert all(kind.__doc__ for kind in CLASSES.values())


@pytest.mark.parametrize("kind", CLASSES.values(), ids=list(CLASSES))
def test_an_error_carries_a_message_and_evidence(kind):
    """The message is what `str` shows; the evidence is by name, is not in the message, and cannot be changed."""
    error = kind("what happened", limit=3, path="/a")
    assert str(error) == "what happened"
    assert error.evidence == {"limit": 3, "path": "/a"}
    assert error.args == ("what happened",)
    with pytest.raises(TypeError):
        error.evidence["limit"] = 4
    assert dict(kind("nothing known").evidence) == {}


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [("InvalidInputError", ValueError), ("InvalidFilterError", ValueError), ("LimitExceededError", ValueError),
     ("NotFoundError", LookupError), ("MissingExtraError", ImportError)],
)  # fmt: skip
def test_errors_that_python_has_a_name_for_are_those_too(kind, builtin):
    """Callers who catch Python's own classes catch ours."""
    assert issubclass(CLASSES[kind], builtin)


def test_no_builtin_is_shadowed():
    """No class is called like one of Python's, and all names end in Error."""
    import builtins

    assert not any(hasattr(builtins, name) for name in CLASSES)
    assert all(name.endswith("Error") for name in CLASSES)


def test_an_error_can_be_copied():
    """A copy has the message and the evidence."""
    again = copy.copy(errors.StoreBusyError("busy", sqlite=5))
    assert (str(again), again.evidence) == ("busy", {"sqlite": 5})


def test_an_error_crosses_processes():
    """An error that is raised in a worker of a process pool arrives as itself, with its evidence."""
    for kind in CLASSES.values():
        again = pickle.loads(pickle.dumps(kind("what happened", limit=3)))  # noqa: S301
        assert type(again) is kind
        assert (str(again), again.evidence) == ("what happened", {"limit": 3})
