"""`prepare`: where files come from, what is refused, and that nothing is written before everything is checked."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FILES,
    OFFICIAL_CONTENT_SHA256,
    OFFICIAL_GZIP_SHA256,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    find_file,
    images_fingerprint,
    sha256,
    stored_path,
)
from label_service.data.prepare import PrepareOptions, prepare, redraw
from label_service.data.seed import read_label_files
from label_service.data.sources import DEBIAN_FOLDER, Notify, Sources, has_all_files
from label_service.errors import DataRefused
from tests.support.datasets import make_idx_dataset, read_card_json

OTHER = PrepareOptions(other_data=True, install=False)


def refuse_download(folder: Path, notify: Notify) -> None:
    """Stand in for the network, which tests do not have."""
    raise DataRefused("no download in tests")


def no_sources(tmp_path: Path, **override: object) -> Sources:
    """Return sources that have nothing."""
    given = {"debian_folder": tmp_path / "nowhere", "may_install": lambda: False, "download": refuse_download}
    return Sources(**{**given, **override})


def silent(_: str) -> None:
    """Ignore the sentence."""


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Four gzipped IDX files of other data, flat in one folder."""
    made = make_idx_dataset(tmp_path / "made", pool=30, test=12)
    folder = tmp_path / "flat"
    folder.mkdir()
    for name in FILES:
        shutil.copy(made / stored_path(name), folder / f"{name}.gz")
    return folder


def test_other_data_is_parted_and_described(tmp_path: Path, flat: Path) -> None:
    """Images and labels get their own folders, with a card; only the owner may open the folder of the labels."""
    data = tmp_path / "data"
    names = ("left", "middle", "right")
    card = prepare(data, PrepareOptions(flat, other_data=True, class_names=names, name="bars"), silent)
    assert (card.name, card.official, card.pool_size, card.test_size) == ("bars", False, 30, 12)
    assert card.class_names == names
    assert stat.S_IMODE((data / "labels").stat().st_mode) == 0o700
    assert sorted(path.name for path in (data / "images").iterdir()) == [
        "images.json",
        "t10k-images-idx3-ubyte.gz",
        "train-images-idx3-ubyte.gz",
    ]
    assert (data / "labels" / "dataset.json").read_bytes() == (data / "dataset.json").read_bytes()
    for name in FILES:
        raw = (data / stored_path(name)).read_bytes()
        assert card.files[stored_path(name)].sha256 == sha256(raw)
        assert card.files[stored_path(name)].content_sha256 == sha256(gzip.decompress(raw))


def test_preparing_twice_only_verifies(tmp_path: Path, flat: Path) -> None:
    """The second time nothing is written, and a changed file is noticed."""
    data = tmp_path / "data"
    first = prepare(data, PrepareOptions(flat, other_data=True), silent)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    assert prepare(data, OTHER, silent, no_sources(tmp_path)) == first
    assert times == {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    (data / stored_path(TRAIN_LABELS)).write_bytes(b"changed")
    with pytest.raises(DataRefused, match="is not the file that"):
        prepare(data, OTHER, silent)
    (data / stored_path(TRAIN_LABELS)).unlink()
    with pytest.raises(DataRefused, match="is missing although"):
        prepare(data, OTHER, silent)


def test_plain_files_lying_in_the_folder_are_moved_into_its_parts(tmp_path: Path, flat: Path) -> None:
    """No label file stays beside the images, gzipped or not, and each move is reported."""
    for name in FILES:
        (flat / name).write_bytes(gzip.decompress((flat / f"{name}.gz").read_bytes()))
        (flat / f"{name}.gz").unlink()
    sentences: list[str] = []
    prepare(flat, OTHER, sentences.append, no_sources(tmp_path))
    assert sorted(path.name for path in flat.iterdir()) == ["dataset.json", "images", "labels"]
    assert all((flat / stored_path(name)).is_file() for name in FILES)
    assert len(sentences) == 4


def test_files_that_were_not_the_source_are_left_alone(tmp_path: Path, flat: Path) -> None:
    """With --from, whatever else lies in the folder stays there, and the source keeps its files."""
    data = tmp_path / "data"
    data.mkdir()
    (data / TRAIN_LABELS).write_bytes(b"somebody's own file")
    prepare(data, PrepareOptions(flat, other_data=True), silent)
    assert (data / TRAIN_LABELS).read_bytes() == b"somebody's own file"
    assert has_all_files(flat)


def test_unknown_files_need_the_flag(tmp_path: Path, flat: Path) -> None:
    """Files that merely lie in the folder are refused unless the flag, or --from, says that they are meant."""
    before = sorted(flat.iterdir())
    with pytest.raises(DataRefused, match="pass --other-data"):
        prepare(flat, PrepareOptions(), silent)
    assert sorted(flat.iterdir()) == before
    assert prepare(tmp_path / "data", PrepareOptions(flat), silent).name == "flat"


def _swap_parts(folder: Path) -> None:
    shutil.copy(folder / f"{TEST_LABELS}.gz", folder / f"{TRAIN_LABELS}.gz")


def _swap_kinds(folder: Path) -> None:
    shutil.copy(folder / f"{TRAIN_LABELS}.gz", folder / f"{TRAIN_IMAGES}.gz")


def _remove(folder: Path) -> None:
    (folder / f"{TRAIN_IMAGES}.gz").unlink()


def _other_size(folder: Path) -> None:
    images = np.zeros((12, 5, 5), dtype=np.uint8)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx.compress(idx.to_bytes(images)))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_swap_parts, "30 training images and 12 labels"),
        (_swap_kinds, "is not an image file in IDX format"),
        (_remove, "has no train-images-idx3-ubyte"),
        (_other_size, "different sizes"),
    ],
)
def test_damaged_folders_are_refused_with_one_sentence(
    tmp_path: Path, flat: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    """Damage is refused whatever flags are given, and leaves no half-made folder."""
    damage(flat)
    with pytest.raises(DataRefused, match=sentence):
        prepare(tmp_path / "data", PrepareOptions(flat, other_data=True), silent)
    assert not (tmp_path / "data").exists()


def test_wrong_number_of_class_names_is_refused(tmp_path: Path, flat: Path) -> None:
    """One name for each class."""
    with pytest.raises(DataRefused, match="2 class names were given for 3 classes"):
        prepare(tmp_path / "data", PrepareOptions(flat, other_data=True, class_names=("a", "b")), silent)


def test_sources_are_tried_in_order(tmp_path: Path, flat: Path) -> None:
    """The package's folder, its installation, the download: each is tried only if those before it fail."""
    steps: list[str] = []

    def install(notify: Notify) -> bool:
        steps.append("install")
        return False

    def download(folder: Path, notify: Notify) -> None:
        steps.append("download")
        for path in flat.iterdir():
            shutil.copy(path, folder)

    sources = no_sources(tmp_path, may_install=lambda: True, install=install, download=download)
    prepare(tmp_path / "a", PrepareOptions(other_data=True), silent, sources)
    assert steps == ["install", "download"]
    steps.clear()
    prepare(tmp_path / "b", PrepareOptions(other_data=True, install=False), silent, sources)
    assert steps == ["download"]
    steps.clear()
    card = prepare(tmp_path / "c", PrepareOptions(other_data=True), silent, no_sources(tmp_path, debian_folder=flat))
    assert steps == [] and card.source.startswith("Debian package")
    with pytest.raises(DataRefused, match="no download in tests"):
        prepare(tmp_path / "d", PrepareOptions(), silent, no_sources(tmp_path))
    with pytest.raises(DataRefused, match="is not a folder"):
        prepare(tmp_path / "d", PrepareOptions(tmp_path / "missing"), silent, no_sources(tmp_path))


KILL = """
import os, signal, sys
from pathlib import Path
from label_service.data import image_stack, prepare

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

data, source, moment = sys.argv[1:]
if moment == "reading":
    appended, append = [], image_stack.ImageStack.append
    image_stack.ImageStack.append = lambda *given: kill() if appended else (appended.append(1), append(*given))
elif moment == "before publishing":
    prepare._publish = kill
else:
    moved, replace = [], Path.replace
    def move(path, to):
        if path.parent.name == "images":
            return replace(path, to)
        kill()
    Path.replace = move
prepare.prepare(Path(data), prepare.PrepareOptions(Path(source)), print)
"""


@pytest.mark.parametrize(
    ("moment", "is_there"), [("reading", False), ("before publishing", False), ("publishing", True)]
)
def test_a_killed_prepare_leaves_nothing_that_passes_for_a_data_set(
    tmp_path: Path, flat: Path, moment: str, is_there: bool
) -> None:
    """There is no card, and the same command makes the folder whole and sweeps what was left."""
    data = tmp_path / "data"
    if is_there:
        data.mkdir()
    done = subprocess.run([sys.executable, "-c", KILL, str(data), str(flat), moment], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert data.exists() == is_there and not (data / CARD).exists()
    assert not list(data.glob("labels/*"))
    card = prepare(data, PrepareOptions(flat), silent)
    assert prepare(data, PrepareOptions(flat), silent) == card
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "images", "labels"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "flat", "made"]


@pytest.mark.parametrize(("of_the_first", "is_balanced"), [(40, True), (43, True), (50, False), (100, False)])
def test_only_what_is_nearly_balanced_is_declared_so(tmp_path: Path, of_the_first: int, is_balanced: bool) -> None:
    """A wrong declaration is refused; a part drawn from a declared set loses the declaration if it is not balanced."""
    counts = {0: of_the_first, 1: 40, 2: 40}
    labels = np.repeat(list(counts), list(counts.values()))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:30], "y_test": labels[:30]}
    np.savez(tmp_path / "a.npz", **arrays)
    options = PrepareOptions(tmp_path / "a.npz", balanced=True)
    if is_balanced:
        assert prepare(tmp_path / "data", options, silent).balanced
        return
    with pytest.raises(DataRefused, match="differ by more than 10% from equal shares; leave --balanced out"):
        prepare(tmp_path / "data", options, silent)
    assert not prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz"), silent).balanced


def test_a_drawn_part_of_a_balanced_set_is_not_declared_balanced_unless_it_is(tmp_path: Path) -> None:
    """Twelve images drawn from a balanced set are not balanced; all of them are."""
    images = np.random.default_rng(0).integers(0, 256, (150, 8, 8), dtype=np.uint8)
    labels = np.arange(150) % 3
    np.savez(tmp_path / "a.npz", x_train=images[:120], y_train=labels[:120], x_test=images[120:], y_test=labels[120:])
    assert prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz", balanced=True), silent).balanced
    drawn = PrepareOptions(tmp_path / "data", redraw_seed=1, test_share=0.9)
    card = prepare(tmp_path / "drawn", drawn, silent)
    pool = idx.parse_labels(idx.read_content(tmp_path / "drawn" / stored_path(TRAIN_LABELS)), "pool")
    assert not card.balanced
    assert len(pool) == 12 and np.bincount(pool).tolist() != [4, 4, 4]


@pytest.mark.parametrize(("option", "given"), [("--test-share", {"test_share": 0.5}), ("--shuffle", {"shuffle": True})])
def test_an_option_for_a_source_is_refused_where_none_is_read(
    flat: Path, tmp_path: Path, option: str, given: dict[str, float]
) -> None:
    """A prepared folder without --from is checked and not made anew."""
    prepare(tmp_path / "data", PrepareOptions(flat, other_data=True), silent)
    with pytest.raises(DataRefused, match=f"{option} is for a source: name it with --from"):
        prepare(tmp_path / "data", PrepareOptions(other_data=True, **given), silent)


def test_redraw_is_deterministic_disjoint_and_complete() -> None:
    """The same seed gives the same split, another seed another; each image is in exactly one part."""
    first, again, other = (redraw(100, seed, test_size=20) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    assert sorted(np.concatenate(first)) == list(range(100)) and len(first[1]) == 20


needs_fashion_mnist = pytest.mark.skipif(
    not has_all_files(DEBIAN_FOLDER), reason="the Debian package dataset-fashion-mnist is not installed"
)


@pytest.mark.realdata
@needs_fashion_mnist
def test_official_files_are_known_packed_and_unpacked(tmp_path: Path) -> None:
    """The real files have the known hashes; unpacked copies are just as official and have the same fingerprint."""
    for name in FILES:
        raw = (DEBIAN_FOLDER / f"{name}.gz").read_bytes()
        assert sha256(raw) == OFFICIAL_GZIP_SHA256[name]
        assert sha256(gzip.decompress(raw)) == OFFICIAL_CONTENT_SHA256[name]
    card = prepare(tmp_path / "data", PrepareOptions(install=False), silent)
    assert card.official and (card.pool_size, card.test_size) == (60_000, 10_000)
    info = read_label_files(tmp_path / "data", other_data=False).info
    expected = images_fingerprint(OFFICIAL_CONTENT_SHA256)
    assert info.official and info.fingerprint == expected
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in (TRAIN_LABELS, TEST_LABELS):
        (plain / name).write_bytes(gzip.decompress((DEBIAN_FOLDER / f"{name}.gz").read_bytes()))
    assert read_label_files(plain, other_data=False).info.fingerprint == expected


@pytest.mark.realdata
@needs_fashion_mnist
def test_official_files_in_each_others_places_are_always_refused(tmp_path: Path) -> None:
    """Swapped files are refused even with --other-data: nobody means that."""
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name, source in zip(FILES, (FILES[1], FILES[0], FILES[3], FILES[2]), strict=True):
        shutil.copy(DEBIAN_FOLDER / f"{source}.gz", swapped / f"{name}.gz")
    with pytest.raises(DataRefused, match="under the name of"):
        prepare(tmp_path / "data", PrepareOptions(swapped, other_data=True), silent)
    with pytest.raises(DataRefused, match="under the name of"):
        read_label_files(swapped, other_data=True)


@pytest.mark.realdata
@needs_fashion_mnist
def test_redrawn_split_is_made_named_and_accepted_without_a_flag(tmp_path: Path) -> None:
    """The card names the split, seeding needs no --other-data, and another split is refused."""
    data = tmp_path / "data"
    card = prepare(data, PrepareOptions(redraw_seed=7, install=False), silent)
    assert (card.name, card.official) == ("Fashion-MNIST re-drawn split 7", False)
    assert (card.pool_size, card.test_size, card.redraw_seed) == (50_000, 10_000, 7)
    # The shares of its classes are within 3% of a tenth each.
    assert card.balanced
    assert read_card_json(data)["redraw_seed"] == 7
    files = read_label_files(data, other_data=False)
    assert files.info.name == card.name and not files.info.official
    original = idx.parse_labels(idx.read_content(DEBIAN_FOLDER / f"{TRAIN_LABELS}.gz"), "labels")
    together = np.concatenate([files.pool, files.test])
    assert np.array_equal(np.bincount(together), np.bincount(original))
    for options in (PrepareOptions(redraw_seed=8), PrepareOptions()):
        with pytest.raises(DataRefused, match="already holds Fashion-MNIST re-drawn split 7"):
            prepare(data, options, silent)
    assert prepare(data, PrepareOptions(redraw_seed=7), silent) == card


@pytest.mark.realdata
@needs_fashion_mnist
def test_a_split_of_all_images_has_the_official_sizes_and_is_not_mistaken_for_another(tmp_path: Path) -> None:
    """Each of the 70,000 images is in one part, with its label; the card records that all images were used."""
    data = tmp_path / "data"
    card = prepare(data, PrepareOptions(redraw_seed=7, redraw_from="all", install=False), silent)
    assert (card.name, card.official) == ("Fashion-MNIST re-drawn split 7 of all 70,000", False)
    assert (card.pool_size, card.test_size, card.redrawn_from) == (60_000, 10_000, "all")
    assert _parts(data) == _parts(DEBIAN_FOLDER)
    files = read_label_files(data, other_data=False)
    assert files.info.name == card.name and not files.info.official

    again, other = (
        prepare(tmp_path / f"data{seed}", PrepareOptions(redraw_seed=seed, redraw_from="all", install=False), silent)
        for seed in (7, 8)
    )
    assert again.files == card.files
    assert all(other.files[name].content_sha256 != card.files[name].content_sha256 for name in card.files)

    assert prepare(data, PrepareOptions(redraw_seed=7, redraw_from="all"), silent) == card
    for options, message in (
        (PrepareOptions(redraw_seed=7), "of all 70,000; choose another --data for Fashion-MNIST re-drawn split 7[.]$"),
        (
            PrepareOptions(redraw_seed=8, redraw_from="all"),
            "choose another --data for Fashion-MNIST re-drawn split 8 of all",
        ),
        (PrepareOptions(), "pass --redraw 7 --redraw-from all, or choose another --data"),
    ):
        with pytest.raises(DataRefused, match=message) as refused:
            prepare(data, options, silent)
        assert "\n" not in str(refused.value)


@pytest.mark.realdata
@needs_fashion_mnist
def test_a_split_made_before_there_was_a_choice_is_one_of_the_training_images(tmp_path: Path) -> None:
    """Older cards do not record the source of the split; they are still read and mean the training images."""
    data = tmp_path / "data"
    prepare(data, PrepareOptions(redraw_seed=7, install=False), silent)
    for path in (data / CARD, data / "labels" / CARD):
        card = json.loads(path.read_text())
        assert card.pop("redrawn_from") == "training"
        path.write_text(json.dumps(card))
    assert prepare(data, PrepareOptions(redraw_seed=7), silent).redrawn_from is None
    assert read_label_files(data, other_data=False).info.redraw_seed == 7
    with pytest.raises(DataRefused, match="already holds Fashion-MNIST re-drawn split 7; choose another"):
        prepare(data, PrepareOptions(redraw_seed=7, redraw_from="all"), silent)


def _parts(folder: Path) -> list[bytes]:
    """Return a digest of each image with its label, from both parts, sorted."""
    pairs: list[bytes] = []
    for images_name, labels_name in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)):
        images = idx.parse_images(_content(folder, images_name), images_name)
        labels = idx.parse_labels(_content(folder, labels_name), labels_name)
        pairs += [
            hashlib.sha256(image.tobytes() + bytes([label])).digest()
            for image, label in zip(images, labels, strict=True)
        ]
    return sorted(pairs)


def _content(folder: Path, name: str) -> bytes:
    path = find_file(folder, name)
    assert path is not None
    return idx.read_content(path)
