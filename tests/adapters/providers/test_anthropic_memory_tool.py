"""memlayer.adapters.anthropic_memory_tool: the SDK's memory tool, word for word, on sealed files."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.lib.tools import ToolError
from anthropic.lib.tools._beta_builtin_memory_tool import BetaLocalFilesystemMemoryTool
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memlayer import MemoryStore
from memlayer.adapters.anthropic_memory_tool import AsyncEncryptedMemoryTool, EncryptedMemoryTool
from memlayer.items import ItemKind
from memlayer.testing import HashingEmbedder
from tests.adapters.loopback import Loopback
from tests.adapters.wires import anthropic as wire
from tests.conftest import KEY

OLD = int(anthropic.__version__.partition(".")[0]) < 2
"""Before, the SDK's tool read "\\r" as a line break, and took a path to the root for any other folder."""


# ---------------------------------------------------------------- the SDK's own tool as the oracle


def answer(tool, command) -> tuple[str, str]:
    """What the tool says, or how it refuses."""
    try:
        return "said", tool.call(command)
    except ToolError as error:
        return "refused", str(error)
    except (NotADirectoryError, IsADirectoryError, OSError):
        return "failed", ""


def same(theirs: tuple[str, str], ours: tuple[str, str]) -> bool:
    if theirs[0] == "failed":
        # An error of the operating system, with a path of this machine in it: ours is a refusal.
        return ours[0] == "refused"
    return (theirs[0], _without_folder_sizes(theirs[1])) == (ours[0], _without_folder_sizes(ours[1]))


def _without_folder_sizes(text: str) -> str:
    """What a folder takes differs from one file system to the next."""
    if not text.startswith("Here're the files"):
        return text
    head, own, *lines = text.split("\n")
    return "\n".join([head, *(re.sub(r"^\S+", "-", line) if line.endswith("/") or line is own else line
                              for line in [own, *lines])])  # fmt: skip


NAMES = st.sampled_from(["a", "b", "notes.md", "Notes", "é", ".hidden", "a b", "deep", "10", "9", "a.b", "a-b"])
PATHS = st.one_of(
    st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/memories/" + "/".join(names)),
    st.sampled_from(["/memories/a", "/memories/b", "/memories/deep/a", "/memories/deep/b/c"]),
    st.lists(st.sampled_from(["a", "b", "..", ".", "", "memories"]), max_size=5).map(
        lambda parts: "/memories/" + "/".join(parts)
    ),
    st.sampled_from(["/memories", "/memories/", "/memoriesa", "memories/a", "/etc/passwd", "", "/memories/../x"]),
)
LINES = st.text(st.sampled_from("ab \n\té€") if OLD else st.sampled_from("ab \n\r\té€\x0b\u2028"), max_size=12)
COMMANDS = st.one_of(
    st.fixed_dictionaries(
        {"command": st.just("view"), "path": PATHS},
        optional={"view_range": st.lists(st.integers(-2, 6), max_size=3)},
    ),
    st.fixed_dictionaries({"command": st.just("create"), "path": PATHS, "file_text": LINES | st.just("x" * 1500)}),
    st.fixed_dictionaries(
        {"command": st.just("str_replace"), "path": PATHS, "old_str": LINES | st.just("a"), "new_str": LINES}
    ),
    st.fixed_dictionaries(
        {"command": st.just("insert"), "path": PATHS, "insert_line": st.integers(-1, 4), "insert_text": LINES}
    ),
    st.fixed_dictionaries({"command": st.just("delete"), "path": PATHS}),
    st.fixed_dictionaries({"command": st.just("rename"), "old_path": PATHS, "new_path": PATHS}),
)

_last_user = 0


@pytest.fixture(scope="module")
def open_store(tmp_path_factory):
    with MemoryStore.open(tmp_path_factory.mktemp("tool") / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        yield store


def new_user(store):
    global _last_user
    _last_user += 1
    return store.user(f"user {_last_user}")


def _about_the_root(command) -> bool:
    """Whether the old tool would delete or move the root: it looked at the path's letters only."""
    path = command.get("old_path", command["path"] if command["command"] == "delete" else None)
    return OLD and path is not None and path.startswith("/memories") and _is_root(path)


def _is_root(path: str) -> bool:
    root = Path("/x/y/memories")
    return root.joinpath(path.removeprefix("/memories").lstrip("/")).resolve() == root


@given(commands=st.lists(COMMANDS, min_size=1, max_size=12))
@example(commands=[
    {"command": "create", "path": "/memories/a", "file_text": "1"},
    {"command": "rename", "old_path": "/memories/b/a", "new_path": "/memories/a/a"},
    {"command": "rename", "old_path": "/memories/b", "new_path": "/memories/a/a"},
    {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/a/a"},
    {"command": "rename", "old_path": "/memories/a/a", "new_path": "/memories/b"},
    {"command": "create", "path": "/memories/a/b/c", "file_text": "1"},
])  # fmt: skip
@settings(max_examples=150)
@example(commands=[
    {"command": "create", "path": "/memories/a", "file_text": "1"},
    {"command": "rename", "old_path": "/memories/no", "new_path": "/memories/x/y"},
    {"command": "view", "path": "/memories"},
    {"command": "create", "path": "/memories/x/y", "file_text": "1\n2"},
    {"command": "view", "path": "/memories/x/y"},
    {"command": "delete", "path": "/memories/x/y"},
    {"command": "view", "path": "/memories"},
    {"command": "rename", "old_path": "/memories/x", "new_path": "/memories/x/y/z"},
    {"command": "view", "path": "/memories/x"},
])  # fmt: skip
@example(commands=[
    {"command": "create", "path": "/memories/../memories/a", "file_text": ""},
    {"command": "create", "path": "/memories/..//memories/b", "file_text": "aa\naa"},
    {"command": "str_replace", "path": "/memories/a", "old_str": "", "new_str": "x"},
    {"command": "str_replace", "path": "/memories/b", "old_str": "a", "new_str": "x"},
    {"command": "insert", "path": "/memories/a", "insert_line": 0, "insert_text": "\n\n"},
    {"command": "view", "path": "/memories/a", "view_range": [0, -2]},
])  # fmt: skip
def test_the_same_words_as_the_tool_on_plain_files(open_store, commands):
    """Over generated sequences of commands, each answer and each refusal is that of the SDK's own tool."""
    with tempfile.TemporaryDirectory() as folder:
        oracle = BetaLocalFilesystemMemoryTool(str(Path(folder) / "base"))
        ours = EncryptedMemoryTool(new_user(open_store))
        for command in commands:
            if _about_the_root(command):
                continue
            theirs = answer(oracle, command)
            assert same(theirs, answer(ours, command)), (command, theirs)
        everything = {"command": "view", "path": "/memories"}
        assert same(answer(oracle, everything), answer(ours, everything))


@given(sizes=st.lists(st.integers(0, 3 * 1024 * 1024), min_size=1, max_size=4))
@settings(max_examples=15)
def test_sizes_are_written_as_the_tool_on_plain_files_writes_them(open_store, sizes):
    """Bytes, kilobytes and megabytes in a listing are those of the SDK's own tool."""
    with tempfile.TemporaryDirectory() as folder:
        oracle = BetaLocalFilesystemMemoryTool(str(Path(folder) / "base"))
        ours = EncryptedMemoryTool(new_user(open_store))
        for number, size in enumerate(sizes):
            command = {"command": "create", "path": f"/memories/{number}", "file_text": "x" * size}
            assert same(answer(oracle, command), answer(ours, command))
        assert same(answer(oracle, VIEW), answer(ours, VIEW))


VIEW = {"command": "view", "path": "/memories"}


def test_the_async_tool_answers_as_the_sync_one(store, alice):
    """Both are the same tool on the same files."""
    sync, other = EncryptedMemoryTool(alice), AsyncEncryptedMemoryTool(alice)

    async def run():
        said = [await other.call({"command": "create", "path": "/memories/a", "file_text": "one\ntwo"})]
        said.append(
            await other.call({"command": "str_replace", "path": "/memories/a", "old_str": "two", "new_str": "3"})
        )
        said.append(
            await other.call({"command": "insert", "path": "/memories/a", "insert_line": 1, "insert_text": "x"})
        )
        said.append(await other.call({"command": "rename", "old_path": "/memories/a", "new_path": "/memories/b"}))
        said.append(await other.call({"command": "view", "path": "/memories/b"}))
        with pytest.raises(ToolError, match="/memories/a does not exist"):
            await other.call({"command": "delete", "path": "/memories/a"})
        return said

    said = asyncio.run(run())
    assert said[-1] == sync.call({"command": "view", "path": "/memories/b"})
    assert said[-1].endswith("     1\tone\n     2\tx\n     3\t3\n     4\t")
    assert asyncio.run(other.clear_all_memory()) == "All memory cleared"
    assert "/memories/b" not in sync.call(VIEW)


def test_files_outlive_the_process_and_are_sealed(tmp_path):
    """Opened again, the files are there; neither their names nor their texts stand in the store's file."""
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        tool = EncryptedMemoryTool(store.user("alice"))
        tool.call({"command": "create", "path": "/memories/zanzibar.md", "file_text": "the quokka sings"})
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=HashingEmbedder()) as store:
        tool = EncryptedMemoryTool(store.user("alice"))
        assert "the quokka sings" in tool.call({"command": "view", "path": "/memories/zanzibar.md"})
        assert "zanzibar" not in EncryptedMemoryTool(store.user("bob")).call(VIEW)
    bytes_ = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"zanzibar" not in bytes_
    assert b"quokka" not in bytes_


def test_files_are_no_memories_and_go_with_the_user(store, alice):
    """Recall and history do not see them; erasing the user erases them."""
    tool = EncryptedMemoryTool(alice)
    tool.call({"command": "create", "path": "/memories/a", "file_text": "peanuts"})
    assert len(alice.recall("peanuts")) == 0
    assert len(alice.history()) == 0
    assert set(alice.items(ItemKind.TOOL_FILE).read()) == {"a"}
    alice.erase()
    assert alice.items(ItemKind.TOOL_FILE).read() == {}
    assert tool.call(VIEW).endswith("\n4K\t/memories")


def test_a_file_that_is_too_large_is_refused(alice):
    """The model is told so, and nothing is stored."""
    tool = EncryptedMemoryTool(alice)
    with pytest.raises(ToolError, match="cannot be stored"):
        tool.call({"command": "create", "path": "/memories/a", "file_text": "x" * (5 * 1024 * 1024)})
    assert tool.call(VIEW).endswith("\n4K\t/memories")


COMMAND = {"command": "create", "path": "/memories/me.md", "file_text": "I like tea"}


def test_the_sdks_tool_runner_takes_it(alice):
    """A run of two requests: the model's command is done, and its result goes back."""
    with (
        Loopback(wire.Chatbot("Done.", tools=[("memory", COMMAND)])) as server,
        Anthropic(base_url=server.url, api_key="none") as client,
    ):
        tool = EncryptedMemoryTool(alice, cache_control={"type": "ephemeral"})
        runner = client.beta.messages.tool_runner(
            model=wire.MODEL, max_tokens=99, tools=[tool], messages=[{"role": "user", "content": "I like tea"}]
        )
        assert runner.until_done().content[0].text == "Done."
        offered = server.bodies[0]["tools"]
        assert offered == [{"type": "memory_20250818", "name": "memory", "cache_control": {"type": "ephemeral"}}]
        result = server.bodies[1]["messages"][-1]["content"][0]
        assert result["content"] == "File created successfully at: /memories/me.md"
    assert alice.items(ItemKind.TOOL_FILE).read() == {"me.md": b"I like tea"}


def test_the_sdks_async_tool_runner_takes_it(alice):
    """As the sync one."""

    async def run(server):
        async with AsyncAnthropic(base_url=server.url, api_key="none") as client:
            runner = client.beta.messages.tool_runner(
                model=wire.MODEL, max_tokens=99, tools=[AsyncEncryptedMemoryTool(alice)],
                messages=[{"role": "user", "content": "I like tea"}],
            )  # fmt: skip
            return (await runner.until_done()).content[0].text

    with Loopback(wire.Chatbot("Done.", tools=[("memory", COMMAND)])) as server:
        assert asyncio.run(run(server)) == "Done."
    assert alice.items(ItemKind.TOOL_FILE).read() == {"me.md": b"I like tea"}
