"""The images that a run asked for, in order, as one picture, with the number of images of each class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, features

from scripts.errors import RunError
from scripts.study.public_data import Bytes

GALLERY_FILE = "asked.png"
_COLUMNS = 25
_GAP_PX, _LINE_PX, _TEXT_PX = 1, 18, 13
_WHITE = 255
# Four bits a pixel: a picture of 400 images has about 100 kB.
_GREYS = 16


def draw(images: Bytes, labels: Bytes, class_names: Sequence[str]) -> bytes:
    """Draw the picture and return it as a PNG file of 16 greys.

    Args:
        images: those asked for, in order, (N, height, width).
        labels: theirs, (N,).
        class_names: for people.
    """
    sheet = _sheet(images)
    captions = [f"{len(labels):,} images in the order asked, {_COLUMNS} a row. Of each class:"]
    counts = np.bincount(labels, minlength=len(class_names))
    captions += [f"{name}: {count}" for name, count in zip(class_names, counts, strict=True)]
    width = max(sheet.shape[1], 400)
    canvas = Image.new("L", (width, sheet.shape[0] + _LINE_PX * (len(captions) + 1)), _WHITE)
    canvas.paste(Image.fromarray(sheet), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_PX)
    for row, caption in enumerate(captions):
        pen.text((_GAP_PX, sheet.shape[0] + _LINE_PX // 2 + _LINE_PX * row), caption, fill=0, font=font)
    picture = Image.fromarray(_coarse(np.asarray(canvas)), "P")
    picture.putpalette([grey * 17 for grey in range(_GREYS) for _ in range(3)])
    made_by = PngImagePlugin.PngInfo()
    made_by.add_text("Software", _software())
    file = io.BytesIO()
    picture.save(file, "PNG", bits=4, optimize=True, pnginfo=made_by)
    return file.getvalue()


def compare(path: Path, images: Bytes, labels: Bytes, class_names: Sequence[str]) -> None:
    """Compare a picture with the images asked for, and its text too if the same version of Pillow wrote it.

    Raises:
        RunError: it is missing, or another picture.
    """
    try:
        with Image.open(path) as found, Image.open(io.BytesIO(draw(images, labels, class_names))) as right:
            height = right.height if found.info.get("Software") == _software() else len(_sheet(images))
            same = found.size == right.size and np.array_equal(np.asarray(found)[:height], np.asarray(right)[:height])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunError(f"{path} cannot be read ({error}).") from error
    if not same:
        raise RunError(f"{path} does not show the images that the log has, in their order.")


def _sheet(images: Bytes) -> Bytes:
    """Put images side by side, 25 a row."""
    count, height, width = images.shape
    rows = -(-count // _COLUMNS)
    padded = np.full((rows * _COLUMNS, height + _GAP_PX, width + _GAP_PX), _WHITE, np.uint8)
    padded[:count, :height, :width] = images
    grid = padded.reshape(rows, _COLUMNS, height + _GAP_PX, width + _GAP_PX)
    return grid.transpose(0, 2, 1, 3).reshape(rows * (height + _GAP_PX), _COLUMNS * (width + _GAP_PX))


def _coarse(pixels: Bytes) -> Bytes:
    return np.asarray(pixels // (256 // _GREYS), np.uint8)


def _software() -> str:
    """Name what draws the text: another version draws the same letters with other pixels."""
    return f"Pillow {PIL.__version__}, FreeType {features.version('freetype2')}"
