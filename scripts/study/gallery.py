"""The images that a run asked for, in order, as one picture, with the number of images of each class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, features

from scripts.errors import RunError
from scripts.study.public_data import Bytes, Classes

GALLERY_FILE = "asked.png"
_COLUMNS = 25
_GAP_PX, _LINE_PX, _TEXT_PX = 1, 18, 13
_WHITE = 255
# Four bits a pixel: a picture of 400 grey images has about 100 kB.
_STEPS, _STEP = 16, 17


def draw(images: Bytes, labels: Classes, class_names: Sequence[str]) -> bytes:
    """Draw the picture and return it as a PNG file of 16 greys, or of as many steps of each colour.

    Args:
        images: those asked for, in order, (N, height, width), or (N, height, width, 3) in colour.
        labels: theirs, (N,).
        class_names: for people.
    """
    sheet = _sheet(images)
    captions = [f"{len(labels):,} images in the order asked, {_COLUMNS} a row. Of each class:"]
    counts = np.bincount(labels, minlength=len(class_names))
    captions += [f"{name}: {count}" for name, count in zip(class_names, counts, strict=True)]
    width = max(sheet.shape[1], 400)
    mode, white = ("L", _WHITE) if images.ndim == 3 else ("RGB", (_WHITE,) * 3)
    canvas = Image.new(mode, (width, sheet.shape[0] + _LINE_PX * (len(captions) + 1)), white)
    canvas.paste(Image.fromarray(sheet), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_PX)
    for row, caption in enumerate(captions):
        pen.text((_GAP_PX, sheet.shape[0] + _LINE_PX // 2 + _LINE_PX * row), caption, fill=0, font=font)
    coarse = np.asarray(canvas) // (256 // _STEPS)
    if mode == "L":
        picture = Image.fromarray(coarse, "P")
        picture.putpalette([step * _STEP for step in range(_STEPS) for _ in range(3)])
    else:
        picture = Image.fromarray(coarse * _STEP)
    made_by = PngImagePlugin.PngInfo()
    made_by.add_text("Software", _software())
    file = io.BytesIO()
    four_bits = {"bits": 4} if mode == "L" else {}
    picture.save(file, "PNG", optimize=True, pnginfo=made_by, **four_bits)
    return file.getvalue()


def compare(path: Path, images: Bytes, labels: Classes, class_names: Sequence[str]) -> None:
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
    count, height, width, *colours = images.shape
    rows = -(-count // _COLUMNS)
    padded = np.full((rows * _COLUMNS, height + _GAP_PX, width + _GAP_PX, *colours), _WHITE, np.uint8)
    padded[:count, :height, :width] = images
    grid = padded.reshape(rows, _COLUMNS, height + _GAP_PX, width + _GAP_PX, *colours)
    return grid.swapaxes(1, 2).reshape(rows * (height + _GAP_PX), _COLUMNS * (width + _GAP_PX), *colours)


def _software() -> str:
    """Name what draws the text: another version draws the same letters with other pixels."""
    return f"Pillow {PIL.__version__}, FreeType {features.version('freetype2')}"
