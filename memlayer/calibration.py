"""What makes a score of a value: numbers that belong to an embedder.

Each embedder spreads its cosines in its own way: of two texts that have nothing to do with each other one says .1,
another .7. Two numbers bring them to the spread of all-MiniLM-L6-v2, for which the weights of `memlayer.ranking` were
chosen; the others say which value is which score, and below which score nothing is returned. All of them are found by
`memlayer.calibrating` with chats that are shipped. For the embedders that memlayer brings along this was done, for any
other one `memlayer calibrate` does it and keeps the result in the user's configuration folder.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from memlayer.newfile import private_folder, storage_error
from memlayer.ranking import calibrated
from memlayer.sources import config_folder

if TYPE_CHECKING:
    from pathlib import Path

    from memlayer.embedders.protocol import EmbedderIdentity
    from memlayer.ranking import Floats

__all__ = ["Calibration", "calibration_of", "calibration_path", "write_calibration"]

log = logging.getLogger("memlayer")

_SHIPPED: Final = "calibrations.json"
_LARGEST: Final = 4_096
# Within these a number can be what an embedder needs; a file that says otherwise is brought back into them.
_BOUNDS: Final = {
    "scale": (0.02, 20.0), "shift": (-10.0, 10.0), "steep": (1.0, 60.0), "middle": (-0.5, 1.5), "growth": (0.0, 0.1),
    "floor": (0.0, 0.5),
}  # fmt: skip


class Calibration(BaseModel):
    """The numbers of one embedder. The defaults are roughly those of all-MiniLM-L6-v2, but for the floor: where nobody
    has looked at an embedder's scores, nothing can be said to be too weak.

    A number out of bounds becomes the nearest one within.

    Attributes:
        scale, shift: a cosine c counts as `scale * c + shift`.
        steep, middle, growth: a value v among n turns has the score
            1 / (1 + exp(-steep * (v - middle - growth * ln(n)))). The best of n turns that have nothing to do with a
            question is better the more they are: so much grows what has to be reached.
        floor: the score below which nothing is returned where the caller does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    scale: float = 1.0
    shift: float = 0.0
    steep: float = 14.0
    middle: float = 0.18
    growth: float = 0.045
    floor: float = 0.0

    @field_validator(*_BOUNDS)
    @classmethod
    def _within(cls, value: float, info: object) -> float:
        low, high = _BOUNDS[info.field_name]  # type: ignore[attr-defined]  # pydantic's ValidationInfo
        return min(max(value, low), high)

    def cosines(self, cosines: Floats) -> Floats:
        """Cosines as all-MiniLM-L6-v2 would have them."""
        if self.scale == 1.0 and self.shift == 0.0:
            return cosines
        return np.float32(self.scale) * cosines + np.float32(self.shift)

    def score(self, value: float, *, top: float, turns: int) -> float:
        """The score of a turn's value.

        Args:
            value: the turn's.
            top: the best one's.
            turns: among how many it was looked for.
        """
        middle = self.middle + self.growth * math.log(max(turns, 1))
        return calibrated(value, top=top, steep=self.steep, middle=middle)


class _Kept(BaseModel):
    """A file of one embedder, and an entry among the shipped ones.

    Attributes:
        embedder: the model's name, for whoever reads the file.
        digest: of the embedder's identity, hexadecimal.
        calibration: its numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    embedder: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    calibration: Calibration


_ENTRIES: Final = TypeAdapter(list[_Kept])


@cache
def calibration_of(identity: EmbedderIdentity) -> Calibration:
    """The numbers of an embedder: the user's own, else those that are shipped, else the defaults.

    Files are read once for each embedder in the life of a process. A file that is damaged counts as none, and a log
    line says so: a recall does not fail for it.
    """
    digest = identity.digest().hex()
    return _own(digest) or _shipped().get(digest) or Calibration()


def calibration_path(identity: EmbedderIdentity) -> Path:
    """Where the user's own numbers of an embedder are kept."""
    return _path(identity.digest().hex())


def write_calibration(calibration: Calibration, *, identity: EmbedderIdentity, path: Path) -> None:
    """Keeps the numbers of an embedder; in the place of older ones.

    Raises:
        StorageError: the file cannot be written.
    """
    kept = _Kept(embedder=identity.model, digest=identity.digest().hex(), calibration=calibration)
    draft = path.with_name(f".memlayer-{secrets.token_hex(8)}.new")
    try:
        if path == calibration_path(identity):
            private_folder(path.parent)
        try:
            draft.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from None
    calibration_of.cache_clear()


def _path(digest: str) -> Path:
    return config_folder() / "calibrations" / f"{digest}.json"


def _own(digest: str) -> Calibration | None:
    path = _path(digest)
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where this user's home is.
        log.warning("a calibration cannot be read (%s); %s is passed over", type(error).__name__, path)
        return None
    try:
        kept = _Kept.model_validate_json(content if len(content) <= _LARGEST else b"")
    except ValidationError:
        kept = None
    if kept is None or kept.digest != digest:
        log.warning("%s holds no calibration of this embedder; run `memlayer calibrate` anew", path)
        return None
    return kept.calibration


@cache
def _shipped() -> dict[str, Calibration]:
    entries = _ENTRIES.validate_json((files("memlayer") / _SHIPPED).read_bytes())
    return {entry.digest: entry.calibration for entry in entries}
