"""`prepare`: find the four files, check them, and divide them into DIR/labels and DIR/images.

All files are checked before any is written. Each is written atomically and the card comes last, so a command that was
interrupted can be repeated. A folder that is prepared already is only verified.

A re-drawn split has a pool and a test set drawn anew. For development its test set comes out of the training images, so
that the official test set stays unread. For a check from outside, pool and test set can be drawn from all images, which
gives a split that nobody has developed on.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FASHION_MNIST,
    FASHION_MNIST_CLASSES,
    FILES,
    PART,
    DatasetCard,
    RedrawFrom,
    check_class_names,
    count_classes,
    describe_file,
    find_file,
    is_official,
    read_card,
    sha256,
    stored_path,
)
from label_service.data.sources import DEBIAN_PACKAGE, Notify, Sources, has_all_files
from label_service.errors import DataRefused
from label_service.files import write_atomically

# Only the service's user may read the labels.
LABELS_MODE = 0o700
# As many as the official test set has: a split of all 70,000 images then has the official sizes.
REDRAWN_TEST_SIZE = 10_000


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare`; the command's help describes them."""

    source: Path | None = None
    redraw_seed: int | None = None
    redraw_from: RedrawFrom = "training"
    other_data: bool = False
    class_names: tuple[str, ...] | None = None
    name: str | None = None
    install: bool = True


class Split(NamedTuple):
    """Images (N, height, width) and labels (N,) of a pool and of a test set, uint8, in the order of `FILES`."""

    pool_images: idx.Bytes
    test_images: idx.Bytes
    pool_labels: idx.Bytes
    test_labels: idx.Bytes


@dataclass(frozen=True)
class _File:
    """A file of the source: where it is, its unpacked content, and whether it is the official Fashion-MNIST file."""

    path: Path
    content: bytes
    official: bool


def prepare(data: Path, options: PrepareOptions, notify: Notify, sources: Sources | None = None) -> DatasetCard:
    """Make `data` a prepared folder, or verify that it is one.

    Args:
        data: the folder to make.
        options: where the files are, and which data to accept.
        notify: called with a sentence before each step that takes time or changes the machine.
        sources: where to look if the options name no folder.

    Returns:
        The folder's card.

    Raises:
        DataRefused: no source has the files; or they are damaged, swapped, inconsistent or unknown; or the options
            contradict one another.
    """
    if options.redraw_from == "all" and options.redraw_seed is None:
        raise DataRefused("--redraw-from all is for a re-drawn split; add --redraw SEED, or leave it out.")
    existing = read_card(data / CARD)
    if existing is not None:
        return _verify(data, existing, options)
    with tempfile.TemporaryDirectory(prefix="labelmeter-") as scratch:
        folder, source = _find_source(data, options, notify, sources or Sources(), Path(scratch))
        files = _read_files(folder)
        split = _parse(files)
        name, class_names = _identify(folder, files, split, options)
        if options.redraw_seed is None:
            contents = {file: files[file].content for file in FILES}
            stored = {file: _pack(files[file]) for file in FILES}
        else:
            name = _split_name(options.redraw_seed, options.redraw_from)
            split = _redraw(split, options.redraw_seed, options.redraw_from, notify)
            contents = {file: idx.to_bytes(array) for file, array in zip(FILES, split, strict=True)}
            stored = {file: idx.compress(contents[file]) for file in FILES}
        card = DatasetCard(
            name=name,
            official=options.redraw_seed is None and all(file.official for file in files.values()),
            class_names=class_names,
            pool_size=len(split.pool_images),
            test_size=len(split.test_images),
            image_shape=(split.pool_images.shape[1], split.pool_images.shape[2]),
            redraw_seed=options.redraw_seed,
            redrawn_from=None if options.redraw_seed is None else options.redraw_from,
            source=source,
            files={stored_path(file): describe_file(stored[file], contents[file]) for file in FILES},
        )
        _write(data, card, stored)
        if folder.resolve() == data.resolve():
            _remove_flat_copies(data, notify)
    return card


def redraw(images: idx.Bytes, labels: idx.Bytes, seed: int, test_size: int = REDRAWN_TEST_SIZE) -> Split:
    """Divide images at random into a pool and a test set.

    Args:
        images: (N, height, width), uint8.
        labels: (N,), uint8.
        seed: of `numpy.random.default_rng`; the same seed gives the same split on every machine.
        test_size: images in the test set, fewer than N.

    Returns:
        The split. The first `test_size` images of the random permutation are the test set; both parts keep its order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    test, pool = order[:test_size], order[test_size:]
    return Split(images[pool], images[test], labels[pool], labels[test])


def _find_source(
    data: Path, options: PrepareOptions, notify: Notify, sources: Sources, scratch: Path
) -> tuple[Path, str]:
    """Return the folder that has the files, and a description of it for the card."""
    if options.source is not None:
        if not options.source.is_dir():
            raise DataRefused(f"{options.source} is not a folder; pass --from the folder with the four IDX files.")
        return options.source, str(options.source)
    if any(find_file(data, name) for name in FILES):
        return data, "files found in the folder itself"
    debian = f"Debian package {DEBIAN_PACKAGE}"
    if has_all_files(sources.debian_folder):
        return sources.debian_folder, debian
    if options.install and sources.may_install() and sources.install(notify) and has_all_files(sources.debian_folder):
        return sources.debian_folder, debian
    sources.download(scratch, notify)
    return scratch, "published download"


def _read_files(folder: Path) -> dict[str, _File]:
    files = {}
    for name in FILES:
        path = find_file(folder, name)
        if path is None:
            raise DataRefused(
                f"{folder} has no {name}.gz (or plain {name}); a data set needs all of {', '.join(FILES)}."
            )
        content = idx.read_content(path)
        files[name] = _File(path, content, is_official(name, content, path))
    return files


def _parse(files: dict[str, _File]) -> Split:
    """Parse the files and check that they belong together."""
    parsers = {"images": idx.parse_images, "labels": idx.parse_labels}
    split = Split(*(parsers[PART[name]](files[name].content, name) for name in FILES))
    for images, labels, part in (
        (split.pool_images, split.pool_labels, "training"),
        (split.test_images, split.test_labels, "test"),
    ):
        if len(images) != len(labels):
            raise DataRefused(f"There are {len(images):,} {part} images and {len(labels):,} labels: they do not match.")
        if not len(images):
            raise DataRefused(f"The {part} files hold no image at all; check which data set this is.")
    if split.pool_images.shape[1:] != split.test_images.shape[1:]:
        raise DataRefused("Training and test images have different sizes in pixels; check that they belong together.")
    return split


def _identify(
    folder: Path, files: dict[str, _File], split: Split, options: PrepareOptions
) -> tuple[str, tuple[str, ...]]:
    """Return the data set's name and class names, after checking that the options accept this data set."""
    unknown = ", ".join(name for name, file in files.items() if not file.official)
    if not unknown:
        return FASHION_MNIST, FASHION_MNIST_CLASSES
    if not options.other_data:
        raise DataRefused(f"{unknown}: not the known Fashion-MNIST file(s); pass --other-data if this is meant.")
    if options.redraw_seed is not None:
        raise DataRefused("--redraw splits only the official Fashion-MNIST images, and these are others; leave it out.")
    classes = count_classes((split.pool_labels, split.test_labels))
    return options.name or folder.resolve().name, check_class_names(options.class_names, classes)


def _redraw(split: Split, seed: int, source: RedrawFrom, notify: Notify) -> Split:
    images, labels = split.pool_images, split.pool_labels
    if source == "all":
        images = np.concatenate([images, split.test_images])
        labels = np.concatenate([labels, split.test_labels])
    notify(
        f"Drawing split {seed} of {len(labels):,} images: {REDRAWN_TEST_SIZE:,} for the test set, "
        "the rest for the pool …"
    )
    return redraw(images, labels, seed)


def _split_name(seed: int, source: RedrawFrom) -> str:
    return f"{FASHION_MNIST} re-drawn split {seed}{' of all 70,000' if source == 'all' else ''}"


def _pack(file: _File) -> bytes:
    """Return a file gzipped: byte for byte as it is if it is gzipped already."""
    raw = file.path.read_bytes()
    return raw if raw.startswith(idx.GZIP_MAGIC) else idx.compress(file.content)


def _write(data: Path, card: DatasetCard, stored: dict[str, bytes]) -> None:
    """Write a prepared folder. The card comes last, so a folder with a card is complete."""
    try:
        for part in ("images", "labels"):
            (data / part).mkdir(parents=True, exist_ok=True)
        (data / "labels").chmod(LABELS_MODE)
        for name in FILES:
            write_atomically(data / stored_path(name), stored[name])
        for folder in (data / "labels", data):
            write_atomically(folder / CARD, card.to_json().encode())
    except OSError as error:
        raise DataRefused(
            f"{data} cannot be written ({error.strerror}); free space or choose another --data."
        ) from error


def _remove_flat_copies(data: Path, notify: Notify) -> None:
    """Remove the files that were found in the folder itself, because labels must not lie beside images.

    Files that came from another folder are never touched.
    """
    for name in FILES:
        for path in (data / f"{name}.gz", data / name, *(data / part / name for part in ("images", "labels"))):
            if path.is_file():
                path.unlink()
                notify(f"Moved {path.relative_to(data)} to {stored_path(name)}.")


def _verify(data: Path, card: DatasetCard, options: PrepareOptions) -> DatasetCard:
    """Check a prepared folder against its card and the options.

    Raises:
        DataRefused: a file is missing or changed, or the folder holds another data set than the options ask for.
    """
    # Older cards of re-drawn splits do not say what was drawn from: it was the training images.
    drawn_from = card.redrawn_from or "training"
    asked = (options.redraw_seed, options.redraw_from)
    if options.redraw_seed is not None and asked != (card.redraw_seed, drawn_from):
        other = _split_name(options.redraw_seed, options.redraw_from)
        raise DataRefused(f"{data} already holds {card.name}; choose another --data for {other}.")
    if options.redraw_seed is None and card.redraw_seed is not None:
        option = f"--redraw {card.redraw_seed}{' --redraw-from all' if drawn_from == 'all' else ''}"
        raise DataRefused(f"{data} already holds {card.name}; pass {option}, or choose another --data.")
    if not card.official and card.redraw_seed is None and not options.other_data:
        raise DataRefused(f"{data} holds {card.name}, not Fashion-MNIST; pass --other-data if this is meant.")
    for name in FILES:
        path = data / stored_path(name)
        expected = card.files.get(stored_path(name))
        if not path.is_file():
            raise DataRefused(f"{path} is missing although {data / CARD} lists it; remove {data} and prepare again.")
        if expected is None or sha256(path.read_bytes()) != expected.sha256:
            raise DataRefused(f"{path} is not the file that {data / CARD} lists; remove {data} and prepare again.")
    (data / "labels").chmod(LABELS_MODE)
    return card
