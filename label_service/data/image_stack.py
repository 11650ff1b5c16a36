"""Images one after the other in a raw file on disk, so that their number does not matter to memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from label_service.data import idx
from label_service.errors import DataRefused

# The limits of both programs, in pixels.
SIDES = range(8, 225)


class ImageStack:
    """A growing file of images of one size. It becomes colour with the first colour image.

    Attributes:
        count: images so far.
    """

    def __init__(self, path: Path) -> None:
        """Begin an empty file."""
        self.count = 0
        self._path = path
        self._shape: tuple[int, ...] = ()
        path.write_bytes(b"")
        self._file = path.open("ab")

    def append(self, images: idx.Bytes, name: str) -> None:
        """Add images (n, height, width) or (n, height, width, 3).

        Args:
            images: uint8.
            name: what to call them in an error.

        Raises:
            DataRefused: their size is not that of the images before, or outside the limits.
        """
        height, width = images.shape[1:3]
        if not self._shape:
            if height not in SIDES or width not in SIDES:
                raise DataRefused(
                    f"{name} is {height}x{width} pixels, and {SIDES[0]} to {SIDES[-1]} can be used; give --size."
                )
            self._shape = images.shape[1:]
        if (height, width) != self._shape[:2]:
            first = "x".join(map(str, self._shape[:2]))
            raise DataRefused(f"{name} is {height}x{width} pixels and the images before are {first}; give --size.")
        if images.ndim > len(self._shape) + 1:
            self._colour()
        if images.ndim < len(self._shape) + 1:
            images = np.repeat(images[..., None], 3, axis=3)
        self._file.write(np.ascontiguousarray(images).data)
        self.count += len(images)

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def open(self) -> idx.Bytes:
        """Return all images of a closed stack, mapped: (N, height, width) or (N, height, width, 3)."""
        return np.memmap(self._path, np.uint8, "r", shape=(self.count, *self._shape))

    def _colour(self) -> None:
        """Write the grey images again, with three equal channels."""
        self._file.close()
        if self.count:
            grey = np.memmap(self._path, np.uint8, "r", shape=(self.count, *self._shape))
            coloured = self._path.with_suffix(".colour")
            with coloured.open("wb") as file:
                for start in range(0, self.count, 256):
                    file.write(np.repeat(grey[start : start + 256, ..., None], 3, axis=3).tobytes())
            coloured.replace(self._path)
        self._shape = (*self._shape, 3)
        self._file = self._path.open("ab")
