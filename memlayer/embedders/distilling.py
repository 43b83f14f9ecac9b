"""Static vectors out of a sentence-transformers model: one vector a word piece, made once, in minutes and offline.

Each piece of the vocabulary goes through the model alone, between the pieces that begin and end a text; what the model
makes of it, in the context of nothing, is its vector. Then, as model2vec does (Tulkens and van Dongen, 2024):

1. the mean is taken away. Not over the vocabulary, in which every piece is as common as any other, but over text: each
   piece counts as often as Zipf's law says of its rank (Yokoi et al., "Zipfian Whitening", 2024; without whitening);
2. the first principal components are kept;
3. common pieces are made small (SIF, Arora et al., 2017): a text's vector is a mean, which they would fill.

A vocabulary is ordered by how common its pieces are, nearly: the rank is what 1 and 3 know of frequency. Pieces that no
text holds ("[unused5]") are not counted.

Measured as plain cosine, recall@10 on LoCoMo / MADial (English), 256 dimensions: .530 / .398, with the vocabulary's
mean .462 / .263, without SIF .397 / .175, and with the mean over the special pieces too, as model2vec takes it, .462 /
.154; in 384 dimensions .531 / .394, in 128 .485 / .401. The model itself: .437 on LoCoMo. Nothing here was fitted to
them: the SIF coefficient is model2vec's default.

What is written is model2vec's own format, and loads in its library: `model.safetensors` with `embeddings`,
`tokenizer.json` and `config.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from memlayer.embedders import checkpoint, weights
from memlayer.embedders.loading import quiet
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError
from memlayer.newfile import private_folder, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["DIMENSIONS", "FILES", "RECIPE", "distil"]

DIMENSIONS: Final = 256
"""Of a static vector where nothing else is asked for."""
FILES: Final = ("model.safetensors", "tokenizer.json", "config.json")
"""What a folder of static vectors holds."""
RECIPE: Final = "memlayer-static-1"
"""Names what the module's head says. Another way of distilling gets another name: its vectors are others."""

_SIF: Final = 1e-4
_UNUSED: Final = re.compile(r"\[unused\d+\]")
_BATCH: Final = 512  # pieces, of three tokens each in BERT
_LONGEST_NAME: Final = 256


def distil(
    out: Path,
    *,
    model: Path | None = None,
    dimensions: int = DIMENSIONS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make a folder of static vectors; it appears whole or not at all.

    Args:
        out: the new folder. An empty one may be there.
        model: the folder of a sentence-transformers model with a `tokenizer.json`; None for all-MiniLM-L6-v2, which is
            found and checked as for `MiniLM`.
        dimensions: of a vector; at most those of the model.
        progress: called now and then with how many pieces are done, and how many there are.

    Raises:
        InvalidInputError: something is in `out`, `dimensions` is out of range, or there is no model in `model`.
        EmbedderError: the model needs code of its own, or could not be loaded or run.
        WeightsUnavailableError: all-MiniLM-L6-v2 is nowhere, or not the expected one.
        MissingExtraError: sentence-transformers is not installed.
        StorageError: the folder cannot be written.
    """
    if dimensions < 1:
        raise InvalidInputError("dimensions must be 1 or more")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidInputError(f"there is something at {out} already; choose a new folder", path=str(out))
    default = model is None
    if model is None:
        model = weights.find()
        weights.verify(model)
    vectors, tokenizer = _run(model, progress)
    if dimensions > vectors.shape[1]:
        raise InvalidInputError(
            f"dimensions can be {vectors.shape[1]} at most, which this model has", limit=vectors.shape[1]
        )
    table = _reduced(vectors, tokenizer, dimensions)
    name = weights.MODEL if default else model.name[:_LONGEST_NAME]
    recipe = f"{RECIPE}-{dimensions}" if default else None
    _write(out, table, tokenizer, {"tokenizer_name": name, "memlayer": {"recipe": recipe}})


def _run(folder: Path, progress: Callable[[int, int], None] | None) -> tuple[NDArray[np.float32], Tokenizer]:
    """What the model makes of each piece, `(pieces, dimensions)`, and its tokenizer."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "distilling needs sentence-transformers, which cannot be imported; install it with "
            '`pip install "memlayer-sdk[local]"`. Only making the vectors needs it, not using them',
            extra="local",
        ) from error
    import numpy as np

    if not (folder / "tokenizer.json").is_file():
        raise InvalidInputError(
            f"there is no tokenizer.json in {folder}; a folder of a model has one", path=str(folder)
        )
    checkpoint.read(folder, folder.name)  # refuses what needs code of its own
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        before, after = _around(tokenizer)
        with quiet():
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).eval()
        count = tokenizer.get_vocab_size()
        parts: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, count, _BATCH):
                pieces = range(start, min(start + _BATCH, count))
                ids = torch.tensor([[*before, piece, *after] for piece in pieces])
                out = model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                parts.append(out["token_embeddings"][:, len(before)].float().numpy())
                if progress is not None:
                    progress(pieces.stop, count)
    # Three libraries that promise nothing about what they raise; no text comes near them.
    except Exception as error:
        raise EmbedderError(f"the model in {folder} could not be distilled ({type(error).__name__})") from error
    return np.concatenate(parts), tokenizer


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text, such as [CLS] and [SEP]."""
    encoding = tokenizer.encode("a")
    own = [number for number, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def _reduced(vectors: NDArray[np.float32], tokenizer: Tokenizer, dimensions: int) -> NDArray[np.float16]:
    """The table: steps 1 to 3 of the module's head. A row of zeros for what no text holds."""
    import numpy as np

    # In float64, and with signs that depend on nothing but the vectors: made again elsewhere, they agree to 1e-4.
    table = vectors.astype(np.float64)
    specials = {number for number, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    tokens = (tokenizer.id_to_token(number) for number in range(len(table)))
    used = np.array(
        [
            token is not None and number not in specials and not _UNUSED.fullmatch(token)
            for number, token in enumerate(tokens)
        ]
    )
    share = used / (1.0 + np.cumsum(used))
    share /= share.sum()
    table -= share @ table
    kept = table[used]
    _, components = np.linalg.eigh(kept.T @ kept)  # from the least to the largest
    components = components[:, ::-1][:, :dimensions]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    table = table @ components * (_SIF / (_SIF + share))[:, None]
    table[~used] = 0
    half: NDArray[np.float16] = table.astype(np.float16)
    return half


def _write(out: Path, table: NDArray[np.float16], tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    from safetensors.numpy import save

    files = {
        "model.safetensors": save({"embeddings": table}),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "apply_pca": table.shape[1],
        "sif_coefficient": _SIF,
        "hidden_dim": table.shape[1],
        "seq_length": 1_000_000,
        "normalize": True,
        "embedding_dtype": "float16",
        **config,
    }
    config["memlayer"]["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["config.json"] = json.dumps(config, indent=2).encode()
    draft = out.with_name(f".memlayer-{secrets.token_hex(8)}.new")
    try:
        private_folder(draft)
        for name, content in files.items():
            _sealed(draft / name, content)
        if os.name != "posix" and out.exists():
            out.rmdir()  # elsewhere an empty folder is replaced
        os.rename(draft, out)
    except OSError as error:
        raise storage_error(error, out) from error
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(draft)


def _sealed(path: Path, content: bytes) -> None:
    """A new file of mode 0600 that is on the disk when this returns."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
