"""The pictures of the report, and its table of guesses, from images and records alone: no file is read here."""

from __future__ import annotations

import base64
import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.records.run_records import QueryRecord
from trainer.run.pool_map import PoolMap

_SPRITE_COLUMNS = 32
# Larger images are shrunk to this height: a page must stay small enough to open.
_LARGEST_HEIGHT = 112
# Pixels of the map, and of the margin that keeps its outermost points whole.
_MAP_SIZE, _MAP_MARGIN = 720, 16

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SpriteSheet:
    """Thumbnails side by side in one lossless PNG, in the order of the images.

    Attributes:
        data_uri: The PNG as a data URI.
        width: Width of the sheet in pixels.
        height: Height of the sheet in pixels.
        offsets: Left and top of each thumbnail in pixels.
        thumb: Width and height of a thumbnail in pixels.
    """

    data_uri: str
    width: int
    height: int
    offsets: tuple[tuple[int, int], ...]
    thumb: tuple[int, int]


def sprite_sheet(images: Images) -> SpriteSheet:
    """Lay out images [N, H, W] or [N, H, W, 3], uint8, in rows of 32; large ones are shrunk."""
    if images.shape[1] > _LARGEST_HEIGHT:
        size = (max(1, round(images.shape[2] * _LARGEST_HEIGHT / images.shape[1])), _LARGEST_HEIGHT)
        images = np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in images])
    n, height, width = images.shape[:3]
    columns = max(1, min(n, _SPRITE_COLUMNS))
    rows = max(1, math.ceil(n / columns))
    sheet = np.zeros((rows * height, columns * width, *images.shape[3:]), dtype=np.uint8)
    offsets = []
    for index in range(n):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = images[index]
        offsets.append((left, top))
    return SpriteSheet(
        _data_uri(Image.fromarray(sheet)), columns * width, rows * height, tuple(offsets), (width, height)
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def class_colours(classes: int) -> list[str]:
    """Return a colour for each class, as `#rrggbb`: hues around the circle, neighbours in two shades."""
    colours = []
    for number in range(classes):
        rgb = colorsys.hls_to_rgb(number / max(1, classes), 0.42 if number % 2 else 0.6, 0.65)
        colours.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colours


@dataclass(frozen=True)
class MapPicture:
    """The map of the pool: a picture of all points, and the places of the queried images on it.

    Attributes:
        data_uri: A PNG with transparent ground; a point has the colour of its believed class.
        size: Width and height in pixels.
        queried: Left and top of each queried image in pixels, in the order of the queries; None where it is not on it.
    """

    data_uri: str
    size: int
    queried: tuple[tuple[float, float] | None, ...]


def draw_map(pool_map: PoolMap, queries: Sequence[QueryRecord], classes: int) -> MapPicture:
    """Draw the map of the pool; the queried images are left for the page to draw."""
    low, high = pool_map.places.min(0), pool_map.places.max(0)
    span = max(float((high - low).max()), 1e-6)
    places = _MAP_MARGIN + (pool_map.places - low) / span * (_MAP_SIZE - 2 * _MAP_MARGIN)
    picture = np.zeros((_MAP_SIZE, _MAP_SIZE, 4), dtype=np.uint8)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] + [190] for c in class_colours(classes)], np.uint8)
    centre = np.round(places).astype(int)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            picture[centre[:, 1] + dy, centre[:, 0] + dx] = colours[pool_map.classes % classes]
    where = {
        int(row): (round(float(x), 1), round(float(y), 1)) for row, (x, y) in zip(pool_map.ids, places, strict=True)
    }
    return MapPicture(_data_uri(Image.fromarray(picture)), _MAP_SIZE, tuple(where.get(query.id) for query in queries))


def confusion(queries: Sequence[QueryRecord], num_classes: int) -> npt.NDArray[np.int64]:
    """Count labels [C] against guesses [C]; queries without a guess (cold start) are left out."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for query in queries:
        if query.predicted is not None:
            counts[query.label, query.predicted] += 1
    return counts
