"""A model's tokenizer, taken over from transformers once, set up once, and never changed again.

transformers sets truncation and padding on a shared object before every call, which fails with "Already borrowed"
while another thread is tokenizing. What is here is only read, one text a call, so that no thread pool is left behind
about which a later fork would print a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer
    from torch import Tensor

__all__ = ["Tokens", "take_over"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts, or pairs of texts, as what a model reads.

    Attributes:
        whole: cuts and pads nothing; for measuring.
        cut: keeps as much of a text as the model reads, the tokenizer's own pieces included.
        longest: how many pieces that is; None where the model sets no limit.
        own: how many pieces the tokenizer adds to one text.
        pad: the id that fills up a shorter text's row.
        pad_type: its segment.
        types: whether the model wants to know which segment a piece belongs to.
    """

    whole: Tokenizer
    cut: Tokenizer
    longest: int | None
    own: int
    pad: int
    pad_type: int
    types: bool

    def count(self, text: str) -> int:
        """How many pieces the text is, the tokenizer's own not counted."""
        return len(self.whole.encode(text, add_special_tokens=False).ids)

    def batch(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        """`(n, pieces of the longest)` each: the ids, where there is a piece, and the segments if the model wants them.

        Filled up on the right, whichever side the model's own configuration names: then a text has the same positions
        alone as beside a longer one, and every kind of pooling finds its token by the mask.
        """
        import numpy as np
        import torch

        rows = [encoding.ids for encoding in encodings]
        shape = (len(rows), max(map(len, rows)))
        ids = np.full(shape, self.pad, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if self.types:
            types = np.full(shape, self.pad_type, dtype=np.int64)
            for number, encoding in enumerate(encodings):
                types[number, : len(rows[number])] = encoding.type_ids
            features["token_type_ids"] = torch.from_numpy(types)
        return features


def take_over(tokenizer: Any, *, longest: int | None) -> Tokens | None:
    """A copy of a transformers tokenizer's inner one; None where it has none that can be copied.

    Args:
        tokenizer: of transformers, or None.
        longest: how many pieces the model reads, or None.
    """
    from tokenizers import Tokenizer

    inner = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        return None
    try:
        written = inner.to_str()
    except Exception:  # noqa: BLE001 - tokenizers raises a bare Exception where a part is written in Python
        return None
    whole, cut = Tokenizer.from_str(written), Tokenizer.from_str(written)
    for one in (whole, cut):
        one.no_padding()
        one.no_truncation()
    if longest is not None:
        cut.enable_truncation(longest, direction=tokenizer.truncation_side)
    pad = tokenizer.pad_token_id
    return Tokens(
        whole=whole,
        cut=cut,
        longest=longest,
        own=whole.num_special_tokens_to_add(is_pair=False),
        # A model without a token for it does not look at it: the mask says where there is nothing.
        pad=pad if pad is not None else 0,
        pad_type=tokenizer.pad_token_type_id,
        types="token_type_ids" in tokenizer.model_input_names,
    )
