"""The picture of the images asked for: grey and in colour, and what a comparison finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.errors import RunError
from scripts.study import gallery

NAMES = ["cat", "dog"]


@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "colour"])
def test_images_stand_in_order_and_another_picture_is_found(tmp_path: Path, colours: tuple[int, ...]) -> None:
    """25 a row, each pixel to sixteen steps; one image exchanged is another picture."""
    images = np.random.default_rng(0).integers(0, 256, (27, 9, 8, *colours), dtype=np.uint8)
    labels = np.arange(27, dtype=np.uint8) % 2
    path = tmp_path / "asked.png"
    path.write_bytes(gallery.draw(images, labels, NAMES))
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB") if colours else picture.convert("L"))
    for number, (row, column) in {0: (0, 0), 24: (0, 24), 26: (1, 1)}.items():
        shown = pixels[10 * row : 10 * row + 9, 9 * column : 9 * column + 8]
        assert np.array_equal(shown, images[number] // 16 * 17)
    gallery.compare(path, images, labels, NAMES)
    images[3] = 255 - images[3]
    with pytest.raises(RunError, match="does not show the images"):
        gallery.compare(path, images, labels, NAMES)
