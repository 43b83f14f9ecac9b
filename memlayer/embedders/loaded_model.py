"""A sentence-transformers model in memory: how it is loaded, and how texts and pictures go through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from memlayer.embedders.batching import by_length
from memlayer.embedders.checkpoint import TRANSFORMER
from memlayer.embedders.images import require
from memlayer.embedders.loading import borrowing, quiet
from memlayer.embedders.splitting import split
from memlayer.embedders.tokens import Tokens, take_over
from memlayer.errors import EmbedderError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from sentence_transformers import SentenceTransformer
    from tokenizers import Encoding

    from memlayer.embedders.checkpoint import Checkpoint

__all__ = ["LoadedModel", "Role", "load", "longest", "pieces_together"]

Role = Literal["document", "query"]

# What a batch may have in pieces, padding included: 32 texts of 256, about 200 MB while MiniLM computes them.
_PIECES: Final = 8192

# Their positions begin behind the padding's, so not all that config.json counts are there for pieces.
_OFFSET_POSITIONS: Final = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Only read once it is made, so that threads share it without a lock.

    Attributes:
        model: of sentence-transformers, in evaluation mode.
        tokens: memlayer's own copy of its tokenizer; None where there is none to copy.
        prepares: whether texts have to go through the model's own preparation, one thread at a time.
        excludes_prompt: whether its pooling leaves the prompt's pieces out.
    """

    model: SentenceTransformer
    tokens: Tokens | None
    prepares: bool
    excludes_prompt: bool

    def window(self, prompt: str) -> int | None:
        """How many pieces of a document the model reads behind the prompt; None where it sets no limit."""
        tokens = self.tokens
        if tokens is None or tokens.longest is None:
            return None
        if self.prepares:
            with borrowing():
                ids = self.model.preprocess(["x"], prompt=prompt or None, task="document").get("input_ids")
            return tokens.longest - (tokens.own if ids is None else ids.shape[-1])
        # One more: at the seam of prompt and text a piece may be cut otherwise than in each of them.
        return tokens.longest - tokens.own - (tokens.count(prompt) + 1 if prompt else 0)

    def parts(self, text: str, *, prompt: str, window: int) -> Iterator[str]:
        """The text in parts that are read whole behind the prompt, `window` pieces each or a few less."""
        tokens = self.tokens
        # A piece is a character at least; one more may be what a tokenizer puts before the first word.
        if tokens is None or (len(text) < window and text.isascii()):
            yield text
            return
        for part in split(text, tokens.whole, window=window):
            over = 0
            if prompt and not self.prepares and tokens.longest is not None:
                # A tokenizer without words, as Mistral's, may join the prompt's end and the part's beginning anew.
                over = tokens.count(prompt + part) + tokens.own - tokens.longest
            if over > 0 and len(part) > 1 and window > over:
                yield from self.parts(part, prompt=prompt, window=window - over)
            else:
                yield part

    def read(
        self, texts: Sequence[str], *, prompt: str, role: Role, batch: int
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Batch by batch: the numbers of its texts, and their vectors as the model gives them, float32."""
        if self.prepares or self.tokens is None:
            for numbers in by_length(texts, size=batch):
                with borrowing():
                    features = self.model.preprocess(
                        [texts[number] for number in numbers], prompt=prompt or None, task=role
                    )
                yield numbers, self._forward(features, task=role)
            return
        encodings = [self.tokens.cut.encode(prompt + text) for text in texts]
        for numbers in pieces_together(encodings, size=batch):
            features = self.tokens.batch([encodings[number] for number in numbers])
            if prompt and self.excludes_prompt:
                features["prompt_length"] = _beginning(self.tokens, prompt)
            yield numbers, self._forward(features, task=role)

    def look(self, pictures: Sequence[Image]) -> NDArray[np.float32]:
        """The vectors of pictures, as the model gives them, float32."""
        with borrowing():
            features = self.model.preprocess(pictures)
        return self._forward(features)

    def _forward(self, features: Mapping[str, Any], **kwargs: str) -> NDArray[np.float32]:
        import torch

        device = self.model.device
        there = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
        with torch.inference_mode():
            out = self.model(there, **kwargs)["sentence_embedding"]
        matrix: NDArray[np.float32] = out.float().cpu().numpy()
        return matrix


def load(checkpoint: Checkpoint, *, pooling: str | None, device: str) -> LoadedModel:
    """Load a model; seconds, most of them Python imports.

    Args:
        checkpoint: what was read of its folder.
        pooling: for a folder without modules.json.
        device: of torch.

    Raises:
        EmbedderError: the libraries cannot load it.
        MissingExtraError: sentence-transformers is not installed, or Pillow, and the model reads images.
    """
    model = _sentence_transformer(checkpoint, pooling=pooling, device=device)
    first: Any = model[0]
    # Beyond plain text: a chat template, queries filled up with masks, a limit for each role.
    special = ("query_expansion", "processing_kwargs", "query_length", "document_length")
    prepares = (
        type(first).__name__ not in TRANSFORMER
        or "message" in first.modality_config
        or any(getattr(first, name, None) for name in special)
    )
    # Of a router, the way that documents take: they are what is split.
    routes = getattr(first, "sub_modules", {})
    reader = routes["document"][0] if "document" in routes else first
    tokens = take_over(getattr(reader, "tokenizer", None), longest=longest(reader))
    return LoadedModel(
        model=model,
        tokens=tokens,
        prepares=prepares or tokens is None,
        excludes_prompt=any(getattr(module, "include_prompt", True) is False for module in model),
    )


def _sentence_transformer(checkpoint: Checkpoint, *, pooling: str | None, device: str) -> SentenceTransformer:
    model = checkpoint.model
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            f"{model} needs sentence-transformers, which cannot be imported ({type(error).__name__}); install it with "
            '`pip install "memlayer-sdk[local]"`, or pass another embedder',
            extra="local",
        ) from error
    if checkpoint.reads_images:
        require()
    with quiet():
        try:
            loaded = SentenceTransformer(
                str(checkpoint.folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).eval()
            if pooling is not None:
                # Without a modules.json sentence-transformers guesses; its class is taken, its guess is not.
                transformer: Any = loaded[0]
                loaded[1] = type(loaded[1])(transformer.get_embedding_dimension(), pooling_mode=pooling)
        # Libraries that promise nothing about what they raise; no text has come near them yet.
        except Exception as error:
            raise EmbedderError(f"{model} could not be loaded ({type(error).__name__})", model=model) from error
    return loaded


def longest(module: Any) -> int | None:
    """How many pieces a model's first module reads at once; None where it sets no limit."""
    limit: int | None = getattr(module, "max_seq_length", None)
    # A tokenizer without a limit says 10 ** 30, and static vectors say infinity.
    if not isinstance(limit, int) or limit > 1_000_000:
        return None
    config: Any = getattr(getattr(module, "auto_model", None), "config", None)
    if getattr(config, "model_type", None) in _OFFSET_POSITIONS:
        return min(limit, int(config.max_position_embeddings - config.pad_token_id - 1))
    return limit


def pieces_together(encodings: Sequence[Encoding], *, size: int) -> Iterator[list[int]]:
    """Numbers of texts of like length, `size` at most and `_PIECES` pieces at most, or one text that has more."""
    lengths = [len(encoding) for encoding in encodings]
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == size or lengths[number] * (len(batch) + 1) > _PIECES):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _beginning(tokens: Tokens, prompt: str) -> Any:
    """How many pieces the prompt takes at a text's beginning, a first piece of the tokenizer's own counted in."""
    encoding = tokens.whole.encode(prompt)
    return len(encoding) - encoding.special_tokens_mask[-1]
