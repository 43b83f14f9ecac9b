"""A folder of model files: which kind of model it is, told from its JSON alone, and whether memlayer loads it.

What holds for every model that is loaded through this:

1. Weights are safetensors. A pickle is never opened: opening one runs what is in it.
2. No code of the model's own is run. A model that needs some is refused, not run without it: it would give other
   vectors under the same name.
3. Pooling is never guessed. A model whose files do not say it gives vectors whichever way one pools, and only one way
   is right.
4. The digest covers every file that decides a vector, by its name and content, and nothing else: the same model has
   the same digest wherever it lies and however it came there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from memlayer.errors import EmbedderError, WeightsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["TRANSFORMER", "Checkpoint", "Module", "read", "remote_code"]

TRANSFORMER: Final = frozenset({"Transformer", "CLIPModel"})
"""The modules that are a model of transformers, with its tokenizer."""

# Of a transformers folder. Where there is a tokenizer.json, the vocabulary in other formats is not read.
_DECIDE: Final = frozenset(
    {
        "added_tokens.json",
        "config.json",
        "modules.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
_VOCABULARY: Final = frozenset({".model", ".txt"}) | {"vocab.json"}
_INDEX: Final = "model.safetensors.index.json"

# Modules of sentence-transformers that leave a vector as long as it was.
_SAME_LENGTH: Final = frozenset({"Dropout", "LayerNorm", "Normalize", "WeightedLayerPooling", "WordWeights"})

# Models that put texts and images into one space with a projection of their own: there is nothing to pool.
_PROJECTING: Final = frozenset({"align", "chinese_clip", "clip", "siglip", "siglip2"})


@dataclass(frozen=True, slots=True)
class Module:
    """One step from a text to its vector, as modules.json lists it.

    Attributes:
        kind: the name of its class, such as "Pooling".
        path: its folder within the model's; "" for that folder itself.
        config: its own settings.
        routes: of a Router, its modules by the role that takes them.
    """

    kind: str
    path: str
    config: Mapping[str, Any]
    routes: Mapping[str, tuple[Module, ...]] = field(default_factory=dict)

    def leaves(self) -> tuple[Module, ...]:
        """The modules within, or this one."""
        return tuple(leaf for route in self.routes.values() for each in route for leaf in each.leaves()) or (self,)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the JSON files of a folder say.

    Attributes:
        folder: where the files are.
        model: the model's public name, for messages.
        modules: in the order in which they run; empty for a folder of transformers alone.
        config: the config.json of the transformers model; empty where the model has none.
        settings: the config_sentence_transformers.json.
    """

    folder: Path
    model: str
    modules: tuple[Module, ...]
    config: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """The class of the transformers model, such as "BertModel"; "" where it is not told."""
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @property
    def projects(self) -> bool:
        """Whether the model's own projection gives the vector, as CLIP's does."""
        return self.config.get("model_type") in _PROJECTING

    @property
    def reads_images(self) -> bool:
        """Whether it puts images into the space of its texts."""
        if not self.modules:
            return self.projects
        first = self.modules[0]
        return first.kind == "CLIPModel" or "image" in (first.config.get("modality_config") or {})

    @property
    def window(self) -> int | None:
        """How many pieces sentence-transformers is told to read at once; None where it is left to the tokenizer."""
        longest = self.modules[0].config.get("max_seq_length") if self.modules else None
        return longest if isinstance(longest, int) else None

    def dimensions(self) -> int:
        """The length of a vector, before any truncation.

        Raises:
            EmbedderError: the files do not tell it.
        """
        if not self.modules:
            return self._hidden(self.config, projected=self.projects)
        return self._after(self.modules)

    def files(self) -> list[Path]:
        """Every file that decides a vector, sorted by name.

        Raises:
            EmbedderError: there are no safetensors weights where weights are due.
            WeightsUnavailableError: a part of them is missing.
        """
        found = {self.folder / "modules.json", *self.folder.rglob("router_config.json")}
        for module in leaves(self.modules) or (Module("Transformer", "", {}),):
            folder = self.folder / module.path
            if module.kind in TRANSFORMER or not module.path:
                found |= set(self._of_transformers(folder))
            else:
                _refuse_pickles(folder, self.model)
                found |= {path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt")}
        return sorted(path for path in found if path.is_file())

    def digests(self) -> dict[str, str]:
        """SHA-256 in hex of each of `files`, by its name within the folder; about 2 GB a second."""
        digests = {}
        for path in self.files():
            with path.open("rb") as file:
                name = path.relative_to(self.folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of change of each of `files`: whether one was replaced since its digest was taken."""
        stats = [(str(path), os.stat(path)) for path in self.files()]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def _of_transformers(self, folder: Path) -> Iterator[Path]:
        names = {path.name for path in folder.iterdir()}
        if _INDEX in names:
            yield folder / _INDEX
            for shard in sorted(
                {PurePosixPath(str(name)).name for name in _json(folder / _INDEX)["weight_map"].values()}
            ):
                if shard not in names:
                    raise WeightsUnavailableError(f"{self.model}: {shard} is missing", model=self.model, file=shard)
                yield folder / shard
        elif "model.safetensors" in names:
            yield folder / "model.safetensors"
        else:
            raise EmbedderError(
                f"{self.model} has no safetensors weights, and memlayer opens no others (a pickle runs what is in it); "
                "take a revision that has a model.safetensors, or convert the model with transformers' save_pretrained",
                model=self.model,
                reason="no_safetensors",
            )
        for name in names:
            decides = name in _DECIDE or (name.startswith("sentence_") and name.endswith("_config.json"))
            vocabulary = name in _VOCABULARY or Path(name).suffix in _VOCABULARY
            if decides or (vocabulary and "tokenizer.json" not in names and name != "requirements.txt"):
                yield folder / name

    def _after(self, modules: tuple[Module, ...]) -> int:
        length: int | None = None
        pooled = any(module.kind == "Pooling" for module in modules)
        for module in modules:
            config = module.config
            if module.kind in TRANSFORMER:
                config = _json(self.folder / module.path / "config.json", default={})
                length = self._hidden(config, projected=not pooled)
            elif module.kind == "Router":
                length = self._after(module.routes.get("document") or next(iter(module.routes.values())))
            elif module.kind == "Pooling":
                length = int(config.get("embedding_dimension") or config["word_embedding_dimension"]) * _modes(config)
            elif module.kind == "Dense":
                if config.get("module_output_name") in (None, "sentence_embedding"):
                    length = int(config["out_features"])
            elif module.kind == "StaticEmbedding":
                length = _columns(self.folder / module.path / "model.safetensors")
            elif module.kind not in _SAME_LENGTH:
                raise self._unknown_length(module.kind)
        if length is None:
            raise self._unknown_length("its modules")
        return length

    def _hidden(self, config: Mapping[str, Any], *, projected: bool) -> int:
        names = ["hidden_size", "d_model", "dim", "n_embd"]
        for own in (config, config.get("text_config") or {}):
            for name in ["projection_dim", *names] if projected else names:
                if isinstance(own.get(name), int):
                    return int(own[name])
        raise self._unknown_length("its config.json")

    def _unknown_length(self, what: str) -> EmbedderError:
        return EmbedderError(
            f"{self.model}: {what} does not tell how long its vectors are; bring an object with the Embedder protocol "
            "around it",
            model=self.model,
            reason="dimensions",
        )


def read(folder: Path, model: str) -> Checkpoint:
    """Read the JSON of a folder, and refuse what memlayer does not load.

    Args:
        folder: an existing folder.
        model: the model's public name, for messages.

    Raises:
        EmbedderError: no model, one that needs code of its own, or an adapter without its model.
    """
    listed = _json(folder / "modules.json", default=[])
    modules = tuple(_module(folder, entry, model) for entry in listed)
    home = next((module.path for module in leaves(modules) if module.kind in TRANSFORMER), "")
    checkpoint = Checkpoint(
        folder=folder,
        model=model,
        modules=modules,
        config=_json(folder / home / "config.json", default={}),
        settings=_json(folder / "config_sentence_transformers.json", default={}),
    )
    if not modules and not checkpoint.config:
        raise EmbedderError(f"{model}: there is no model in that folder, for it has no config.json", model=model)
    if checkpoint.config.get("auto_map"):
        raise remote_code(model)
    if (folder / home / "adapter_config.json").is_file():
        raise EmbedderError(
            f"{model} is an adapter, and not a model by itself; merge it into its model with peft's merge_and_unload, "
            "and save that",
            model=model,
            reason="adapter",
        )
    return checkpoint


def remote_code(model: str) -> EmbedderError:
    """Why a model that needs its own code is refused, and what to do."""
    hosted = (
        '; NVIDIA\'s own endpoint is "litellm/nvidia_nim/nvidia/nv-embed-v2"' if "nv-embed" in model.lower() else ""
    )
    return EmbedderError(
        f"{model} needs Python code from its own repository, which memlayer never runs (trust_remote_code stays off); "
        f'serve it behind an endpoint and name that: embedder="litellm/<provider>/<model>"{hosted}',
        model=model,
        reason="remote_code",
    )


def _module(folder: Path, entry: Mapping[str, Any], model: str) -> Module:
    name, path = str(entry.get("type", "")), str(entry.get("path", ""))
    path = "" if path == "." else path
    if not name.startswith("sentence_transformers."):
        raise remote_code(model)
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise EmbedderError(f"{model}: its modules.json points out of its folder", model=model)
    kind = name.rpartition(".")[2]
    if kind == "Router":
        router = _json(folder / path / "router_config.json")
        within = {
            name: {"type": each, "path": str(PurePosixPath(path) / name)} for name, each in router["types"].items()
        }
        routes = {
            role: tuple(_module(folder, within[name], model) for name in names)
            for role, names in router["structure"].items()
        }
        return Module(kind, path, router, routes)
    files = [folder / path / "config.json"]
    if kind in TRANSFORMER:
        files = sorted((folder / path).glob("sentence_*_config.json"))
    found = [each for each in files if each.is_file()]
    return Module(kind, path, _json(found[0]) if found else {})


def leaves(modules: Iterable[Module]) -> list[Module]:
    """The modules, and in place of each router those within it."""
    return [leaf for module in modules for leaf in module.leaves()]


def _modes(config: Mapping[str, Any]) -> int:
    """How many ways of pooling are put side by side."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return 1 if isinstance(mode, str) else len(mode)
    return max(1, sum(value is True for name, value in config.items() if name.startswith("pooling_mode_")))


def _columns(path: Path) -> int:
    """The width of the one matrix in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    (shape,) = [entry["shape"] for name, entry in header.items() if name.endswith(("embedding.weight", "embeddings"))]
    return int(shape[1])


def _refuse_pickles(folder: Path, model: str) -> None:
    names = {path.name for path in folder.rglob("*")}
    if "pytorch_model.bin" in names and "model.safetensors" not in names:
        raise EmbedderError(
            f"{model}: the weights in {folder.name} are a pickle, and memlayer opens none (a pickle runs what is in "
            "it); load the model with sentence-transformers and save it anew",
            model=model,
            reason="no_safetensors",
        )


def _json(path: Path, *, default: Any = None) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        if default is None:
            raise
        return default
    except (OSError, ValueError) as error:
        raise EmbedderError(f"{path.name} cannot be read in {path.parent} ({type(error).__name__})") from error
