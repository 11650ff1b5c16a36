"""The sources of `prepare`: each form gives the same images, order tells no label, wrong ones are one sentence."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_service.data import idx, image_stack
from label_service.data import prepare as preparing
from label_service.data.dataset import FILES, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, find_file
from label_service.data.prepare import PrepareOptions, prepare
from label_service.errors import DataRefused
from trainer.images.data import load_images

CLASSES = ("cat", "dog", "owl")


def silent(_: str) -> None:
    """Ignore the sentence."""


def pictures(count: int, colour: bool, seed: int = 0, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return random images, sorted by class, and their labels."""
    shape = (count, side, side, 3) if colour else (count, side, side)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return images, np.sort(np.arange(count) % len(CLASSES))


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Write class folders of PNG."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / CLASSES[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def as_class_folders(root: Path, colour: bool) -> Path:
    """A folder with train/ and test/."""
    for part, count, seed in (("train", 90, 0), ("test", 30, 1)):
        write_folder(root / part, *pictures(count, colour, seed))
    return root


def as_table(root: Path, colour: bool) -> Path:
    """A CSV with a column `split`."""
    as_class_folders(root, colour)
    with (root / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split"])
        for path in sorted(root.rglob("*.png")):
            table.writerow([path.relative_to(root), path.parent.name, path.parent.parent.name])
    return root / "all.csv"


def as_npz(root: Path, colour: bool) -> Path:
    """An NPZ file with class names for labels."""
    root.mkdir(parents=True)
    (x_train, y_train), (x_test, y_test) = pictures(90, colour, 0), pictures(30, colour, 1)
    names = np.array(CLASSES)
    path = root / "all.npz"
    np.savez_compressed(path, x_train=x_train, y_train=names[y_train], x_test=x_test, y_test=names[y_test])
    return path


def as_hugging_face(root: Path, colour: bool) -> Path:
    """A data set of Hugging Face's, saved to disk."""
    datasets = pytest.importorskip("datasets", reason="NOT TESTED: install labelmeter with its extra huggingface")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    parts = {}
    for part, count, seed in (("train", 90, 0), ("test", 30, 1)):
        images, labels = pictures(count, colour, seed)
        rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        parts[part] = datasets.Dataset.from_dict(rows, features=features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.DatasetDict(parts).save_to_disk(str(root))
    return root


def contents(data: Path) -> list[np.ndarray]:
    """Return the pool, the test images and both labels of a prepared folder."""
    found = []
    for name in FILES:
        path = find_file(data, name)
        assert path is not None
        parse = idx.parse_images if "images" in name else idx.parse_labels
        found.append(parse(idx.read_content(path), name))
    return found


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("form", [as_class_folders, as_table, as_npz, as_hugging_face])
def test_every_form_gives_the_same_data_set(tmp_path: Path, form: Callable[[Path, bool], Path], colour: bool) -> None:
    """Each image keeps its label, names are the classes', and the order depends on pixels alone."""
    card = prepare(tmp_path / "data", PrepareOptions(form(tmp_path / "source", colour)), silent)
    assert (card.class_names, card.pool_size, card.test_size) == (CLASSES, 90, 30)
    assert (card.image_shape, card.channels, card.balanced) == ((12, 12), 3 if colour else 1, False)
    pool, test, pool_labels, test_labels = contents(tmp_path / "data")
    for images, labels, given in (
        (pool, pool_labels, pictures(90, colour)),
        (test, test_labels, pictures(30, colour, 1)),
    ):
        label_of = {image.tobytes(): label for image, label in zip(*given, strict=True)}
        assert [label_of[image.tobytes()] for image in images] == labels.tolist()
    other = prepare(tmp_path / "other", PrepareOptions(as_npz(tmp_path / "npz", colour)), silent)
    assert other.content_sha256 == card.content_sha256
    images = load_images(tmp_path / "data" / "images")
    assert np.array_equal(images.pool.numpy(), pool) and np.array_equal(images.test.numpy(), test)


def test_order_of_a_sorted_folder_tells_no_label(tmp_path: Path) -> None:
    """Neighbours share a class about as often as chance makes them, and no name of a class is beside the images."""
    prepare(tmp_path / "data", PrepareOptions(as_class_folders(tmp_path / "source", False)), silent)
    labels = contents(tmp_path / "data")[2]
    assert abs(np.mean(labels[1:] == labels[:-1]) - 1 / 3) < 0.2
    assert abs(np.corrcoef(np.arange(len(labels)), labels)[0, 1]) < 0.3
    recipe = (tmp_path / "data" / "images" / "images.json").read_text()
    assert json.loads(recipe)["shape"] == [12, 12]
    assert not any(name in recipe for name in CLASSES)


def test_sorted_idx_files_are_refused_unless_shuffled(tmp_path: Path) -> None:
    """Their order is kept, so it must not tell labels."""
    source = tmp_path / "source"
    source.mkdir()
    for images_name, labels_name, count in ((TRAIN_IMAGES, TRAIN_LABELS, 90), (TEST_IMAGES, TEST_LABELS, 30)):
        images, labels = pictures(count, True)
        (source / images_name).write_bytes(idx.to_bytes(images))
        (source / labels_name).write_bytes(idx.labels_to_bytes(labels))
    with pytest.raises(DataRefused, match="sorted by class, so that an id would tell its label; add --shuffle"):
        prepare(tmp_path / "data", PrepareOptions(source), silent)
    assert prepare(tmp_path / "data", PrepareOptions(source, shuffle=True), silent).channels == 3


def test_size_grey_names_share_and_redraw_work_on_a_folder(tmp_path: Path) -> None:
    """One folder is divided by class, or drawn under a seed; images get their new shape."""
    source = write_folder(tmp_path / "source", *pictures(100, True))
    options = PrepareOptions(source, size=16, grey=True, test_share=0.2, class_names=("a", "b", "c"))
    card = prepare(tmp_path / "data", options, silent)
    assert (card.image_shape, card.channels, card.class_names) == ((16, 16), 1, ("a", "b", "c"))
    assert np.bincount(contents(tmp_path / "data")[3]).tolist() == [7, 7, 7]
    drawn = prepare(tmp_path / "drawn", PrepareOptions(source, redraw_seed=3, test_share=0.2), silent)
    assert (drawn.pool_size, drawn.test_size, drawn.name) == (80, 20, "source re-drawn split 3")


def test_more_classes_than_a_byte_holds(tmp_path: Path) -> None:
    """A thousand classes are kept in labels of two bytes."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(2000) % 1000)
    card = prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz", test_share=0.5), silent)
    assert len(card.class_names) == 1000
    assert sorted(contents(tmp_path / "data")[2].tolist()) == list(range(1000))


def test_another_data_set_over_a_prepared_one_is_refused(tmp_path: Path) -> None:
    """Not kept silently; the same one from another place is the same."""
    first, second = as_npz(tmp_path / "a", False), as_npz(tmp_path / "b", True)
    card = prepare(tmp_path / "data", PrepareOptions(first), silent)
    for options in (PrepareOptions(second), PrepareOptions(first, size=20), PrepareOptions(None, size=20)):
        with pytest.raises(DataRefused, match="already holds all"):
            prepare(tmp_path / "data", options, silent)
    (tmp_path / "copy").mkdir()
    assert prepare(tmp_path / "data", PrepareOptions(shutil.copy(first, tmp_path / "copy")), silent) == card


def test_large_images_are_plain_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the limit on, files are plain, and the trainer maps them."""
    monkeypatch.setattr(preparing, "PLAIN_FROM_BYTES", 5000)
    monkeypatch.setattr("trainer.images.data.MAPPED_FROM_BYTES", 5000)
    card = prepare(tmp_path / "data", PrepareOptions(as_npz(tmp_path / "a", True)), silent)
    assert card.path_of(TRAIN_IMAGES) == f"images/{TRAIN_IMAGES}"
    images = load_images(tmp_path / "data" / "images")
    assert np.array_equal(images.pool.numpy(), contents(tmp_path / "data")[0])


def _no_classes(root: Path) -> None:
    shutil.rmtree(root / "train" / "cat"), shutil.rmtree(root / "train" / "dog"), shutil.rmtree(root / "train" / "owl")


def _corrupt(root: Path) -> None:
    path = root / "train" / "dog" / "0030.png"
    path.write_bytes(path.read_bytes()[:60])


def _other_size(root: Path) -> None:
    Image.new("L", (20, 12)).save(root / "train" / "dog" / "x.png")


def _empty_class(root: Path) -> None:
    (root / "train" / "emu").mkdir()


def _other_class(root: Path) -> None:
    (root / "test" / "owl").rename(root / "test" / "emu")


def _link(root: Path) -> None:
    Image.new("L", (12, 12)).save(root.parent / "outside.png")
    (root / "train" / "dog" / "x.png").symlink_to(root.parent / "outside.png")


def _bomb(root: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (root / "train" / "dog" / "x.png").write_bytes(picture + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_no_classes, "has no class folders"),
        (_corrupt, r"0030\.png is damaged, or no PNG or JPEG"),
        (_other_size, r"x\.png is 12x20 pixels and the images before are 12x12; give --size"),
        (_empty_class, "class folder .*emu is empty"),
        (_other_class, r"different classes in train/ and test/ \(emu, owl\)"),
        (_link, "is a link that leaves"),
        (_bomb, "unpacks to more than"),
    ],
)
def test_wrong_folders_are_one_sentence_and_leave_nothing(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    """Nothing half-made stays, not even hidden."""
    root = as_class_folders(tmp_path / "source", False)
    damage(root)
    with pytest.raises(DataRefused, match=sentence) as refused:
        prepare(tmp_path / "data", PrepareOptions(root), silent)
    assert "\n" not in str(refused.value)
    assert not [path for path in tmp_path.iterdir() if "data" in path.name]


GOOD = np.zeros((60, 8, 8), dtype=np.uint8)
TWO = np.arange(60) % 2


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": GOOD / 1.0 + np.nan, "y_train": TWO}, "holds NaN"),
        ({"x_train": GOOD + 1.5, "y_train": TWO}, "floats outside 0 to 1"),
        ({"x_train": GOOD.astype(int) + 300, "y_train": TWO}, "not from 0 to 255"),
        ({"x_train": GOOD, "y_train": TWO - 1}, "A label is -1"),
        ({"x_train": GOOD, "y_train": TWO * 2}, r"Class 1 \(1\) has no image"),
        ({"x_train": GOOD, "y_train": TWO * 5000}, "makes 5,001 class"),
        ({"x_train": GOOD, "y_train": TWO * 0}, "makes 1 class"),
        ({"x_train": GOOD, "y_train": TWO / 2}, "no whole numbers"),
        ({"x_train": GOOD, "y_train": TWO[:50]}, "60 images and 50 labels"),
        ({"x_train": GOOD.reshape(60, 64), "y_train": TWO}, "has the shape"),
        ({"x_train": GOOD[:, :5], "y_train": TWO}, "5x8 pixels, and 8 to 224 can be used"),
        ({"x_train": GOOD}, "has no array y_train"),
        ({"x_train": GOOD, "y_train": TWO.astype(object)}, "Python objects"),
    ],
)
def test_wrong_arrays_are_one_sentence(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    """Every mistake of an NPZ file names the array."""
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataRefused, match=sentence):
        prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz", test_share=0.2), silent)


def test_floats_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    """1.0 is white."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x_train=(images / 255).astype(np.float32), y_train=TWO)
    prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz", test_share=0.2), silent)
    pool, test, *_ = contents(tmp_path / "data")
    assert {image.tobytes() for image in (*pool, *test)} == {image.tobytes() for image in images}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("missing.png,cat", "line 2, names missing.png, and there is no such file"),
        ("../outside.png,cat", "leaves the folder"),
        (",cat", "no path or no label"),
        ("a\0b.png,cat", "cannot be read as CSV"),
    ],
)
def test_wrong_tables_are_one_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    """The sentence names the line."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.csv").write_text(f"path,label\n{line}\n")
    with pytest.raises(DataRefused, match=sentence):
        prepare(tmp_path / "data", PrepareOptions(tmp_path / "t" / "a.csv"), silent)


def test_grey_images_become_colour_with_the_first_colour_image(tmp_path: Path) -> None:
    """Mixed pictures are colour, whichever comes first."""
    stack = image_stack.ImageStack(tmp_path / "raw")
    grey, colour = pictures(3, False)[0], pictures(2, True)[0]
    for images in (grey, colour, grey):
        stack.append(images, "x")
    stack.close()
    stacked = stack.open()
    assert stacked.shape == (8, 12, 12, 3)
    assert np.array_equal(stacked[:3, ..., 1], grey) and np.array_equal(stacked[3:5], colour)


def test_a_torchvision_set_on_disk_is_read(tmp_path: Path) -> None:
    """EuroSAT's layout, class folders of colour JPEG, by torchvision's own class."""
    folder = tmp_path / "eurosat" / "2750"
    for label in ("Forest", "River"):
        (folder / label).mkdir(parents=True)
        for number in range(30):
            image = np.random.default_rng(number + 100 * len(label)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / label / f"{number}.jpg")
    source = Path(f"torchvision:EuroSAT:{tmp_path}")
    card = prepare(tmp_path / "data", PrepareOptions(source, test_share=0.2), silent)
    assert (card.class_names, card.pool_size, card.test_size, card.channels) == (("Forest", "River"), 48, 12, 3)
    for given, sentence in (
        (f"torchvision:Nothing:{tmp_path}", "no data set Nothing"),
        (f"torchvision:CIFAR10:{tmp_path}", "cannot read CIFAR10"),
    ):
        with pytest.raises(DataRefused, match=sentence):
            prepare(tmp_path / "x", PrepareOptions(Path(given)), silent)
