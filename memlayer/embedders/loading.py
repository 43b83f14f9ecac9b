"""Loaded models of this process: one load each, shared by threads, and usable after a fork.

What is loaded stays for as long as the process does. Reading takes no lock: entries are added and never changed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from memlayer.errors import EmbedderError, MemlayerError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["borrowing", "failures", "once", "quiet"]

T = TypeVar("T")

_loaded: Final[dict[Hashable, Any]] = {}
_loading = threading.Lock()
_borrowing = threading.Lock()
_quieting = threading.Lock()
_before: Final[list[Callable[[], None]]] = []


def once(key: Hashable, load: Callable[[], T]) -> T:
    """What `load` gave for this key; threads that come while it runs wait for it. A failed load is tried again."""
    found = _loaded.get(key)
    if found is None:
        with _loading:
            found = _loaded.get(key)
            if found is None:
                found = _loaded[key] = load()
    return cast("T", found)


@contextmanager
def borrowing() -> Iterator[None]:
    """Alone with what transformers shares between calls: tokenizers that are set anew each time, image processors.

    One lock for all models: what it guards takes microseconds a text, and few models need it at all.
    """
    with _borrowing:
        yield


@contextmanager
def failures(model: str, *, texts: int) -> Iterator[None]:
    """What torch, transformers and tokenizers raise, as an EmbedderError without their words: those may hold the text.

    Args:
        model: the model's public name.
        texts: how many texts, or images, were given.
    """
    try:
        yield
    except MemlayerError:
        raise
    except Exception as error:  # noqa: BLE001 - none of the libraries says what it raises
        raise EmbedderError(f"{model} failed ({type(error).__name__})", model=model, texts=texts) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, hints and load reports out of somebody else's terminal; errors still come through.

    Two models may be loading at once: the first to come turns things down, and the last to go turns them up again.
    """
    with _quieting:
        if not _before:
            _before.append(_turn_down())
        else:
            _before.append(_before[-1])
    try:
        yield
    finally:
        with _quieting:
            turn_up = _before.pop()
            if not _before:
                turn_up()


def _turn_down() -> Callable[[], None]:
    from transformers.utils import logging as chatter

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "sentence_transformers", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = chatter.is_progress_bar_enabled()  # those of the hub library go with them
    if bars:
        chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.ERROR))

    def turn_up() -> None:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            chatter.enable_progress_bar()  # type: ignore[no-untyped-call]

    return turn_up


def _after_fork() -> None:
    """In a forked child: the locks may be held by threads that are not there, and OpenMP counts on workers that are
    not there either; on one thread it needs none (measured, see `memlayer.embedders.minilm`)."""
    global _loading, _borrowing, _quieting
    _loading = threading.Lock()
    _borrowing = threading.Lock()
    _quieting = threading.Lock()
    # Of threads that are not there; the parent turns its own things up.
    for turn_up in _before[:1]:
        turn_up()
    _before.clear()
    if _loaded:
        import torch

        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
