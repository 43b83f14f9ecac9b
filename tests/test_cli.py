"""The command line: what it prints, what it exits with, and what a hostile text cannot do to a terminal."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from typer.testing import CliRunner

from memlayer import KeyFile, MemlayerError, MemoryStore, RawKey, RecoveryKey, errors
from memlayer.cli import opening, output, stores
from memlayer.cli.app import app
from memlayer.metrics import METRICS
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from typer.testing import Result

KEY = bytes(range(1, 33))
COMMANDS = ["init", "demo", "remember", "recall", "history", "forget", "erase", "export", "import"]
COMMANDS += ["info", "verify", "eval", "doctor", "calibrate", "distil-embedder", "reembed", "distil"]
DATA = Path(__file__).parent / "data" / "conversations.jsonl"
MARKUP = "[red]bold[/red] [link=file:///etc]x[/link] :smile:"
HOSTILE = f"evil \x1b]0;title\x07 \x9b31m {MARKUP} \u202ertl\u2066 \r\n\x08new\x7f\u2028"


class Run(Protocol):
    def __call__(self, *arguments: object, typed: str = "", fails: int = 0, **environment: str) -> Result: ...


@pytest.fixture
def run() -> Run:
    """Runs a command in this process; `fails` is the exit code that it must have."""

    def invoke(*arguments: object, typed: str = "", fails: int = 0, **environment: str) -> Result:
        result = CliRunner().invoke(app, [str(each) for each in arguments], input=typed, env=environment)
        assert result.exit_code == fails, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a few memories of two users, closed; made once, through the real model."""
    folder: Path = tmp_path_factory.mktemp("filled")
    path = folder / "memories.db"
    with MemoryStore.open(path, keys=RawKey(KEY)) as store:
        marie = store.user("marie")
        at = datetime(2026, 3, 2, 18, 30, tzinfo=UTC)
        marie.remember("I'm allergic to peanuts", session="monday", at=at, id="allergy", metadata={"channel": "web"})
        marie.remember("I play the cello", session="tuesday", at=at.replace(day=3), speaker="Marie")
        marie.remember("Noted.", role="assistant", session="tuesday", at=at.replace(day=3))
        store.user("zoe").remember("Zoë 🎻", at=at)
        store.user("eve").remember(HOSTILE, speaker=HOSTILE[:20], session=HOSTILE[:20], at=at)
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that the command finds, with its key, by the environment."""
    path = tmp_path / "memories.db"
    shutil.copy(filled, path)
    monkeypatch.setenv("MEMLAYER_STORE", str(path))
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(KEY).decode())
    return path


@pytest.fixture
def at_terminal(monkeypatch) -> None:
    """Somebody is there who types."""
    monkeypatch.setattr(opening, "at_terminal", lambda: True)


def document(result: Result) -> Any:
    """The JSON on stdout, which must be all that is there, on one line."""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# --- Help, version, start ---


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(run, command):
    """`--help` of each command renders, says what it does and names its options."""
    text = run(command, "--help").stdout
    assert text.startswith(f"Usage: root {command} [OPTIONS]")
    assert "--help" in text
    assert ("--json" in text) == (command != "demo")


def test_the_help_lists_commands_and_exit_codes(run):
    """`memlayer --help` names every command with a whole sentence, and every exit code."""
    text = run("--help").stdout
    listed = text.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines()[1 : len(COMMANDS) + 1]] == COMMANDS
    assert "..." not in listed
    for code, _, meaning in output.EXIT_CODES:
        assert f"  {code} {meaning}\n" in text


def test_the_hidden_option_of_the_demo_is_hidden(run):
    """What the demo says to its second process is no part of its help."""
    assert "second-day" not in run("demo", "--help").stdout


def child(*arguments: str, program: str | None = None, typed: str = "", **environment: str) -> Any:
    """A process of its own, with pipes for a terminal: the command, or a Python program in its place."""
    command = [sys.executable, "-m", "memlayer"] if program is None else [sys.executable, "-c", program]
    return subprocess.run(
        [*command, *arguments],
        input=typed,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "TERM": "xterm-256color"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )


def test_python_m_memlayer_is_the_command():
    """`python -m memlayer --version` prints the version that the package has."""
    done = child("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{stores.package_version()}\n", "")


LIGHT = """
import sys
from memlayer.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "sentence_transformers", "transformers"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["info"], ["history", "--user", "marie"], ["recall", "x", "--user", "nobody"]]
)
def test_what_needs_no_model_loads_none(store, arguments):
    """Help, info, history, and the recall of a user who has nothing import neither torch nor sentence-transformers."""
    done = child(*arguments, program=LIGHT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_says_what_to_install(missing):
    """Without typer or rich the command prints one line with the install command, and exits with 6."""
    done = child(
        "--help", program=f"import sys; sys.modules[{missing!r}] = None; from memlayer.cli import main; main()"
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1
    assert 'pip install "memlayer-sdk[cli]"' in done.stderr


# --- init ---


def test_init_makes_a_store_with_a_key_file(run, home, tmp_path):
    """init says where the store and its key file are; the key file is its owner's alone and outside of the folder."""
    path = tmp_path / "memories.db"
    made = document(run("init", "--store", path, "--json"))
    assert made["store"] == str(path)
    key = Path(made["key"]["file"])
    assert (made["key"]["kind"], stat.S_IMODE(key.stat().st_mode)) == ("key", 0o600)
    assert key.is_relative_to(home)
    with MemoryStore.open(path, keys=KeyFile(key)) as opened:
        assert [slot.kind for slot in opened.key_slots()] == ["key", "recovery"]


def test_the_recovery_key_is_shown_once_and_opens_the_store(run, tmp_path):
    """The recovery key stands on a line of its own, copied it opens the store, and the prompt takes it."""
    lines = run("init", "--store", tmp_path / "memories.db").stdout.splitlines()
    recovery = lines[-1].strip()
    MemoryStore.open(tmp_path / "memories.db", keys=RecoveryKey(recovery)).close()
    told = document(
        run("info", "--store", tmp_path / "memories.db", "--recovery-key", "--json", MEMLAYER_RECOVERY_KEY=recovery)
    )
    assert [slot["kind"] for slot in told["key_slots"] if slot["used"]] == ["recovery"]


def test_init_without_a_recovery_key(run, tmp_path):
    """`--no-recovery-key` adds none, in words as in JSON."""
    assert document(run("init", "--store", tmp_path / "a.db", "--no-recovery-key", "--json"))["recovery_key"] is None
    assert "Recovery key" not in run("init", "--store", tmp_path / "b.db", "--no-recovery-key").stdout


def test_init_takes_the_key_that_it_is_told(run, tmp_path):
    """A key file of one's own, a passphrase out of the environment, and MEMLAYER_KEY each become the store's key."""
    key_file = tmp_path / "own.key"
    assert document(run("init", "--store", tmp_path / "a.db", "--key-file", key_file, "--json"))["key"] == {
        "kind": "key",
        "file": str(key_file),
    }
    run("info", "--store", tmp_path / "a.db", "--key-file", key_file)
    secret = {"MEMLAYER_PASSPHRASE": "correct horse battery staple"}
    assert "Key: the passphrase" in run("init", "--store", tmp_path / "b.db", "--passphrase", **secret).stdout
    run("info", "--store", tmp_path / "b.db", **secret)
    key = {"MEMLAYER_KEY": base64.b64encode(KEY).decode()}
    assert "Key: the one in MEMLAYER_KEY" in run("init", "--store", tmp_path / "c.db", **key).stdout
    run("info", "--store", tmp_path / "c.db", **key)


def test_init_never_touches_a_file_that_is_there(run, tmp_path):
    """Whatever stands at the path stays as it is, and the exit code is 2."""
    path = tmp_path / "memories.db"
    path.write_bytes(b"mine")
    assert "already" in run("init", "--store", path, fails=2).stderr
    assert path.read_bytes() == b"mine"


def test_init_starts_anew_only_when_the_loss_is_accepted(run, store):
    """A store that was here and is gone is an error that names the option; with it, a new one is made."""
    run("info")
    store.unlink()
    assert "memlayer init --accept-rollback" in run("init", fails=7).stderr
    assert not store.exists()
    run("init", "--accept-rollback")
    assert document(run("info", "--json"))["users"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["remember", "x", "--user", "u"],
        ["recall", "x", "--user", "u"],
        ["history", "--user", "u"],
        ["forget", "x", "--user", "u"],
        ["erase", "--user", "u"],
        ["export", "x", "--user", "u"],
        ["import", "x", "--user", "u"],
        ["info"],
        ["verify"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_mistyped_path_makes_no_store(run, tmp_path, arguments):
    """Every command but init and demo refuses a store that is not there with exit code 7, and says how to make it."""
    path = tmp_path / "a b" / "typo.db"
    path.parent.mkdir()
    result = run(*arguments, "--store", path, fails=7)
    assert result.stderr == f"memlayer: there is no store at {path}; make one with: memlayer init --store '{path}'\n"
    assert result.stdout == ""
    assert list(path.parent.iterdir()) == []


# --- remember, recall, history ---


def test_remember_gives_back_the_memory(run, store):
    """Every option of remember is in what is stored, a time without a zone is UTC, and the id is the caller's."""
    options = {
        "--role": "assistant",
        "--session": "s1",
        "--speaker": "Bot",
        "--at": "2026-03-04T10:00",
        "--metadata": '{"n": 1}',
        "--id": "own",
    }
    flat = [word for option in options.items() for word in option]
    memory = document(run("remember", "Gate 12.", "--user", "ann", *flat, "--json"))
    written = memory.pop("written")
    assert datetime.fromisoformat(written).tzinfo is not None
    assert memory == {
        "id": "own",
        "image_sha256": None,
        "text": "Gate 12.",
        "role": "assistant",
        "speaker": "Bot",
        "session": "s1",
        "at": "2026-03-04T10:00:00Z",
        "metadata": {"n": 1},
        "source": "assistant",
        "expires": None,
    }
    assert run("remember", "Gate 12.", "--user", "ann", *flat).stdout == "Remembered as own\n"
    assert "--replace" in run("remember", "Gate 13.", "--user", "ann", "--id", "own", fails=8).stderr
    run("remember", "Gate 13.", "--user", "ann", "--id", "own", "--replace")
    assert [each["text"] for each in document(run("history", "--user", "ann", "--json"))["memories"]] == ["Gate 13."]


def test_remember_reads_standard_input(run, store):
    """`-` is the text on standard input, without the shell's last newline and exact beyond that."""
    memory = document(run("remember", "-", "--user", "ann", "--json", typed="two\n lines \u202e\n\n"))
    assert memory["text"] == "two\n lines \u202e\n"
    run("remember", "-", "--user", "ann", typed="x" * 300_000, fails=2)
    run("remember", "-", "--user", "ann", typed="", fails=2)


def test_input_that_is_not_utf_8_is_an_error(store):
    """Bytes that are no UTF-8, on standard input, are exit code 2."""
    result = CliRunner().invoke(app, ["remember", "-", "--user", "ann"], input=b"\xff\xfe")
    assert (result.exit_code, result.stderr) == (2, "memlayer: standard input is not UTF-8\n")


def test_recall_prints_the_best_first(run, store):
    """recall's table has score, date, who and text; the best hit comes first, -k bounds how many."""
    asked = ("recall", "what can't I eat?", "--user", "marie", "-k", 2, "--min-score", 0)
    header, *rows = run(*asked).stdout.splitlines()
    assert header.split() == ["score", "date", "(UTC)", "who", "text"]
    assert len(rows) == 2
    score, day, _, who, *text = rows[0].split()
    assert (day, who, " ".join(text)) == ("2026-03-02", "user", "I'm allergic to peanuts")
    assert 0 < float(score) < 1


def test_recall_explains_and_shows_ids(run, store):
    """--explain shows what the score is made of, --ids the id to forget it by."""
    table = run("recall", "what can't I eat?", "--user", "marie", "-k", 1, "--explain", "--ids").stdout
    assert "vector +0." in table
    assert " allergy " in table


def test_recall_as_json(run, store):
    """JSON has every field of every hit; with --prompt the block too."""
    found = document(run("recall", "what can't I eat?", "--user", "marie", "-k", 1, "--json", "--explain", "--prompt"))
    [hit] = found["hits"]
    assert (hit["id"], hit["session"], hit["metadata"]) == ("allergy", "monday", {"channel": "web"})
    assert 0 < hit["score"] <= 1
    assert "vector" in hit["parts"]
    assert found["prompt"].startswith("<memory-")
    assert set(document(run("recall", "x", "--user", "marie", "--json"))) == {"hits"}


def test_recall_prints_the_prompt_block_alone(run, store):
    """--prompt prints the block as a model gets it, and an empty line where there is nothing to say."""
    block = run("recall", "what can't I eat?", "--user", "marie", "--prompt").stdout
    with MemoryStore.open(store, keys=RawKey(KEY)) as opened:
        assert block == opened.user("marie").recall("what can't I eat?").as_prompt() + "\n"
    assert run("recall", "x", "--user", "nobody", "--prompt").stdout == "\n"


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--session", "tuesday"], {"I play the cello", "Noted."}),
        (["--until", "2026-03-03"], {"I'm allergic to peanuts"}),
        (["--since", "2026-03-02T20:30:00+01:00"], {"I play the cello", "Noted."}),
        (["--where", '{"channel": "web"}'], {"I'm allergic to peanuts"}),
        (["--min-score", "1"], set()),
    ],
)
def test_recall_filters(run, store, options, texts):
    """Each condition of recall is an option."""
    floor = [] if "--min-score" in options else ["--min-score", "0"]
    found = document(run("recall", "peanuts", "--user", "marie", "--json", *floor, *options))
    assert {hit["text"] for hit in found["hits"]} == texts


def test_finding_nothing_is_no_failure(run, store):
    """A recall and a history without results say so and exit with 0; in JSON they are empty lists."""
    assert run("recall", "x", "--user", "nobody").stdout == "Nothing found.\n"
    assert run("history", "--user", "nobody").stdout == "Nothing is remembered.\n"
    assert document(run("recall", "x", "--user", "nobody", "--json")) == {"hits": []}
    assert document(run("history", "--user", "nobody", "--json")) == {"memories": [], "cursor": None}


def test_history_goes_back_by_its_cursor(run, store):
    """The last turns come oldest first; the cursor, in JSON or named on stderr, gives those before."""
    last = run("history", "--user", "marie", "-n", 1)
    assert "Noted." in last.stdout
    told = last.stderr.split()[-1]
    page = document(run("history", "--user", "marie", "-n", 2, "--before", told, "--json"))
    assert [turn["text"] for turn in page["memories"]] == ["I'm allergic to peanuts", "I play the cello"]
    assert page["cursor"] is None
    assert "Marie (user)" in run("history", "--user", "marie", "--session", "tuesday", "--ids").stdout


# --- Hostile texts ---


def acts(text: str) -> set[str]:
    """The characters of an output that a terminal would obey, line ends aside."""
    return {each for each in text.replace("\n", "") if unicodedata.category(each) in {"Cc", "Cf", "Zl", "Zp", "Cs"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ["recall", "evil", "--ids"],
        ["recall", "evil", "--prompt"],
        ["recall", "evil", "--json", "--prompt"],
        ["history"],
        ["history", "--json"],
        ["history", "--session", HOSTILE[:20]],
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_a_text_cannot_act_on_the_terminal(run, store, arguments):
    """No control character and no bidirectional mark of a memory, its speaker or its session gets to the terminal; its
    markup stays text."""
    result = run(arguments[0], "--user", "eve", *arguments[1:])
    assert acts(result.output) == set()
    assert "".join(MARKUP.split()) in "".join(result.stdout.split())


def test_json_is_exact(run, store):
    """What was escaped for the terminal comes back to the character from JSON."""
    [memory] = document(run("history", "--user", "eve", "--json"))["memories"]
    assert (memory["text"], memory["speaker"]) == (HOSTILE, HOSTILE[:20])


def test_names_and_paths_cannot_act_on_the_terminal_either(run, store, tmp_path, at_terminal):
    """User ids in questions and paths in errors are escaped as texts are."""
    user = "eve\x1b[2J\u202e"
    for result in (
        run("forget", "x", "--user", user, typed="n\n", fails=1),
        run("erase", "--user", user, typed="no\n", fails=1),
        run("info", "--store", tmp_path / "a\x1b[2J", fails=7),
        run("info", "--store", tmp_path / "a\x1b[2J", "--json", fails=7),
    ):
        assert acts(result.output) == set()


def test_a_pipe_gets_no_colours(store):
    """Where stdout is no terminal there is not one escape code, whatever TERM says."""
    for arguments in (["history", "--user", "eve"], ["info"], ["--help"], ["history"]):
        done = child(*arguments)
        assert "\x1b" not in done.stdout + done.stderr


def test_a_narrow_terminal_cuts_nothing_off(run, store, monkeypatch):
    """At 80 characters the evaluation's table has all its columns, and ids and cursors can still be copied whole."""
    monkeypatch.setattr(output, "_WIDTH", 80)
    header, first = run("eval", DATA).stdout.splitlines()[:2]
    assert (header.split()[-1], len(header) <= 80) == ("ndcg@10", True)
    assert len(first.split()) == 3 + len(METRICS)
    [memory] = document(run("history", "--user", "eve", "--json"))["memories"]
    assert memory["id"] in run("history", "--user", "eve", "--ids").stdout
    assert memory["id"] in run("recall", "evil", "--user", "eve", "--ids", "--explain").stdout


def test_what_stays_readable():
    """Emoji joined by invisible characters, right-to-left letters, accents and quotes are shown as they are."""
    for text in ("👩‍👧 ❤️", "שלום", "naïve “quotes” \\ [x]", "می‌خواهم"):
        assert output.shown(text) == text


def test_a_terminal_of_few_characters_gets_escapes(store):
    """What an ASCII terminal cannot show is escaped, not a crash."""
    done = child("history", "--user", "zoe", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Zo\\xeb \\U0001f3bb" in done.stdout


# --- forget, erase ---


def test_forget_by_id_or_by_conditions(run, store):
    """forget takes one id or conditions, says how many went, and an unknown id is 0 and no failure."""
    assert document(run("forget", "allergy", "--user", "marie", "--yes", "--json")) == {"forgotten": 1}
    assert document(run("forget", "allergy", "--user", "marie", "--yes", "--json")) == {"forgotten": 0}
    assert run("forget", "--user", "marie", "--session", "tuesday", "--yes").stdout == "Forgotten: 2\n"


@pytest.mark.parametrize("options", [[], ["allergy", "--session", "monday"]])
def test_forget_needs_one_of_both(run, store, options):
    """Neither id nor condition, or both, is exit code 2, and nothing goes."""
    run("forget", "--user", "marie", *options, "--yes", fails=2)
    assert len(document(run("history", "--user", "marie", "--json"))["memories"]) == 3


def test_forget_asks_first(run, store, at_terminal):
    """At a terminal, forget asks on stderr; no is exit code 1 and forgets nothing, yes forgets."""
    refused = run("forget", "--user", "marie", "--session", "monday", "--json", typed="n\n", fails=1)
    assert "all memories that meet --session of user marie" in refused.output
    assert "{" not in refused.stdout
    assert run("forget", "allergy", "--user", "marie", typed="y\n").stdout.endswith("Forgotten: 1\n")


def test_erase_asks_for_the_users_name(run, store, at_terminal):
    """erase goes on only when the user's id is typed, and prints the receipt."""
    run("erase", "--user", "marie", typed="mary\n", fails=1)
    run("erase", "--user", "marie", typed="\n", fails=1)
    told = run("erase", "--user", "marie", typed="marie\n")
    assert "all 3 memories of user marie" in told.stderr
    assert "Erased 3 memories" in told.stdout
    assert "No file of the store holds a byte of them" in told.stdout


def test_the_receipt_as_json(run, store):
    """The receipt has the time, the store, the user's reference and how many memories went."""
    receipt = document(run("erase", "--user", "marie", "--yes", "--json"))
    assert set(receipt) == {"at", "store", "user", "memories", "files_clean"}
    assert (receipt["memories"], receipt["files_clean"]) == (3, True)
    assert document(run("info", "--json"))["users"] == 2


@pytest.mark.parametrize("command", ["forget", "erase"])
def test_nobody_to_ask_is_not_a_yes(run, store, command):
    """Without a terminal and without --yes nothing is destroyed, whatever stands on standard input."""
    arguments = ["allergy"] if command == "forget" else []
    assert "--yes" in run(command, *arguments, "--user", "marie", typed="y\nmarie\n", fails=2).stderr
    assert len(document(run("history", "--user", "marie", "--json"))["memories"]) == 3


# --- export, import ---


def test_an_export_moves_a_user(run, store, tmp_path):
    """What export wrote, import adds to another user under the export's own passphrase; a second time it is kept."""
    file, secret = tmp_path / "marie.export", {"MEMLAYER_EXPORT_PASSPHRASE": "a long passphrase"}
    told = document(run("export", file, "--user", "marie", "--json", **secret))
    assert told == {"exported": 3, "file": str(file)}
    assert "already" in run("export", file, "--user", "marie", fails=2, **secret).stderr
    assert document(run("import", file, "--user", "new", "--json", **secret)) == {"added": 3, "kept": 0}
    assert run("import", file, "--user", "new", **secret).stdout == "Added 0 memories; 3 were there already.\n"


def test_an_export_that_does_not_open(run, store, tmp_path):
    """No passphrase and a wrong one are exit code 3, a damaged file 4, a missing file 2."""
    file, secret = tmp_path / "marie.export", {"MEMLAYER_EXPORT_PASSPHRASE": "a long passphrase"}
    assert "MEMLAYER_EXPORT_PASSPHRASE" in run("export", file, "--user", "marie", fails=3).stderr
    run("export", file, "--user", "marie", **secret)
    run("import", file, "--user", "new", fails=3, MEMLAYER_EXPORT_PASSPHRASE="another passphrase")
    run("import", tmp_path / "nothing", "--user", "new", fails=2, **secret)
    file.write_bytes(file.read_bytes()[:-1])
    run("import", file, "--user", "new", fails=4, **secret)


def test_the_exports_passphrase_is_asked_for_twice(run, store, tmp_path, at_terminal):
    """At a terminal, export asks until both answers agree; import asks once; what was typed is not shown."""
    file = tmp_path / "marie.export"
    told = run(
        "export", file, "--user", "marie", typed="one passphrase\nother passphrase\na passphrase\na passphrase\n"
    )
    assert "passphrase\n" not in told.stdout.replace("Passphrase", "")
    assert "Added 3" in run("import", file, "--user", "new", typed="a passphrase\n").stdout


# --- info, verify ---


def test_info_tells_what_the_store_is(run, store):
    """info has path, size, format, users, embedder, key slots, read-only, and the versions of SQLite and memlayer."""
    told = document(run("info", "--json"))
    assert (told["store"], told["bytes"]) == (str(store), store.stat().st_size)
    assert (told["format"], told["users"], told["read_only"]) == (1, 3, False)
    assert told["embedder"]["dimensions"] == 384
    assert told["key_slots"] == [{"slot": 1, "kind": "key", "used": True}]
    assert told["sqlite"].startswith("3.")
    assert told["memlayer"] == stores.package_version()
    lines = run("info").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["Store", "Format", "Users", "Embedder", "Keys"]


def test_verify_reports_what_it_checked(run, store):
    """verify counts users and memories, in words and as JSON."""
    report = document(run("verify", "--json"))
    assert (report["users"], report["memories"]) == (3, 5)
    assert set(report) == {"users", "memories", "buckets", "pages"}
    assert run("verify").stdout.startswith("Intact. Memories: 5, users: 3")


def test_a_restored_backup_is_accepted_by_verify(run, store, filled):
    """An older copy of the store is exit code 4 with the option named; `verify --accept-rollback` takes it for good."""
    run("forget", "allergy", "--user", "marie", "--yes")
    shutil.copy(filled, store)
    assert "memlayer verify --accept-rollback" in run("history", "--user", "marie", fails=4).stderr
    run("verify", "--accept-rollback")
    assert len(document(run("history", "--user", "marie", "--json"))["memories"]) == 3


# --- Embedders ---


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that was written with an embedder that has no name, and that the command finds."""
    path = tmp_path / "hashed.db"
    with MemoryStore.open(path, keys=RawKey(KEY), embedder=HashingEmbedder()) as store:
        store.user("ann").remember("Tea", session="a", id="tea")
        store.user("ann").remember("Cake", session="b")
    monkeypatch.setenv("MEMLAYER_STORE", str(path))
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(KEY).decode())
    return path


def test_what_embeds_nothing_needs_no_embedder(run, hashed, tmp_path):
    """Whatever a store is written with, all commands that embed nothing work, with the option and without."""
    assert document(run("info", "--json"))["embedder"]["model"] == "memlayer.testing/hashing"
    assert "memlayer.testing/hashing, 64 dimensions" in run("info").stdout
    assert document(run("verify", "--json"))["memories"] == 2
    assert len(document(run("history", "--user", "ann", "--embedder", "static", "--json"))["memories"]) == 2
    given = {"MEMLAYER_EXPORT_PASSPHRASE": "a passphrase", "MEMLAYER_EMBEDDER": "no/such/thing"}
    assert document(run("export", tmp_path / "ann.memlayer", "--user", "ann", "--json", **given))["exported"] == 2
    assert document(run("forget", "tea", "--user", "ann", "--yes", "--json"))["forgotten"] == 1
    assert document(run("erase", "--user", "ann", "--yes", "--json"))["memories"] == 1
    with MemoryStore.open(hashed, keys=RawKey(KEY), embedder=HashingEmbedder()) as store:
        assert store.count_users() == 0


@pytest.mark.parametrize("command", ["init", "remember", "recall", "import", "chat", "mcp"])
def test_what_embeds_takes_the_name_of_an_embedder(run, command):
    """The help of each command that embeds names the option and its variable; the others do not show it."""
    text = run(command, "--help", TERMINAL_WIDTH="300").stdout
    assert "--embedder NAME" in text
    assert "MEMLAYER_EMBEDDER" in text
    assert "--embedder" not in run("history", "--help").stdout


def test_a_store_that_was_moved_is_used_by_the_name_of_its_embedder(run, store, tmp_path, monkeypatch):
    """After `memlayer reembed`, every command works with the new embedder's name, as option or in the environment."""
    assert "Moved 5 memories" in run("reembed", "onnx-int8").stdout
    assert "all-MiniLM-L6-v2/int8, 384 dimensions" in run("info").stdout
    assert "--embedder NAME" in run("recall", "allergic", "--user", "marie", fails=6).stderr
    found = run("recall", "what can't she eat?", "--user", "marie", "--embedder", "onnx-int8", "-k", "1").stdout
    assert "peanuts" in found
    monkeypatch.setenv("MEMLAYER_EMBEDDER", "onnx-int8")
    assert "peanuts" in run("recall", "what can't she eat?", "--user", "marie", "-k", "1").stdout
    run("remember", "I moved to Lisbon", "--user", "marie")
    secret = {"MEMLAYER_EXPORT_PASSPHRASE": "a passphrase"}
    run("export", tmp_path / "marie.memlayer", "--user", "marie", **secret)
    assert "Added 4" in run("import", tmp_path / "marie.memlayer", "--user", "new", **secret).stdout
    assert "Intact. Memories: 10" in run("verify").stdout


def test_init_makes_a_store_for_the_embedder_that_it_is_told(run, tmp_path):
    """`init --embedder` binds the new store to it, and a name that is none makes no store."""
    path = tmp_path / "new.db"
    run("init", "--store", path, "--embedder", "litellm/nothing", fails=2)
    assert not path.exists()
    run("init", "--store", path, "--embedder", "onnx-int8")
    assert document(run("info", "--store", path, "--json"))["embedder"]["model"].endswith("/int8")


def test_info_tells_of_a_move_that_is_not_finished(run, hashed):
    """While a store is on its way from one embedder to another, info names both."""

    class Broken(HashingEmbedder):
        def embed_documents(self, texts):
            if len(texts) > 1:
                raise RuntimeError
            return super().embed_documents(texts)

    store = MemoryStore.open(hashed, keys=RawKey(KEY), embedder=HashingEmbedder())
    with store, pytest.raises(MemlayerError):
        store.reembed(Broken(32))
    told = document(run("info", "--json"))
    assert told["embedder"]["dimensions"] == 32
    assert [former["dimensions"] for former in told["moving_from"]] == [64]
    assert "not finished: the change from memlayer.testing/hashing" in run("info").stdout


# --- eval ---


def test_eval_prints_a_table(run):
    """The table has each metric for recall and for cosine, overall, by category and by conversation, and times."""
    result = run("eval", DATA)
    assert result.stdout.split()[:4] == ["asked", "by", "R@5", "R@10"]
    assert result.stdout.count(" cosine ") == 1 + 4 + 2 + 2 + 2 + 2
    assert (
        "9 turns, 10 vectors; 6 questions asked, 1 of category 5 and 1 without evidence were not asked."
        in result.stdout
    )
    assert "p95" in result.stdout


def test_eval_as_json(run):
    """JSON has the same, with nothing of the progress bar on stdout; --all-categories asks the skipped ones too."""
    report = document(run("eval", DATA, "--json", "--all-categories"))
    assert (report["overall"]["questions"], report["skipped"]) == (7, 0)
    assert report["overall"]["recall"]["recall@10"] >= report["overall"]["cosine"]["recall@10"]
    assert set(report["by_category"]) == {"1", "2", "4", "5", "food"}
    assert report["times"]["recall_p95_ms"] > 0


def test_eval_names_the_line_that_does_not_fit(run, tmp_path):
    """A malformed file is exit code 2 and one line that names the line."""
    file = tmp_path / "bad.jsonl"
    file.write_text(DATA.read_text(encoding="utf-8") + "{oops\n", encoding="utf-8")
    result = run("eval", file, fails=2)
    assert result.stderr == f"memlayer: {file}, line 3: this is no JSON\n"
    told = json.loads(run("eval", file, "--json", fails=2).stderr)
    assert told["error"] == "invalid_input"


# --- Keys and prompts ---


def test_no_secret_is_taken_as_an_argument(run, store):
    """--passphrase and --recovery-key take no value: a word behind them is one argument too many."""
    run("info", "--passphrase", "secret", fails=2)
    run("info", "--recovery-key=secret", fails=2)


def test_only_one_key_may_be_named(run, store):
    """Two key options are exit code 2."""
    run("info", "--passphrase", "--key-file", "x", fails=2)


def test_a_new_passphrase_is_asked_for_twice(run, tmp_path, at_terminal):
    """init asks for a new passphrase and again; the other commands once; what was typed is not shown."""
    path, secret = tmp_path / "memories.db", "correct horse battery staple"
    made = run("init", "--store", path, "--passphrase", typed=f"{secret}\nmistyped\n{secret}\n{secret}\n")
    assert secret not in made.output
    assert (
        document_of_last_line(run("info", "--store", path, "--passphrase", "--json", typed=f"{secret}\n"))["users"] == 0
    )
    assert "does not open" in run("info", "--store", path, "--passphrase", typed="wrong\n", fails=3).stderr


def document_of_last_line(result: Result) -> Any:
    # The runner of the tests writes prompts to stdout, where the real ones are on the terminal.
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_passphrase_is_hidden_at_a_real_terminal(filled, tmp_path):
    """Typed at a terminal, a passphrase opens the store, is not echoed, and leaves stdout to the JSON."""
    import pty

    path, secret = tmp_path / "memories.db", "correct horse battery staple"
    with MemoryStore.open(filled, keys=RawKey(KEY)) as opened:
        opened.backup(path)
    from memlayer.sources import FAST_FOR_TESTS, Passphrase

    with MemoryStore.open(path, keys=RawKey(KEY)) as opened:
        opened.add_key(Passphrase(secret, cost=FAST_FOR_TESTS))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "memlayer", "info", "--store", str(path), "--passphrase", "--json"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        text=True,
    )
    os.close(theirs)
    seen = b""
    while b"Passphrase: " not in seen:
        seen += os.read(ours, 1000)
    os.write(ours, secret.encode() + b"\n")
    printed, _ = process.communicate(timeout=60)
    try:
        seen += os.read(ours, 1000)
    except OSError:  # Linux says so where nobody has the other end any more.
        pass
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(printed)["users"] == 3
    assert secret.encode() not in seen


# --- Errors ---


def every_error() -> list[type[MemlayerError]]:
    return [getattr(errors, name) for name in errors.__all__ if name != "MemlayerError"]


EXPECTED = {
    "InvalidInputError": 2,
    "InvalidFilterError": 2,
    "LimitExceededError": 2,
    "KeyUnavailableError": 3,
    "WrongKeyError": 3,
    "NotAStoreError": 4,
    "StoreDamagedError": 4,
    "RollbackDetectedError": 4,
    "FormatTooNewError": 4,
    "ExportDamagedError": 4,
    "StorageError": 5,
    "StoreBusyError": 5,
    "StorageFullError": 5,
    "ReadOnlyStoreError": 5,
    "StoreClosedError": 5,
    "DistilError": 6,
    "EmbedderError": 6,
    "EmbedderMismatchError": 6,
    "WeightsUnavailableError": 6,
    "MissingExtraError": 6,
    "RecallTimeoutError": 5,
    "NotFoundError": 7,
    "StoreMissingError": 7,
    "ConflictError": 8,
}


def test_every_error_has_its_exit_code():
    """The exit code of every class of errors.py is written down here, and none is left to chance."""
    assert {kind.__name__: output.exit_code(kind("x")) for kind in every_error()} == EXPECTED


def test_an_error_is_one_line_on_stderr(run, store):
    """A wrong key is exit code 3, one line that speaks of options, and nothing on stdout."""
    result = run("verify", fails=3, MEMLAYER_KEY=base64.b64encode(bytes(32)).decode())
    assert result.stdout == ""
    assert result.stderr.startswith("memlayer: this key does not open the store")
    assert result.stderr.endswith("(here: --passphrase, --key-file or --recovery-key)\n")
    assert result.stderr.count("\n") == 1


def test_an_error_as_json_is_one_object(run, store):
    """With --json the line is an object with the error's code and message."""
    result = run("verify", "--json", fails=3, MEMLAYER_KEY=base64.b64encode(bytes(32)).decode())
    told = json.loads(result.stderr)
    assert (set(told), told["error"], result.stdout) == ({"error", "message"}, "wrong_key", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["recall", "x", "--user", "marie", "--nonsense"],
        ["recall", "x"],
        ["recall", "x", "--user", "marie", "--since", "yesterday"],
        ["recall", "x", "--user", "marie", "--where", "{oops"],
        ["recall", "x", "--user", "marie", "--where", "[1]"],
        ["recall", "x", "--user", "marie", "--where", "[" * 100_000],
        ["recall", "x", "--user", "marie", "-k", "many"],
        ["remember", "x", "--user", "marie", "--role", "robot"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(run, store, arguments):
    """A wrong option, value or command is 2, as JSON where JSON was asked for."""
    assert "Error: " in run(*arguments, fails=2).stderr
    told = json.loads(run(*arguments, "--json", fails=2).stderr)
    assert told["error"] == "usage"


@pytest.mark.parametrize(
    "arguments",
    [
        ["recall", "x", "--user", "marie", "-k", 0],
        ["recall", "x", "--user", "marie", "--min-score", 2],
        ["recall", "x", "--user", "marie", "--where", '{"a": {"$foo": 1}}'],
        ["recall", " ", "--user", "marie"],
        ["history", "--user", ""],
        ["history", "--user", "x" * 600],
        ["history", "--user", "marie", "--before", "nothing"],
        ["remember", "", "--user", "marie"],
        ["remember", "x", "--user", "marie", "--metadata", '{"a": NaN}'],
    ],
)
def test_what_the_library_refuses_is_exit_code_2(run, store, arguments):
    """A value that memlayer does not take is 2, with memlayer's own sentence."""
    assert run(*arguments, fails=2).stderr.startswith("memlayer: ")


def test_a_file_that_is_no_store_is_exit_code_4(run, store, tmp_path):
    """Another file and a folder are 4 and stay as they are; so is a store that was altered."""
    other = tmp_path / "notes.txt"
    other.write_text("not a database at all, but long enough to be looked at" * 100)
    run("info", "--store", other, fails=4)
    assert other.read_text().startswith("not a database")
    run("info", "--store", tmp_path, fails=4)
    altered = bytearray(store.read_bytes())
    altered[len(altered) // 2 :] = bytes(len(altered) - len(altered) // 2)
    store.write_bytes(altered)
    run("verify", fails=4)


def test_another_embedder_is_exit_code_6(run, hashed):
    """Embedding for a store that was written with another embedder is 6, and the option is named."""
    for arguments in (["recall", "x"], ["remember", "x"]):
        told = run(*arguments, "--user", "ann", fails=6).stderr
        assert "written with the embedder" in told
        assert "(here: --embedder NAME or MEMLAYER_EMBEDDER)" in told


def test_an_interruption_is_exit_code_130(run, store, monkeypatch):
    """Ctrl-C, while it works or at a prompt, is 130 and one line."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryStore, "count_users", interrupted)
    assert run("info", fails=130).stderr == "memlayer: interrupted\n"
    assert json.loads(run("info", "--json", fails=130).stderr)["error"] == "interrupted"


def test_a_prompt_that_is_left_is_exit_code_130(run, store, at_terminal):
    """The end of input at a prompt is 130."""
    run("info", "--passphrase", typed="", fails=130)


def test_what_nobody_foresaw_repeats_no_text(run, store, monkeypatch):
    """A fault in memlayer is exit code 1 and one line with the kind of the exception, not with its words."""

    def faulty(*_: object, **__: object) -> None:
        raise RuntimeError("somebody's secret")

    monkeypatch.setattr(MemoryStore, "count_users", faulty)
    result = run("info", fails=1)
    assert result.stderr.count("\n") == 1
    assert "RuntimeError" in result.stderr
    assert "secret" not in result.output


def test_a_warning_of_the_library_is_one_line(capsys):
    """What the library logs as a warning comes out on stderr, escaped, with the command's name before it."""
    record = logging.LogRecord("memlayer", logging.WARNING, "", 0, "the file %s", ("a\x1b[2J",), None)
    output.Warnings().emit(record)
    assert capsys.readouterr().err == "memlayer: warning: the file a\\x1b[2J\n"
