"""`prepare`: get the four files, check them, and part them into DIR/labels and DIR/images.

Every file is checked before any is written, each is written atomically, and a folder that is already prepared is only
verified, so the command can be repeated and interrupted at will.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FASHION_MNIST,
    FASHION_MNIST_CLASSES,
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DatasetCard,
    FileCard,
    RedrawFrom,
    check_class_names,
    check_place,
    count_classes,
    find_file,
    read_card,
    sha256,
    stored_path,
)
from label_service.data.redraw import REDRAWN_TEST_SIZE, redraw
from label_service.data.sources import DEBIAN_PACKAGE, Say, Sources, has_all_files
from label_service.errors import DataRefused
from label_service.files import write_atomically

# Only the service's user may look into the labels.
LABELS_MODE = 0o700


@dataclass(frozen=True)
class Wish:
    """What the caller of `prepare` asked for; see the command's help."""

    source: Path | None = None
    redraw_seed: int | None = None
    redraw_from: RedrawFrom = "training"
    other_data: bool = False
    class_names: tuple[str, ...] | None = None
    name: str | None = None
    install: bool = True


def prepare(data: Path, wish: Wish, say: Say, sources: Sources | None = None) -> DatasetCard:
    """Make `data` a prepared folder, or verify that it is one.

    Args:
        data: the folder to make.
        wish: where from, and what to accept.
        say: gets one sentence for each step that takes time or changes the machine.
        sources: where to look when no folder is given.

    Returns:
        The folder's card.

    Raises:
        DataRefused: no source has the files, or they are damaged, swapped, inconsistent or unknown; or the wish
            contradicts itself.
    """
    if wish.redraw_from == "all" and wish.redraw_seed is None:
        raise DataRefused("--redraw-from all is for a re-drawn split; add --redraw SEED, or leave it out.")
    existing = read_card(data / CARD)
    if existing is not None:
        return _verify(data, existing, wish)
    with tempfile.TemporaryDirectory(prefix="labelmeter-") as scratch:
        folder, words = _find_source(data, wish, say, sources or Sources(), Path(scratch))
        contents = {name: idx.read_content(_required(folder, name)) for name in FILES}
        card, stored = _check(contents, folder, words, wish, say)
        _write(data, card, stored)
        if folder.resolve() == data.resolve():
            _remove_flat_copies(data, say)
    return card


def _find_source(data: Path, wish: Wish, say: Say, sources: Sources, scratch: Path) -> tuple[Path, str]:
    """Return the folder that has the files, and where that is in words."""
    if wish.source is not None:
        if not wish.source.is_dir():
            raise DataRefused(f"{wish.source} is not a folder; pass --from the folder with the four IDX files.")
        return wish.source, str(wish.source)
    if any(find_file(data, name) for name in FILES):
        return data, "files found in the folder itself"
    debian = f"Debian package {DEBIAN_PACKAGE}"
    if has_all_files(sources.debian_folder):
        return sources.debian_folder, debian
    if wish.install and sources.may_install() and sources.install(say) and has_all_files(sources.debian_folder):
        return sources.debian_folder, debian
    sources.download(scratch, say)
    return scratch, "published download"


def _required(folder: Path, name: str) -> Path:
    path = find_file(folder, name)
    if path is None:
        raise DataRefused(f"{folder} has no {name}.gz (or plain {name}); a data set needs all of {', '.join(FILES)}.")
    return path


def _check(
    contents: dict[str, bytes], folder: Path, words: str, wish: Wish, say: Say
) -> tuple[DatasetCard, dict[str, bytes]]:
    """Check four contents against each other and the known hashes; return the card and the bytes to store."""
    known = [check_place(name, contents[name], _required(folder, name)) for name in FILES]
    pool_images, test_images = (idx.parse_images(contents[n], n) for n in (TRAIN_IMAGES, TEST_IMAGES))
    pool_labels, test_labels = (idx.parse_labels(contents[n], n) for n in (TRAIN_LABELS, TEST_LABELS))
    for images, labels, part in ((pool_images, pool_labels, "training"), (test_images, test_labels, "test")):
        if len(images) != len(labels):
            raise DataRefused(f"There are {len(images):,} {part} images and {len(labels):,} labels: they do not match.")
        if not len(images):
            raise DataRefused(f"The {part} files hold no image at all; check which data set this is.")
    if pool_images.shape[1:] != test_images.shape[1:]:
        raise DataRefused("Training and test images have different sizes in pixels; check that they belong together.")
    official = all(known)
    if not official and not wish.other_data:
        unknown = ", ".join(name for name, is_known in zip(FILES, known, strict=True) if not is_known)
        raise DataRefused(f"{unknown}: not the known Fashion-MNIST file(s); pass --other-data if this is meant.")
    name, classes = FASHION_MNIST, FASHION_MNIST_CLASSES
    if not official:
        name = wish.name or folder.resolve().name
        classes = check_class_names(wish.class_names, count_classes((pool_labels, test_labels)))
    if wish.redraw_seed is not None:
        if not official:
            raise DataRefused("--redraw parts the official Fashion-MNIST images; other data was given.")
        if wish.redraw_from == "all":
            pool_images = np.concatenate([pool_images, test_images])
            pool_labels = np.concatenate([pool_labels, test_labels])
        say(
            f"Drawing split {wish.redraw_seed} of {len(pool_labels):,} images: {REDRAWN_TEST_SIZE:,} for the test set, "
            "the rest for the pool …"
        )
        name, official = _split_name(wish.redraw_seed, wish.redraw_from), False
        pool_images, pool_labels, test_images, test_labels = redraw(pool_images, pool_labels, wish.redraw_seed)
        arrays = {TRAIN_IMAGES: pool_images, TEST_IMAGES: test_images}
        arrays |= {TRAIN_LABELS: pool_labels, TEST_LABELS: test_labels}
        contents = {file: idx.to_bytes(array) for file, array in arrays.items()}
    stored = {file: _as_gzip(_required(folder, file), contents[file], wish.redraw_seed is None) for file in FILES}
    card = DatasetCard(
        name=name,
        official=official,
        class_names=classes,
        pool_size=len(pool_images),
        test_size=len(test_images),
        image_shape=(pool_images.shape[1], pool_images.shape[2]),
        redraw_seed=wish.redraw_seed,
        redrawn_from=None if wish.redraw_seed is None else wish.redraw_from,
        source=words,
        files={
            stored_path(file): FileCard(
                sha256=sha256(stored[file]), content_sha256=sha256(contents[file]), bytes=len(stored[file])
            )
            for file in FILES
        },
    )
    return card, stored


def _split_name(seed: int, source: RedrawFrom) -> str:
    return f"{FASHION_MNIST} re-drawn split {seed}{' of all 70,000' if source == 'all' else ''}"


def _as_gzip(path: Path, content: bytes, unchanged: bool) -> bytes:
    """Return the bytes to store: the source's own if it is gzipped and unchanged, else the content compressed."""
    if unchanged:
        raw = path.read_bytes()
        if raw.startswith(idx.GZIP_MAGIC):
            return raw
    return idx.compress(content)


def _write(data: Path, card: DatasetCard, stored: dict[str, bytes]) -> None:
    """Write a prepared folder; the card comes last, so a folder with a card is complete."""
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


def _remove_flat_copies(data: Path, say: Say) -> None:
    """Remove the files that were read from the folder itself, now that its parts hold them.

    Labels must not lie beside images. Files that came from elsewhere are never touched.
    """
    for name in FILES:
        for path in (data / f"{name}.gz", data / name, *(data / part / name for part in ("images", "labels"))):
            if path.is_file():
                path.unlink()
                say(f"Moved {path.relative_to(data)} to {stored_path(name)}.")


def _verify(data: Path, card: DatasetCard, wish: Wish) -> DatasetCard:
    """Check a prepared folder against its card.

    Raises:
        DataRefused: a file is missing or changed, or the folder holds another split than the one asked for.
    """
    # Cards of splits made before there was a choice do not say where from.
    drawn_from = card.redrawn_from or "training"
    if wish.redraw_seed is not None and (wish.redraw_seed, wish.redraw_from) != (card.redraw_seed, drawn_from):
        wished = _split_name(wish.redraw_seed, wish.redraw_from)
        raise DataRefused(f"{data} already holds {card.name}; choose another --data for {wished}.")
    if wish.redraw_seed is None and card.redraw_seed is not None:
        option = f"--redraw {card.redraw_seed}{' --redraw-from all' if drawn_from == 'all' else ''}"
        raise DataRefused(f"{data} already holds {card.name}; pass {option}, or choose another --data.")
    if not card.official and card.redraw_seed is None and not wish.other_data:
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
