"""From an image file's bytes to a picture. Files come from anywhere: few formats are opened, and no giants."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from memlayer.errors import InvalidInputError, LimitExceededError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decode", "require"]

# What browsers and phones send. Pillow opens dozens of others, with parsers that few people look at.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
# 50 megapixels are 150 MB once they are opened; a model looks at 0.05 of them.
_MOST_PIXELS: Final = 50_000_000


def require() -> None:
    """Raises MissingExtraError unless Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "a model that reads images needs Pillow, which is not installed; install it with "
            '`pip install "memlayer-sdk[images]"`',
            extra="images",
        ) from error


def decode(file: bytes, *, number: int) -> Image:
    """The picture, upright, in red, green and blue; of an animation the first frame.

    Args:
        file: a PNG, JPEG, WebP or GIF file.
        number: which of the caller's images it is, for the error.

    Raises:
        InvalidInputError: it is no such file, or a damaged one.
        LimitExceededError: it has too many pixels; told from its head, before it is opened.
        MissingExtraError: Pillow is not installed.
    """
    require()
    from PIL import Image, ImageOps

    if not isinstance(file, (bytes, bytearray, memoryview)):
        raise InvalidInputError(f"an image must be the bytes of a file, not {type(file).__name__}")
    try:
        image = Image.open(io.BytesIO(file), formats=_FORMATS)
        if image.width * image.height > _MOST_PIXELS:
            raise LimitExceededError(f"image {number} has more than {_MOST_PIXELS} pixels", limit=_MOST_PIXELS)
        # A phone stores how it was held beside the picture.
        return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:  # Pillow's own limit, of some more pixels, which it looks at first
        raise LimitExceededError(f"image {number} has more than {_MOST_PIXELS} pixels", limit=_MOST_PIXELS) from None
    except LimitExceededError:
        raise
    except Exception as error:  # noqa: BLE001 - each of Pillow's parsers raises what it likes about a damaged file
        raise InvalidInputError(
            f"image {number} is no PNG, JPEG, WebP or GIF file that can be opened ({type(error).__name__})"
        ) from None
