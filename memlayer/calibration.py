"""What makes a score of a value: numbers that belong to an embedder.

Each embedder spreads its cosines in its own way: of two texts that have nothing to do with each other one says .1,
another .7. Two numbers bring them to the spread of all-MiniLM-L6-v2, for which the weights of `memlayer.ranking` were
chosen; three more say which value is which score, and below which score nothing is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memlayer.embedders.weights import SHA256 as MINILM
from memlayer.ranking import calibrated

if TYPE_CHECKING:
    from memlayer.embedders.protocol import EmbedderIdentity
    from memlayer.ranking import Floats

__all__ = ["Calibration", "calibration_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The numbers of one embedder. The defaults are those of all-MiniLM-L6-v2, but for the floor: where nobody has
    looked at an embedder's scores, nothing can be said to be too weak.

    Attributes:
        scale, shift: a cosine c counts as `scale * c + shift`.
        steep, middle: a value v has the score 1 / (1 + exp(-steep * (v - middle))).
        floor: the score below which nothing is returned where the caller does not say.
    """

    scale: float = 1.0
    shift: float = 0.0
    steep: float = 10.0
    middle: float = 0.53
    floor: float = 0.0

    def cosines(self, cosines: Floats) -> Floats:
        """Cosines as all-MiniLM-L6-v2 would have them."""
        if self.scale == 1.0 and self.shift == 0.0:
            return cosines
        return np.float32(self.scale) * cosines + np.float32(self.shift)

    def score(self, value: float, *, top: float) -> float:
        """The score of a turn's value; `top` is the best one's."""
        return calibrated(value, top=top, steep=self.steep, middle=self.middle)


def calibration_of(identity: EmbedderIdentity) -> Calibration:
    """The numbers of an embedder; the defaults for one that nobody has calibrated."""
    return _KNOWN.get((identity.model, identity.weights, identity.dimensions), Calibration())


_KNOWN = {("sentence-transformers/all-MiniLM-L6-v2", f"sha256:{MINILM}", 384): Calibration(floor=0.2)}
