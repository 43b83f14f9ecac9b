"""The six commands of Anthropic's memory tool, on files that are a dict: functions that change it and give the answer.

A refusal is a `ToolError`, whose text the model reads; the words are those of the SDK's own tool on plain files.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from memlayer.errors import MissingExtraError

try:
    from anthropic.lib.tools import ToolError
except ImportError as error:
    raise MissingExtraError('the memory tool needs the Anthropic SDK: pip install "memlayer-sdk[anthropic]"') from error

__all__ = ["Files", "clear", "create", "delete", "insert", "rename", "str_replace", "view"]

Files: TypeAlias = dict[str, bytes]
"""By path below the root: "notes/today.md" is a file, "notes/" a folder."""

_MAX_LINES = 999_999
_WIDTH = len(str(_MAX_LINES))
_FOLDER_SIZE = "4K"
_THROUGH = "The path {} goes through a file, which is not a directory."


def view(files: Files, command: Any) -> str:
    path = _inside(command.path)
    if _is_folder(files, path):
        listed = [f"{size}\t{command.path}/{name}" for size, name in _listing(files, f"{path}/" if path else "")]
        head = f"Here're the files and directories up to 2 levels deep in {command.path}, excluding hidden items:"
        return "\n".join([head, f"{_FOLDER_SIZE}\t{command.path}", *listed])
    lines = _read(files, path, command.path).split("\n")
    if len(lines) > _MAX_LINES:
        raise ToolError(f"File {command.path} exceeds maximum line limit of 999,999 lines.")
    first, end = 1, len(lines)
    if command.view_range and len(command.view_range) == 2:
        first = max(1, command.view_range[0])
        end = end if command.view_range[1] == -1 else command.view_range[1]
    shown = _numbered(lines[first - 1 : end], first)
    return f"Here's the content of {command.path} with line numbers:\n{shown}"


def create(files: Files, command: Any) -> str:
    path = _inside(command.path)
    if path in files or _is_folder(files, path):
        raise ToolError(f"File {command.path} already exists")
    _make_folders(files, path, command.path)
    files[path] = command.file_text.encode()
    return f"File created successfully at: {command.path}"


def str_replace(files: Files, command: Any) -> str:
    path = _inside(command.path)
    content = _read(files, path, command.path)
    count = content.count(command.old_str)
    if count == 0:
        raise ToolError(
            f"No replacement was performed, old_str `{command.old_str}` did not appear verbatim in {command.path}."
        )
    if count > 1:
        at, lines = content.find(command.old_str), []
        while at != -1:
            lines.append(str(content.count("\n", 0, at) + 1))
            at = content.find(command.old_str, at + 1)
        raise ToolError(
            f"No replacement was performed. Multiple occurrences of old_str `{command.old_str}` in lines: "
            f"{', '.join(lines)}. Please ensure it is unique"
        )
    changed = content.count("\n", 0, content.find(command.old_str))
    content = content.replace(command.old_str, command.new_str)
    files[path] = content.encode()
    first = max(0, changed - 2)
    snippet = _numbered(content.split("\n")[first : changed + 3], first + 1)
    return f"The memory file has been edited. Here is the snippet showing the change (with line numbers):\n{snippet}"


def insert(files: Files, command: Any) -> str:
    path = _inside(command.path)
    lines = _read(files, path, command.path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not 0 <= command.insert_line <= len(lines):
        raise ToolError(
            f"Invalid `insert_line` parameter: {command.insert_line}. It should be within the range [0, {len(lines)}]."
        )
    lines.insert(command.insert_line, command.insert_text.rstrip("\n"))
    content = "\n".join(lines)
    files[path] = (content if content.endswith("\n") else f"{content}\n").encode()
    return f"The file {command.path} has been edited."


def delete(files: Files, command: Any) -> str:
    path = _inside(command.path)
    if not path:
        raise ToolError("Cannot delete the /memories directory itself")
    if path not in files and not _is_folder(files, path):
        raise ToolError(f"The path {command.path} does not exist")
    for name in [name for name in files if name == path or name.startswith(f"{path}/")]:
        del files[name]
    return f"Successfully deleted {command.path}"


def rename(files: Files, command: Any) -> str:
    old, new = _inside(command.old_path), _inside(command.new_path)
    if not old:
        raise ToolError("Cannot rename the /memories directory itself")
    if new in files or _is_folder(files, new):
        raise ToolError(f"The destination {command.new_path} already exists")
    parent = new.rpartition("/")[0]
    if parent not in files:
        _make_folders(files, new, command.new_path)
    if old not in files and not _is_folder(files, old):
        raise ToolError(f"The path {command.old_path} does not exist")
    if parent in files:
        raise ToolError(_THROUGH.format(command.new_path))
    if new.startswith(f"{old}/"):
        raise ToolError(f"Cannot rename {command.old_path} to {command.new_path}, which is inside of it")
    for name in [name for name in files if name == old or name.startswith(f"{old}/")]:
        files[new + name[len(old) :]] = files.pop(name)
    return f"Successfully renamed {command.old_path} to {command.new_path}"


def clear(files: Files, _: Any) -> str:
    files.clear()
    return "All memory cleared"


# ---------------------------------------------------------------- paths, folders, lines


def _inside(path: str) -> str:
    """The path below the root, "" for the root itself."""
    if not path.startswith("/memories"):
        raise ToolError(f"Path must start with /memories, got: {path}")
    parts = ["memories"]
    for part in path.removeprefix("/memories").split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            # A ".." above the folder that /memories is in stays: no way leads back from there.
            parts.append(part)
    if parts[:1] != ["memories"] or "\0" in path:
        raise ToolError(f"Path {path} would escape /memories directory")
    return "/".join(parts[1:])


def _is_folder(files: Files, path: str) -> bool:
    return not path or f"{path}/" in files


def _make_folders(files: Files, path: str, shown: str) -> None:
    above = [path[:at] for at, character in enumerate(path) if character == "/"]
    if any(folder in files for folder in above):
        raise ToolError(_THROUGH.format(shown))
    files.update((f"{folder}/", b"") for folder in above)


def _read(files: Files, path: str, shown: str) -> str:
    if _is_folder(files, path):
        raise ToolError(f"The path {shown} is not a file.")
    if path not in files:
        raise ToolError(f"The path {shown} does not exist. Please provide a valid path.")
    return files[path].decode()


def _listing(files: Files, folder: str, depth: int = 1) -> list[tuple[str, str]]:
    """(size, name below the folder) of what is in it and in the folders in it, by name."""
    listed = []
    here = {name[len(folder) :] for name in files if name.startswith(folder)} - {""}
    for name in sorted(here, key=lambda name: name.rstrip("/")):
        if name.startswith(".") or "/" in name.rstrip("/"):
            continue
        is_folder = name.endswith("/")
        listed.append((_FOLDER_SIZE if is_folder else _size(len(files[folder + name])), name))
        if is_folder and depth < 2:
            listed += [(size, name + inner) for size, inner in _listing(files, folder + name, depth + 1)]
    return listed


def _size(count: int) -> str:
    if count == 0:
        return "0B"
    power = min((count.bit_length() - 1) // 10, 3)
    size = count / 1024**power
    return f"{int(size) if size == int(size) else f'{size:.1f}'}{'BKMG'[power]}"


def _numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"{str(number).rjust(_WIDTH)}\t{line}" for number, line in enumerate(lines, first))
