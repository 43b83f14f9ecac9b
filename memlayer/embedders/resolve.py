"""From what a caller names or brings to an embedder."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memlayer.embedders.minilm import MiniLM
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.embedders.sentence_transformers import SentenceTransformerEmbedder
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.embedders.protocol import Embedder

__all__ = ["resolve"]

_MINILM: Final = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_ONNX: Final = ("onnx", "onnx-int8")
_ONNX_PACKAGES: Final = ("onnxruntime", "safetensors", "tokenizers")
_ATTRIBUTES: Final = ("identity", "embed_documents", "embed_query")
_LITELLM: Final = "litellm/"


def resolve(embedder: str | Path | Embedder | None) -> Embedder:
    """The embedder that is meant; nothing is loaded.

    Args:
        embedder: one of
            None, or a name of all-MiniLM-L6-v2: that model on this machine; on onnxruntime where that is installed,
                with the same vectors in half the time and a tenth of the load, else on torch
            "onnx", "torch": the same model on the one or the other
            "onnx-int8": that in eight bits, twice as fast and nearly as good
            "static": static vectors, distilled from that model
            "litellm/<provider>/<model>": a provider's model
            any other name: a model of sentence-transformers at the hub
            a folder: a model of sentence-transformers, or of static vectors (model2vec)
            an object with the `Embedder` protocol: that object

    Raises:
        InvalidInputError: neither a name nor a folder, or an object that is no embedder.
        EmbedderError: a folder with a model that memlayer does not load, and why.
    """
    if embedder is None:
        return _minilm()
    if isinstance(embedder, str):
        return _named(embedder)
    if isinstance(embedder, Path):
        return _local(embedder)
    if isinstance(embedder, type):
        raise InvalidInputError(f"embedder is the class {embedder.__name__}; pass an object of it")
    # Spelled out in place of isinstance(embedder, Embedder), which cannot say what is missing.
    missing = [name for name in _ATTRIBUTES if not hasattr(embedder, name)]
    if missing:
        raise InvalidInputError(f"{type(embedder).__name__} is no embedder: it has no {', '.join(missing)}")
    if not isinstance(embedder.identity, EmbedderIdentity):
        raise InvalidInputError(
            f"the identity of {type(embedder).__name__} must be an EmbedderIdentity, "
            f"not {type(embedder.identity).__name__}"
        )
    return embedder


def _named(name: str) -> Embedder:
    if name in _MINILM:
        return _minilm()
    if name == "torch":
        return MiniLM()
    if name in _ONNX:
        from memlayer.embedders.onnx import OnnxMiniLM

        return OnnxMiniLM(int8=name == "onnx-int8")
    if name == "static":
        from memlayer.embedders.static import StaticEmbedder

        return StaticEmbedder()
    if name == _LITELLM.rstrip("/") or name.startswith(_LITELLM):
        model = name.removeprefix(_LITELLM)
        if "/" not in model or not all(model.split("/", 1)):
            raise InvalidInputError(
                f'{name!r} names no provider and model; write "litellm/<provider>/<model>", such as '
                '"litellm/openai/text-embedding-3-small"'
            )
        from memlayer.embedders.litellm import LiteLLMEmbedder

        return LiteLLMEmbedder(model)
    if not name.strip():
        raise InvalidInputError("embedder is an empty name; leave it out for all-MiniLM-L6-v2 on this machine")
    return _local(name)


def _minilm() -> Embedder:
    if not all(find_spec(package) for package in _ONNX_PACKAGES):
        return MiniLM()
    from memlayer.embedders.onnx import OnnxMiniLM

    return OnnxMiniLM()


def _local(model: str | Path) -> Embedder:
    folder = Path(model).expanduser()
    if _is_static(folder):
        from memlayer.embedders.static import StaticEmbedder

        return StaticEmbedder(folder)
    return SentenceTransformerEmbedder(model)


def _is_static(folder: Path) -> bool:
    """Whether the folder holds static vectors, as model2vec saves them."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "model2vec"
