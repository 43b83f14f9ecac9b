"""The folder of a model that is named: in the Hugging Face hub's cache, else from the hub itself, once.

A model that is in the cache is never looked up again, so a store does not meet other weights because somebody pushed.
HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE are heeded, and so is the caller's own login at the hub: a model may be gated.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from memlayer.errors import InvalidInputError, MissingExtraError, WeightsUnavailableError

__all__ = ["find", "folder_of", "has_weights", "name_in_cache"]

log = logging.getLogger("memlayer")

# No pickled weights and no code. Exports for other runtimes would only be dead weight.
_WANTED: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_UNWANTED: Final = ("onnx/*", "openvino/*", "coreml/*", "consolidated*", "checkpoint-*", "*.fp16.*")

_LITELLM: Final = 'a model behind a provider\'s API is named "litellm/<provider>/<model>"'


def folder_of(model: str | Path) -> Path | None:
    """The folder that is meant; None for a name at the hub.

    A folder of that name in the working directory comes before the hub, as it does in sentence-transformers.

    Raises:
        InvalidInputError: a path where there is no folder, or neither a path nor a name.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path.absolute()
    if isinstance(model, Path) or model.startswith((".", "~", "/")) or "\\" in model or model.count("/") > 1:
        raise InvalidInputError(
            f"there is no folder {str(model)!r}; give the folder of a model, or its name at the hub such as "
            f'"intfloat/e5-small-v2" ({_LITELLM})'
        )
    if not all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in model.split("/")):
        raise InvalidInputError(
            f'{model!r} is no name of a model; names at the hub look like "intfloat/e5-small-v2" ({_LITELLM})'
        )
    return None


def name_in_cache(folder: Path) -> str | None:
    """The name of a model whose folder is a snapshot in a hub cache; None for any other folder."""
    # .../models--intfloat--e5-small-v2/snapshots/<revision>
    place = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not place.startswith("models--"):
        return None
    return place.removeprefix("models--").replace("--", "/")


def find(model: str, *, revision: str | None) -> Path:
    """The model's folder on this machine; downloads it where it is nowhere.

    Args:
        model: "organisation/name".
        revision: a commit, tag or branch; None for the main branch.

    Raises:
        WeightsUnavailableError: it is not here, and the hub cannot be reached, does not have it, or is not to be asked.
        MissingExtraError: huggingface_hub, which comes with sentence-transformers, is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            f"{model} needs sentence-transformers, which is not installed ({type(error).__name__}); install it with "
            '`pip install "memlayer-sdk[local]"`, or pass another embedder',
            extra="local",
        ) from error
    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        # A snapshot may hold only what somebody asked for, such as the ONNX export.
        if has_weights(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    log.info("%s is not on this machine; asking the Hugging Face hub for it (once)", model)
    try:
        folder = Path(
            snapshot_download(model, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        )
    # The hub library lets its HTTP client's errors out, and that client has changed between versions.
    except Exception as error:
        raise WeightsUnavailableError(
            f"{model} is not on this machine and could not be downloaded ({type(error).__name__}); give the folder of "
            f"a model, or a name that the hub has ({_LITELLM})",
            model=model,
        ) from error
    return folder


def has_weights(folder: Path) -> bool:
    """Whether the folder has safetensors weights in it, at any depth, and none of them is half there."""
    return any(path.is_file() for path in folder.rglob("*.safetensors"))
