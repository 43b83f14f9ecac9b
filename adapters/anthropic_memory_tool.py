"""Anthropic's memory tool with its files in the store: `tools=[EncryptedMemoryTool(store.user("alice"))]`.

The model reads and writes files under /memories by six commands. What it is answered is word for word what the SDK's
own tool on plain files answers, but that a path through a file, where that tool fails with the operating system's
error, gets an answer too, and that a folder has the size "4K". Files belong to the user, not to a conversation; they
are no memories, and recall does not see them. Erasing the user erases them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from memlayer import workers
from memlayer.adapters import anthropic_memory_files
from memlayer.errors import InvalidInputError, MissingExtraError
from memlayer.items import ItemKind
from memlayer.wrapping import one_user

try:
    from anthropic.lib.tools import BetaAbstractMemoryTool, BetaAsyncAbstractMemoryTool, ToolError
except ImportError as error:
    raise MissingExtraError('the memory tool needs the Anthropic SDK: pip install "memlayer-sdk[anthropic]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from memlayer.adapters.anthropic_memory_files import Files
    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory

__all__ = ["AsyncEncryptedMemoryTool", "EncryptedMemoryTool"]


class EncryptedMemoryTool(BetaAbstractMemoryTool):
    """The tool for sync clients and tool runners.

    Args:
        memory: the user's.
        cache_control: as the SDK's own tool takes it.
    """

    def __init__(self, memory: UserMemory | AsyncUserMemory, *, cache_control: Any = None) -> None:
        super().__init__(cache_control=cache_control)
        self._items = one_user(memory).items(ItemKind.TOOL_FILE)

    def view(self, command: Any) -> str:
        return anthropic_memory_files.view(self._items.read(), command)

    def create(self, command: Any) -> str:
        return self._change(anthropic_memory_files.create, command)

    def str_replace(self, command: Any) -> str:
        return self._change(anthropic_memory_files.str_replace, command)

    def insert(self, command: Any) -> str:
        return self._change(anthropic_memory_files.insert, command)

    def delete(self, command: Any) -> str:
        return self._change(anthropic_memory_files.delete, command)

    def rename(self, command: Any) -> str:
        return self._change(anthropic_memory_files.rename, command)

    def clear_all_memory(self) -> str:
        """Deletes all of the user's files."""
        return self._change(anthropic_memory_files.clear, None)

    def _change(self, change: Callable[[Files, Any], str], command: Any) -> str:
        refused: ToolError | None = None
        said = ""
        try:
            with self._items.change() as files:
                try:
                    said = change(files, command)
                except ToolError as error:
                    # What was done before it is kept, as on a disk: the folders of a failed rename.
                    refused = error
        except InvalidInputError as error:
            raise ToolError(f"This cannot be stored: {error}") from error
        if refused is not None:
            raise refused
        return said


class AsyncEncryptedMemoryTool(BetaAsyncAbstractMemoryTool):
    """The tool for async clients and tool runners; nothing runs on the event loop.

    Args:
        memory: the user's.
        cache_control: as the SDK's own tool takes it.
    """

    def __init__(self, memory: UserMemory | AsyncUserMemory, *, cache_control: Any = None) -> None:
        super().__init__(cache_control=cache_control)
        self._tool = EncryptedMemoryTool(memory)

    async def view(self, command: Any) -> str:
        return await _elsewhere(self._tool.view, command)

    async def create(self, command: Any) -> str:
        return await _elsewhere(self._tool.create, command)

    async def str_replace(self, command: Any) -> str:
        return await _elsewhere(self._tool.str_replace, command)

    async def insert(self, command: Any) -> str:
        return await _elsewhere(self._tool.insert, command)

    async def delete(self, command: Any) -> str:
        return await _elsewhere(self._tool.delete, command)

    async def rename(self, command: Any) -> str:
        return await _elsewhere(self._tool.rename, command)

    async def clear_all_memory(self) -> str:
        """Deletes all of the user's files."""
        return await _elsewhere(self._tool.clear_all_memory)


async def _elsewhere(call: Callable[..., str], *args: Any) -> str:
    return await asyncio.wrap_future(workers.submit(call, *args))
