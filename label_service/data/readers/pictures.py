"""Pictures: PNG and JPEG to arrays, upright, without transparency; and arrays to another size or to grey.

Pillow decodes. Only these two formats are tried, and a picture that unpacks to more pixels than Pillow's limit is
refused, so a file made to fill memory does not.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from label_service.data import idx
from label_service.errors import DataRefused

FORMATS = ("PNG", "JPEG")


def decode(picture: Path | bytes, name: str) -> idx.Bytes:
    """Return a picture as uint8 (height, width) if it is stored grey, else (height, width, 3).

    Raises:
        DataRefused: it is no PNG or JPEG, damaged, or larger than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as image:
                return to_array(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataRefused(f"{name} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels; leave it out.") from error
    except Exception as error:  # a damaged file makes a decoder raise nearly anything
        raise DataRefused(f"{name} is damaged, or no PNG or JPEG; replace it or leave it out.") from error


def to_array(image: Image.Image) -> idx.Bytes:
    """Return an image as `decode` does. Transparent pixels are laid on white."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        return (np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
    is_grey = image.mode in ("L", "LA", "1")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("L" if is_grey else "RGB"))


def render(images: idx.Bytes, size: int | None, grey: bool) -> idx.Bytes:
    """Return a batch of images in another size, grey, or both.

    Args:
        images: (n, height, width) or (n, height, width, 3).
        size: new height and width: the middle of the picture that has this shape, scaled (bicubic); None keeps it.
        grey: make colour images grey (luma of ITU-R BT.601).
    """
    rendered = []
    for pixels in images:
        image = Image.fromarray(pixels)
        image = image.convert("L") if grey else image
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC) if size is not None else image
        rendered.append(np.asarray(image))
    return np.stack(rendered)
