"""Pictures of any size and mode become the arrays that a run learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from label_service.data.prepare import PrepareOptions, prepare
from trainer.errors import DataError
from trainer.images.data import load_images
from trainer.images.pictures import find_pictures, read_picture

GREY = np.linspace(0, 255, 12 * 12).reshape(12, 12).round().astype(np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **more: object) -> Path:
    """Write a picture."""
    image.save(folder / name, **more)
    return folder / name


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_every_mode_becomes_grey_and_colour(mode: str, tmp_path: Path) -> None:
    """A grey picture keeps its values in each mode that can hold them."""
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(GREY).convert("RGB").convert(mode)
    grey, colour = (read_picture(saved(tmp_path, image), shape) for shape in ((12, 12), (12, 12, 3)))
    assert grey.dtype == colour.dtype == torch.uint8
    assert (grey.shape, colour.shape) == ((12, 12), (12, 12, 3))
    if mode not in ("1", "P"):
        assert grey.tolist() == GREY.tolist()
        assert colour[:, :, 1].tolist() == GREY.tolist()


def test_a_png_of_the_pools_size_is_read_bit_by_bit(tmp_path: Path) -> None:
    """So that predicting exported test images is predicting the test images."""
    noise = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    assert read_picture(saved(tmp_path, Image.fromarray(noise)), (28, 28)).tolist() == noise.tolist()


def test_another_size_is_scaled_and_what_is_clear_is_white(tmp_path: Path) -> None:
    """The middle of a large picture is averaged, not sampled; a transparent pixel is white."""
    stripes = np.tile(np.array([[0], [255]], np.uint8), (60, 120))
    assert 120 < read_picture(saved(tmp_path, Image.fromarray(stripes)), (12, 12)).float().mean() < 135
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    assert int(read_picture(saved(tmp_path, clear), (12, 12)).min()) == 255
    edges = np.zeros((12, 36), np.uint8)
    edges[:, 12:24] = 200
    assert read_picture(saved(tmp_path, Image.fromarray(edges)), (6, 6)).float().mean() > 190


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    """EXIF orientation 3 is upside down."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = saved(tmp_path, Image.fromarray(GREY), "a.jpg", exif=exif, quality=100)
    assert np.abs(read_picture(path, (12, 12)).numpy().astype(int) - GREY[::-1, ::-1]).max() < 8


def test_what_is_no_picture_is_one_sentence(tmp_path: Path) -> None:
    """Text, a cut file, another format, one that unpacks to too many pixels, and one whose EXIF data are cut off."""
    (tmp_path / "text.png").write_text("hello")
    whole = saved(tmp_path, Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 80), dtype=np.uint8)))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    gif = saved(tmp_path, Image.fromarray(GREY), "a.gif").rename(tmp_path / "gif.png")
    huge = saved(tmp_path, Image.new("1", (20_000, 20_000)), "huge.png")
    turned = saved(tmp_path, Image.fromarray(GREY), "turned.png", exif=b"II*\0")
    for path in (tmp_path / "text.png", tmp_path / "cut.png", gif, huge, turned):
        with pytest.raises(DataError, match=path.name):
            read_picture(path, (12, 12))


def test_a_folder_gives_its_pictures_in_order(tmp_path: Path) -> None:
    """Those of its folders too, and nothing else; a folder without one, and a name that is not there, are refused."""
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.PNG", "sub/c.jpg"):
        saved(tmp_path, Image.fromarray(GREY), name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in find_pictures([tmp_path])] == ["a.PNG", "b.png", "c.jpg"]
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "empty", "holds no PNG"), (tmp_path / "x.png", "there is no file")):
        with pytest.raises(DataError, match=words):
            list(find_pictures([path]))


def every_kind_of_picture(root: Path) -> list[Path]:
    """Write 100 pictures of all modes, some transparent, some turned, of different shapes, in two classes."""
    generator = np.random.default_rng(0)
    written = []
    for number in range(100):
        mode = ("L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK", "clear P", "turned")[number % 10]
        height, width = (int(side) for side in generator.integers(12, 60, 2))
        pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image, more, suffix = Image.fromarray(pixels, "RGBA"), {}, "png"
        if mode == "I;16":
            image = Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16))
        elif mode == "clear P":
            image, more = image.convert("RGB").convert("P"), {"transparency": 3}
        elif mode == "turned":
            more["exif"] = Image.Exif()
            more["exif"][0x0112] = number // 10 % 8 + 1
            image, suffix = image.convert("RGB"), "jpg"
        else:
            image, suffix = image.convert(mode), "jpg" if mode == "CMYK" else "png"
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        written.append(saved(folder, image, f"{number:03}.{suffix}", **more))
    return written


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_pictures_are_read_as_prepare_made_them(tmp_path: Path, grey: bool) -> None:
    """Pixel by pixel: size, middle, grey, white under what is clear, sixteen bits, EXIF, CMYK and palettes."""
    files = every_kind_of_picture(tmp_path / "pictures")
    prepare(tmp_path / "data", PrepareOptions(tmp_path / "pictures", size=24, grey=grey, test_share=0.2), print)
    images = load_images(tmp_path / "data" / "images")
    prepared = {image.numpy().tobytes() for part in (images.pool, images.test) for image in part}
    assert len(prepared) == 100
    shape = tuple(images.pool.shape[1:])
    assert [path.name for path in files if read_picture(path, shape).numpy().tobytes() not in prepared] == []
