"""Runs the benchmarks, each section in a process of its own, and writes what they found as JSON and as a page.

python -m benchmarks                   # all, some fifteen minutes
python -m benchmarks --quick           # a part of it, under two minutes
python -m benchmarks recall users      # these sections
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.page import page

# What each section is called with, at full length and in a hurry.
_SECTIONS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "embedding": ({"texts": 2_000, "rounds": 300}, {"texts": 300, "rounds": 50}),
    "recall": ({"sizes": [100, 1_000, 10_000, 100_000], "rounds": 200}, {"sizes": [1_000, 10_000], "rounds": 50}),
    "writing": ({"many": 50_000, "rounds": 300}, {"many": 5_000, "rounds": 50}),
    "opening": ({"sizes": [1_000, 10_000, 100_000], "rounds": 5}, {"sizes": [1_000], "rounds": 1}),
    "users": ({"users": 1_000, "each": 100, "rounds": 500}, {"users": 100, "each": 100, "rounds": 100}),
    "footprint": ({"sizes": [100, 1_000, 10_000, 100_000]}, {"sizes": [1_000]}),
    "overhead": ({"rounds": 200}, {"rounds": 50}),
}
_MILLION: Final = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="What memlayer costs, each figure beside its floor in the same run.")
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(_SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a part of it, under two minutes")
    parser.add_argument(
        "--million", action="store_true", help="a recall among a million memories too; takes 8 GB of RAM"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="the folder for both files")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a section, in the child
    options = parser.parse_args()
    if options.only:
        name, arguments = options.only, json.loads(sys.stdin.read())
        for figure in import_module(f"benchmarks.{name}").measure(**arguments):
            print(json.dumps(figure.as_json()), flush=True)
        return
    unknown = set(options.sections) - set(_SECTIONS)
    if unknown:
        parser.error(f"no section is called {', '.join(sorted(unknown))}")
    found = []
    for name in options.sections or _SECTIONS:
        arguments = dict(_SECTIONS[name][options.quick])
        if options.million and name in ("recall", "footprint"):
            arguments["sizes"] = [*arguments["sizes"], _MILLION]
        print(f"-- {name}", flush=True)
        found += _run(name, arguments)
    results = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processors": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "figures": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.out / "results.html").write_text(page(results), encoding="utf-8")
    print(f"Wrote {options.out / 'results.json'} and {options.out / 'results.html'}")


def _run(name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of one section, each shown as it comes."""
    found = []
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "benchmarks", "--only", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        child.stdin.write(json.dumps(arguments))
        child.stdin.close()
        for line in child.stdout:
            found.append(json.loads(line))
            print(_told(found[-1]), flush=True)
    if child.returncode:
        raise SystemExit(f"the section {name} failed")
    return found


def _told(figure: dict[str, Any]) -> str:
    value = f"{figure['value']:>12,.3f} {figure['unit']:8}"
    floor = "" if figure["floor"] is None else f"{figure['ratio']:.2f} x {figure['floor_name']}"
    verdict = {None: "    ", True: "ok  ", False: "MISS"}[figure["reached"]]
    return f"{verdict} {value} {figure['name']:62} {floor}".rstrip()


if __name__ == "__main__":
    main()
