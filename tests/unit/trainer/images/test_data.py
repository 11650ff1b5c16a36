"""Images load whole, or not at all with a sentence that names the file; label files never load."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.support.datasets import make_idx_dataset
from trainer.errors import DataError
from trainer.images.data import POOL_FILE, TEST_FILE, load_images

Images = npt.NDArray[np.uint8]


def random_images(count: int = 12, height: int = 9, width: int = 11, seed: int = 0) -> Images:
    """Make images that are not square, so that rows and columns cannot be mixed up."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def idx_bytes(array: Images) -> bytes:
    """Write IDX by its definition: type and dimensions, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_folder(folder: Path, pool: bytes, test: bytes, packed: bool = True) -> Path:
    """Write the two files, gzipped or plain."""
    folder.mkdir(exist_ok=True)
    for name, content in ((POOL_FILE, pool), (TEST_FILE, test)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return folder


def good_folder(folder: Path, packed: bool = True) -> Path:
    """Write a folder that loads."""
    return write_folder(folder, idx_bytes(random_images()), idx_bytes(random_images(5, seed=1)), packed)


def refusal(folder: Path) -> str:
    """Load, and return the message of the refusal, which is one line."""
    with pytest.raises(DataError) as caught:
        load_images(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
def test_images_come_in_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    """Pool and test images are the bytes of the files, row i being image i, as uint8."""
    images = load_images(good_folder(tmp_path / "images", packed))
    np.testing.assert_array_equal(images.pool.numpy(), random_images())
    np.testing.assert_array_equal(images.test.numpy(), random_images(5, seed=1))
    assert images.pool.dtype == torch.uint8


def test_a_prepared_folder_loads(tmp_path: Path) -> None:
    """What the service's `prepare` writes into DIR/images, the trainer reads."""
    folder = make_idx_dataset(tmp_path, pool=30, test=6, side=10)
    images = load_images(folder / "images")
    assert images.pool.shape == (30, 10, 10)
    assert images.test.shape == (6, 10, 10)


def test_the_fingerprint_tells_data_apart_and_not_packings(tmp_path: Path) -> None:
    """Packing does not change the fingerprint; one changed pixel, or a moved image, does."""
    packed, plain = good_folder(tmp_path / "a"), good_folder(tmp_path / "b", packed=False)
    assert load_images(packed).fingerprint == load_images(plain).fingerprint
    prints = {load_images(packed).fingerprint}
    changed = random_images()
    changed[3, 4, 5] ^= 1
    for number, (pool, test) in enumerate(
        [(changed, random_images(5, seed=1)), (random_images()[::-1], random_images(5, seed=1))]
    ):
        folder = write_folder(tmp_path / str(number), idx_bytes(pool), idx_bytes(test))
        prints.add(load_images(folder).fingerprint)
    everything = np.concatenate([random_images(), random_images(5, seed=1)])
    split = write_folder(tmp_path / "split", idx_bytes(everything[:10]), idx_bytes(everything[10:]))
    prints.add(load_images(split).fingerprint)
    assert len(prints) == 4


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    """The sentence names the folder and says how to get one."""
    sentence = refusal(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in sentence
    assert "python -m label_service prepare" in sentence


@pytest.mark.parametrize("missing", [POOL_FILE, TEST_FILE])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    """The sentence says which file the folder lacks."""
    folder = good_folder(tmp_path / "images")
    (folder / f"{missing}.gz").unlink()
    assert f"{folder} has no {missing}.gz" in refusal(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda packed: packed[:40],
        lambda packed: packed[:-1],
        lambda packed: packed[:-20] + bytes([packed[-20] ^ 0xFF]) + packed[-19:],
        gzip.decompress,
    ],
    ids=["empty", "cut short", "a byte short", "damaged", "unpacked under its old name"],
)
def test_a_gzip_file_that_does_not_unpack_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Wherever the download broke off, and whatever a browser did, the file is refused by name."""
    folder = good_folder(tmp_path / "images")
    path = folder / f"{POOL_FILE}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    sentence = refusal(folder)
    assert str(path) in sentence
    assert "fetch it again" in sentence


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:-1], "bytes where its header promises"),
        (lambda content: content + b"\0", "bytes where its header promises"),
        (lambda content: content[:15], "too short to be an IDX image file"),
        (lambda _: b"", "too short to be an IDX image file"),
        (lambda content: b"\x89PNG" + content[4:], "is not an IDX image file (magic number 0x89504e47"),
        (lambda content: content[:3] + b"\x02" + content[4:], "is not an IDX image file"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "is not an IDX image file"),
        (lambda _: idx_bytes(random_images(0)), "holds 0 images"),
        (lambda _: idx_bytes(random_images(4, 7, 40)), "at least one of 8x8 is needed"),
    ],
    ids=["short", "long", "half a header", "empty", "a PNG", "two dimensions", "floats", "no image", "too small"],
)
@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
def test_a_file_that_is_no_whole_image_file_is_named(
    tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str, packed: bool
) -> None:
    """The sentence names the file and says what is wrong with it, packed or not."""
    good = idx_bytes(random_images())
    folder = write_folder(tmp_path / "images", spoil(good), good, packed)
    sentence = refusal(folder)
    assert str(folder / POOL_FILE) in sentence
    assert reason in sentence


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
@pytest.mark.parametrize("wrong", [POOL_FILE, TEST_FILE])
def test_labels_under_an_image_file_s_name_are_refused(tmp_path: Path, wrong: str, packed: bool) -> None:
    """Whatever a label file is called, its magic number gives it away."""
    folder = good_folder(tmp_path / "images", packed)
    labels = idx_bytes(np.arange(60, dtype=np.uint8) % 10)
    path = folder / (f"{wrong}.gz" if packed else wrong)
    path.write_bytes(gzip.compress(labels) if packed else labels)
    assert refusal(folder) == f"{path} holds labels; the trainer takes image files only"


def test_images_of_unlike_sizes_are_refused(tmp_path: Path) -> None:
    """Pool and test images must have one size; the sentence says both."""
    folder = write_folder(tmp_path / "images", idx_bytes(random_images()), idx_bytes(random_images(5, 11, 9)))
    sentence = refusal(folder)
    assert str(folder) in sentence and "9x11" in sentence and "11x9" in sentence
