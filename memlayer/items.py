"""Named things of one user's that are no memories: files of a tool, entries of a framework's store. Sealed like memories.

(Being written; the interface below stands.)
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ItemKind"]


class ItemKind(IntEnum):
    """What an item is. The numbers are part of the format: never reuse one."""

    LEDGER = 1
    TOOL_FILE = 2
    FRAMEWORK = 3
