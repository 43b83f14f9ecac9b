"""What is shipped: the wheel's content, one version, and `memlayer.adapters` from every kind of checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = ROOT / "memlayer" / "adapters"

# The backend is called as pip would call it, without an isolated environment: that would need the network.
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def checkout(folder: Path, *, links: bool = True) -> Path:
    """A copy of what git would check out, with links or without, so that nothing is built in the project's folder."""
    folder.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("memlayer", "adapters", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    link = folder / "memlayer" / "adapters"
    link.unlink(missing_ok=True)
    if links:
        link.symlink_to("../adapters")
    else:  # what git leaves on a file system that has none: a text file with the target
        link.write_text("../adapters")
    return folder


def run(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """A fresh Python's output. With `path`, that folder and the installed dependencies are all that it can import."""
    command = [sys.executable, *arguments]
    environment = None
    if path is not None:
        # -S and PYTHONPATH: no .pth file is read, so that this project's own editable install is out of the way.
        command.insert(1, "-S")
        environment = {"PYTHONPATH": f"{path}{os.pathsep}{sysconfig.get_path('purelib')}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def build(hook: str, source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / run("-c", BUILD, hook, str(folder), cwd=source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, by the longest way: from the source distribution of a checkout without links."""
    work = tmp_path_factory.mktemp("package")
    source = checkout(work / "checkout", links=False)
    archive = build("build_sdist", source, work / "sdist")
    shutil.unpack_archive(archive, work / "unpacked", filter="data")
    [unpacked] = (work / "unpacked").iterdir()
    return build("build_wheel", unpacked, work / "wheel")


def sources(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    """What is in memlayer/ and adapters/ is in the wheel; tests, .pth files and a second `adapters` are not."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"memlayer/{name}" for name in sources(ROOT / "memlayer") if not name.startswith("adapters/")}
    expected |= {f"memlayer/adapters/{name}" for name in sources(ROOT / "adapters")}
    data = {"memlayer/py.typed", "memlayer/calibration_data.jsonl", "memlayer/calibrations.json"}
    assert names == expected | data


def test_the_wheel_has_the_licence_and_the_command(wheel):
    """The licence travels along, and `memlayer` is a command."""
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
    assert "memlayer = memlayer.cli:main" in archive.read(entry_points).decode()


def test_a_direct_wheel_is_the_same(wheel, tmp_path):
    """A checkout with links gives the same files as the way over the source distribution."""
    direct = build("build_wheel", checkout(tmp_path / "checkout"), tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(direct).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_an_installed_wheel_imports_its_adapters(wheel, tmp_path):
    """`memlayer.adapters` is a package of the installed wheel."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    found = run("-c", "import memlayer.adapters as a; print(a.__file__)", cwd=tmp_path, path=tmp_path / "site")
    assert Path(found) == tmp_path / "site" / "memlayer" / "adapters" / "__init__.py"


def test_a_bare_checkout_imports_its_adapters_through_the_link(tmp_path):
    """Nothing installed, the project's folder on the path: the link is enough."""
    source = checkout(tmp_path / "checkout")
    found = run("-c", "import memlayer.adapters as a; print(a.__file__)", cwd=tmp_path, path=source)
    assert Path(found) == source / "memlayer" / "adapters" / "__init__.py"
    assert Path(found).resolve() == source / "adapters" / "__init__.py"


def test_a_checkout_without_links_imports_its_adapters_through_the_mapping(tmp_path):
    """An editable install maps `memlayer.adapters` to adapters/, so a file system without links does as well."""
    source = checkout(tmp_path / "checkout", links=False)
    site = tmp_path / "site"
    zipfile.ZipFile(build("build_editable", source, tmp_path / "wheel")).extractall(site)
    program = f"import site; site.addsitedir({str(site)!r}); import memlayer.adapters as a; print(a.__file__)"
    found = run("-c", program, cwd=tmp_path, path=site)
    assert Path(found) == source / "adapters" / "__init__.py"


def test_the_link_is_in_the_checkout():
    """`memlayer/adapters` is a committed link to adapters/, or the text that stands for it where there are no links."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: a source distribution has no links")
    target = LINK.readlink().as_posix() if LINK.is_symlink() else LINK.read_text()
    assert target == "../adapters"


def test_the_version_stands_in_one_place():
    """pyproject.toml has the version; the installed metadata agrees, and no module repeats it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version("memlayer-sdk") == project["version"]
    repeated = [
        path
        for folder in ("memlayer", "adapters")
        for path in (ROOT / folder).rglob("*.py")
        if f'"{project["version"]}"' in path.read_text(encoding="utf-8")
    ]
    assert repeated == []


def test_every_package_is_listed():
    """pyproject.toml names its packages one by one; a new folder that is forgotten there would not be shipped."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "memlayer").rglob("__init__.py") if "adapters" not in path.parts}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"memlayer.adapters"}
    assert set(setuptools["packages"]) == found


def test_constraints_name_no_place():
    """constraints.txt pins versions only: no host, no path, and no build of torch that other machines lack."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if "/" in pin or "@" in pin or "+" in pin or pin.count("==") != 1] == []
    assert "torch==2.13.0" in pins
