"""PNG and JPEG files as the arrays that a run learned from: one size, grey or colour, uint8.

A picture is treated as `label_service prepare --size` treats it, in code of its own: turned as its EXIF data say, laid
on white where it is transparent, made grey or coloured like the pool's images, and scaled to their size, of which shape
its middle is taken. Sixteen bits become eight.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
# A file of a few kilobytes may unpack to gigabytes.
_MOST_PIXELS = 100_000_000


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files, and for a folder its pictures, those of its folders too, sorted.

    Raises:
        DataError: a path does not exist, or a folder has no picture.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise DataError(f"{path} holds no PNG or JPEG file")
            yield from found
        elif path.exists():
            yield path
        else:
            raise DataError(f"there is no file {path}")


def read_picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a picture as uint8 of this shape: [H, W] in grey, [H, W, 3] in colour.

    Raises:
        DataError: the file is no PNG or JPEG, is damaged, or has too many pixels.
    """
    height, width, *channels = shape
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise DataError(f"{path} has {picture.width}x{picture.height} pixels, more than this trainer opens")
            image = ImageOps.exif_transpose(picture)
            if image.mode.startswith("I"):
                # Sixteen bits: Pillow would cut them off at 255.
                image = Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                clear = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            image = image.convert("RGB" if channels else "L")
            if image.size != (width, height):
                # The filter widens with the reduction, so that a large photograph is averaged and not sampled.
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image, dtype=np.uint8))
    except DataError:
        raise
    except Exception as error:  # damaged files make Pillow raise whatever it ran into
        raise DataError(f"{path} cannot be read as PNG or JPEG; is it a whole picture?") from error
