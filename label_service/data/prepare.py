"""`prepare`: read a source, check it, and divide it into DIR/labels and DIR/images.

Images pass through one raw file on disk, so memory does not grow with their number. Everything is made in a hidden
folder beside DIR and moved into place at the end, the card last: after an error or a kill nothing half-made is there.
A folder that is prepared already is only verified; over another data set `prepare` refuses.

Order: a folder of classes is sorted by class, so an id would tell its label. All sources but IDX files, whose order is
what their ids mean, are therefore put in the order of the SHA-256 of their pixels: it is the same each time, and it
knows nothing of a label. IDX files that are sorted by class are refused unless they are shuffled in the same way.

A re-drawn split has a pool and a test set drawn anew. For development its test set comes out of the training images, so
that the official test set stays unread. For a check from outside, pool and test set can be drawn from all images, which
gives a split that nobody has developed on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FASHION_MNIST,
    FASHION_MNIST_CLASSES,
    FILES,
    OFFICIAL_CONTENT_SHA256,
    RECIPE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DatasetCard,
    FileCard,
    RedrawFrom,
    check_class_names,
    find_file,
    is_official,
    read_card,
    stored_path,
)
from label_service.data.image_stack import SIDES, ImageStack
from label_service.data.readers import class_folders, idx_files, npz, path_table, torchvision_set
from label_service.data.readers import hugging_face as saved
from label_service.data.readers.source import Source, require
from label_service.data.sources import DEBIAN_PACKAGE, Notify, Sources, has_all_files
from label_service.errors import DataRefused
from label_service.files import hash_file, write_atomically

# Only the service's user may read the labels.
LABELS_MODE, FOLDER_MODE = 0o700, 0o755
# Image files from this size on are stored plain, so that the trainer can map them (its `MAPPED_FROM_BYTES`).
PLAIN_FROM_BYTES = 256 * 1024 * 1024
# What both programs are built and measured for.
MAX_CLASSES, MAX_IMAGES = 1_000, 1_000_000
TORCHVISION = "torchvision:"
# A set is declared balanced if the share of no class in the pool is farther than this from an equal one, relatively.
BALANCE_TOLERANCE = 0.1
# Images written at a time.
_BATCH = 256

Order = npt.NDArray[np.int64]


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
    size: int | None = None
    grey: bool = False
    balanced: bool = False
    test_share: float | None = None
    shuffle: bool = False


def prepare(data: Path, options: PrepareOptions, notify: Notify, sources: Sources | None = None) -> DatasetCard:
    """Make `data` a prepared folder, or verify that it is one.

    Args:
        data: the folder to make.
        options: where the data are, and what to make of them.
        notify: called with a sentence before each step that takes time or changes the machine.
        sources: where to look if the options name no source.

    Returns:
        The folder's card.

    Raises:
        DataRefused: no source has the data; or they are damaged, inconsistent or unknown; or `data` holds another data
            set; or the options contradict one another.
    """
    if options.redraw_from == "all" and options.redraw_seed is None:
        raise DataRefused("--redraw-from all is for a re-drawn split; add --redraw SEED, or leave it out.")
    if options.size is not None and options.size not in SIDES:
        raise DataRefused(f"--size {options.size} is not from {SIDES[0]} to {SIDES[-1]}; choose another.")
    if options.test_share is not None and not 0 < options.test_share < 1:
        raise DataRefused(f"--test-share {options.test_share} is no share; give one between 0 and 1, such as 0.2.")
    existing = read_card(data / CARD)
    made_from = None if options.source is None else _stamp(options)
    if existing is not None and (options.source is None or made_from == existing.made_from):
        return _verify(data, existing, options)
    try:
        with tempfile.TemporaryDirectory(prefix="labelmeter-") as downloads, _staging(data) as place:
            folder, described = _find_source(data, options, notify, sources or Sources(), Path(downloads))
            card = _make(place, open_source(folder, data), options, described, made_from, notify)
            if existing is not None:
                _refuse_another(data, existing, card)
                return _verify(data, existing, options, again=True)
            _publish(place / "made", data, card)
            if Path(folder).resolve() == data.resolve():
                _remove_flat_copies(data, card, notify)
    except OSError as error:
        raise DataRefused(
            f"{data} cannot be written ({error.strerror}); free space or choose another --data."
        ) from error
    return card


def open_source(given: str, data: Path) -> Source:
    """Return the source that a path, or `torchvision:NAME:ROOT`, names.

    Raises:
        DataRefused: there is none, or it has no form that is known here; or `data` lies inside it.
    """
    if given.startswith(TORCHVISION):
        name, _, root = given.removeprefix(TORCHVISION).partition(":")
        return torchvision_set.open_torchvision(name, root)
    path = Path(given)
    if path.is_file() and path.suffix.lower() == ".csv":
        return path_table.open_table(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return npz.open_npz(path)
    if not path.is_dir():
        raise DataRefused(
            f"{path} is not a folder, CSV or NPZ file; pass --from one of these, or torchvision:NAME:ROOT."
        )
    if any(find_file(path, name) for name in FILES):
        return idx_files.open_idx(path)
    if data.resolve().is_relative_to(path.resolve()):
        raise DataRefused(f"{data} lies in the source {path}; choose a --data outside of it.")
    if any((path / mark).is_file() for mark in saved.MARKS):
        return saved.open_saved(path)
    return class_folders.open_folder(path)


def redraw(count: int, seed: int, test_size: int) -> tuple[Order, Order]:
    """Divide images at random into a pool and a test set.

    Args:
        count: images.
        seed: of `numpy.random.default_rng`; the same seed gives the same split on every machine.
        test_size: images in the test set, fewer than `count`.

    Returns:
        Places of the pool's and of the test set's images. The first `test_size` images of the random permutation are
        the test set; both parts keep its order.
    """
    order = np.random.default_rng(seed).permutation(count)
    return order[test_size:], order[:test_size]


def _find_source(
    data: Path, options: PrepareOptions, notify: Notify, sources: Sources, scratch: Path
) -> tuple[str, str]:
    """Return what names the source, and a description of it for the card."""
    if options.source is not None:
        return str(options.source), str(options.source)
    if any(find_file(data, name) for name in FILES):
        return str(data), "files found in the folder itself"
    debian = f"Debian package {DEBIAN_PACKAGE}"
    if has_all_files(sources.debian_folder):
        return str(sources.debian_folder), debian
    if options.install and sources.may_install() and sources.install(notify) and has_all_files(sources.debian_folder):
        return str(sources.debian_folder), debian
    sources.download(scratch, notify)
    return str(scratch), "published download"


def _make(
    place: Path, source: Source, options: PrepareOptions, described: str, made_from: str | None, notify: Notify
) -> DatasetCard:
    """Make all files of a prepared folder in `place/made`, and return the card, which is not written yet."""
    known = _recognise(source, options)
    with closing(ImageStack(place / "images.raw")) as stack:
        labels, counts = _read(source, options, stack, notify)
    pixels = stack.open()
    class_names = check_class_names(
        options.class_names or (FASHION_MNIST_CLASSES if known else source.class_names), _count_classes(source, labels)
    )
    _check_names(class_names)
    keeps_order = source.keeps_order and not options.shuffle
    order = np.arange(len(labels)) if keeps_order else _order_by_pixels(pixels, labels)
    if keeps_order and _is_sorted_by_class(labels[: counts[0]]):
        raise DataRefused("The training labels are sorted by class, so that an id would tell its label; add --shuffle.")
    pool, test = _divide(order, labels, counts, options, notify)
    _check_classes(labels[pool], labels[test], class_names)
    is_balanced = _is_nearly_balanced(labels[pool], len(class_names))
    if options.balanced and not is_balanced:
        raise DataRefused(
            f"The classes of the pool differ by more than {BALANCE_TOLERANCE:.0%} from equal shares; "
            "leave --balanced out."
        )
    made = place / "made"
    for part, mode in (("images", FOLDER_MODE), ("labels", LABELS_MODE)):
        (made / part).mkdir(parents=True)
        (made / part).chmod(mode)
    made.chmod(FOLDER_MODE)
    untouched = keeps_order and options.redraw_seed is None and options.size is None and not options.grey
    files: dict[str, FileCard] = {}
    for name, chosen in ((TRAIN_IMAGES, pool), (TEST_IMAGES, test), (TRAIN_LABELS, pool), (TEST_LABELS, test)):
        is_image = name in (TRAIN_IMAGES, TEST_IMAGES)
        shape = (len(chosen), *pixels.shape[1:])
        packed = not is_image or int(np.prod(shape)) < PLAIN_FROM_BYTES
        path = stored_path(name, packed)
        if untouched and packed and idx.is_packed(source.files[name]) and not _is_rewritten(source.files[name], shape):
            # Byte for byte, so that a published file stays the published file.
            shutil.copyfile(source.files[name], made / path)
            content_sha256 = idx.hash_content(made / path)
        else:
            blocks = _image_blocks(pixels, chosen) if is_image else iter([idx.labels_to_bytes(labels[chosen])])
            content_sha256, _ = idx.write_blocks(made / path, blocks, packed)
        files[path] = FileCard(
            sha256=hash_file(made / path), content_sha256=content_sha256, bytes=(made / path).stat().st_size
        )
    recipe = {
        "format": 1,
        "shape": list(pixels.shape[1:3]),
        "channels": 3 if pixels.ndim == 4 else 1,
        "size": options.size,
        "grey": options.grey,
        "transparent_on": "white",
        "fit": "middle of the picture",
        "resampling": "bicubic",
    }
    (made / "images" / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
    content = {name: files[path].content_sha256 for name in FILES for path in files if Path(path).stem == name}
    official = all(content.get(name) == OFFICIAL_CONTENT_SHA256[name] for name in FILES)
    redrawn = options.redraw_seed is not None
    name = options.name or (FASHION_MNIST if known else source.name)
    if redrawn:
        total = len(labels) if options.redraw_from == "all" else None
        name = _split_name(name, options, total)
    return DatasetCard(
        name=name,
        official=official,
        class_names=class_names,
        pool_size=len(pool),
        test_size=len(test),
        image_shape=(pixels.shape[1], pixels.shape[2]),
        channels=3 if pixels.ndim == 4 else 1,
        # A part drawn from a balanced set need not be balanced.
        balanced=(options.balanced or known or source.balanced) and is_balanced,
        redraw_seed=options.redraw_seed,
        redrawn_from=options.redraw_from if redrawn else None,
        source=described,
        files=files,
        made_from=made_from,
    )


def _recognise(source: Source, options: PrepareOptions) -> bool:
    """Return whether the source is Fashion-MNIST.

    Raises:
        DataRefused: only some of its files are, or none is and nothing says that other data are meant.
    """
    if not source.files:
        return False
    official = {name: is_official(name, idx.hash_content(path), path) for name, path in source.files.items()}
    unknown = ", ".join(name for name in FILES if not official[name])
    if unknown and not options.other_data and (options.source is None or any(official.values())):
        raise DataRefused(f"{unknown}: not the known Fashion-MNIST file(s); pass --other-data if this is meant.")
    return not unknown


def _read(
    source: Source, options: PrepareOptions, stack: ImageStack, notify: Notify
) -> tuple[idx.Labels, tuple[int, ...]]:
    """Read all images into a stack; return their labels, and the number of images of each part."""
    labels, counts = [], []
    for part in source.parts:
        before = stack.count
        for batch in part:
            images = batch.images
            if options.size is not None or (options.grey and images.ndim == 4):
                images = require("label_service.data.readers.pictures", "sources").render(
                    images, options.size, options.grey
                )
            stack.append(images, batch.name)
            labels.append(batch.labels)
            if stack.count > MAX_IMAGES:
                raise DataRefused(f"There are more than {MAX_IMAGES:,} images; give fewer.")
            if before < stack.count and stack.count // 50_000 > (stack.count - len(images)) // 50_000:
                notify(f"{stack.count:,} images read …")
        counts.append(stack.count - before)
        if stack.count == before:
            raise DataRefused("The training or test part of the source holds no image; check which data set this is.")
    return np.concatenate(labels), tuple(counts)


def _count_classes(source: Source, labels: idx.Labels) -> int:
    """Return the number of classes: the largest label plus one, or more if the source names more.

    Raises:
        DataRefused: there are fewer than two or too many.
    """
    if labels.min() < 0:
        raise DataRefused(f"A label is {labels.min()}; class numbers begin at 0.")
    classes = max(int(labels.max()) + 1, len(source.class_names or ()))
    if source.class_names is not None and classes > len(source.class_names):
        raise DataRefused(f"A label is {labels.max()}, and there are {len(source.class_names)} class names.")
    if not 2 <= classes <= MAX_CLASSES:
        raise DataRefused(
            f"The largest label makes {classes:,} class(es); from 2 to {MAX_CLASSES:,} can be used, numbered from 0."
        )
    return classes


def _check_names(names: tuple[str, ...]) -> None:
    if len(set(names)) < len(names) or not all(name and name.isprintable() for name in names):
        raise DataRefused("Two class names are the same, or one is empty or not printable; give others.")


def _check_classes(pool: idx.Labels, test: idx.Labels, names: tuple[str, ...]) -> None:
    """Check that each class has images to learn from.

    Raises:
        DataRefused: a class has no image in the pool.
    """
    present = np.zeros(len(names), dtype=bool)
    present[pool] = True
    if present.all():
        return
    missing = int(np.flatnonzero(~present)[0])
    where = "only test images" if missing in test else "no image"
    raise DataRefused(
        f"Class {missing} ({names[missing]}) has {where}: labels must be 0, 1, 2, … without a gap, each in the pool."
    )


def _is_nearly_balanced(labels: idx.Labels, classes: int) -> bool:
    shares = np.bincount(labels, minlength=classes) * classes / len(labels)
    return bool(np.abs(shares - 1).max() <= BALANCE_TOLERANCE)


def _order_by_pixels(pixels: idx.Bytes, labels: idx.Labels) -> Order:
    """Return the places of all images in the order of the SHA-256 of their pixels.

    Copies of one image come in an order that only somebody who knows all labels can compute.
    """
    key = hashlib.sha256(labels.tobytes()).digest()
    keys = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    ties = [hashlib.sha256(key + number.to_bytes(8, "big")).digest() for number in range(len(keys))]
    return np.array(sorted(range(len(keys)), key=lambda number: (keys[number], ties[number])), dtype=np.int64)


def _is_sorted_by_class(labels: idx.Labels) -> bool:
    """Return whether neighbours share a class far more often than chance makes them."""
    if len(labels) < 2:
        return False
    chance = float(np.square(np.bincount(labels) / len(labels)).sum())
    return float(np.mean(labels[1:] == labels[:-1])) > (1 + chance) / 2


def _divide(
    order: Order, labels: idx.Labels, counts: tuple[int, ...], options: PrepareOptions, notify: Notify
) -> tuple[Order, Order]:
    """Return the places of the pool's and of the test set's images."""
    share, seed = options.test_share, options.redraw_seed
    if len(counts) == 1 and share is None:
        raise DataRefused("The source has no test part; give --test-share, such as 0.2, to take one out of it.")
    if len(counts) == 2 and share is not None and seed is None:
        raise DataRefused("The source has a test part; leave --test-share out, or add --redraw SEED.")
    training, test = order[order < counts[0]], order[order >= counts[0]]
    if seed is None:
        return (training, test) if share is None else _take_share(training, labels, share)
    drawn = np.concatenate([training, test]) if options.redraw_from == "all" else training
    # Without a share as many as the source's test part has.
    size = len(test) if share is None else round(share * len(drawn))
    if not 0 < size < len(drawn):
        raise DataRefused(
            f"A test set of {size:,} cannot be drawn from {len(drawn):,} images; give another --test-share."
        )
    notify(f"Drawing split {seed} of {len(drawn):,} images: {size:,} for the test set, the rest for the pool …")
    pool_places, test_places = redraw(len(drawn), seed, size)
    return drawn[pool_places], drawn[test_places]


def _take_share(order: Order, labels: idx.Labels, share: float) -> tuple[Order, Order]:
    """Take the same share of each class for the test set, at least one image, in the given order.

    Raises:
        DataRefused: a class has no image left for the pool.
    """
    is_test = np.zeros(len(order), dtype=bool)
    own = labels[order]
    for label in np.unique(own):
        places = np.flatnonzero(own == label)
        taken = max(1, round(share * len(places)))
        if taken == len(places):
            raise DataRefused(f"Class {label} has {len(places)} image(s), too few to divide; add some.")
        is_test[places[:taken]] = True
    return order[~is_test], order[is_test]


def _image_blocks(pixels: idx.Bytes, chosen: Order) -> Iterator[bytes]:
    yield idx.images_header((len(chosen), *pixels.shape[1:]))
    for start in range(0, len(chosen), _BATCH):
        yield pixels[chosen[start : start + _BATCH]].tobytes()


def _is_rewritten(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether an image file of the source is stored with other axes (a fourth of one channel)."""
    with idx.open_content(path) as file:
        return file.read(4) == idx.COLOUR_IMAGES.to_bytes(4, "big") and len(shape) == 3


def _split_name(name: str, options: PrepareOptions, total: int | None) -> str:
    of_all = f" of all {total:,}" if total else ""
    return f"{name} re-drawn split {options.redraw_seed}{of_all}"


def _stamp(options: PrepareOptions) -> str:
    """Return a hash of the options and of names, sizes and times of the source's files."""
    given = str(options.source)
    root = Path(given.removeprefix(TORCHVISION).partition(":")[2] if given.startswith(TORCHVISION) else given)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256(repr({**vars(options), "source": None, "install": None, "other_data": None}).encode())
    for path in files:
        if path.exists():
            stat = path.stat()
            digest.update(f"{path.relative_to(root)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


@contextmanager
def _staging(data: Path) -> Iterator[Path]:
    """Make a hidden folder beside `data`, or in it if it is there, and remove it with all that is left in it.

    Raises:
        DataRefused: another `prepare` is at work there.
        OSError: it cannot be made.
    """
    target = data.resolve()
    place = target / ".preparing" if target.exists() else target.parent / f".{target.name}.preparing"
    place.mkdir(mode=LABELS_MODE, parents=True, exist_ok=True)
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataRefused(f"Another prepare is at work on {data}; wait until it has ended.") from error
        _empty(place)  # what a killed one left
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _publish(made: Path, data: Path, card: DatasetCard) -> None:
    """Move a made folder into its place, the card last."""
    text = card.to_json().encode()
    write_atomically(made / "labels" / CARD, text)
    write_atomically(made / CARD, text)
    if not data.exists():
        made.rename(data.resolve())
        return
    for part, mode in (("images", FOLDER_MODE), ("labels", LABELS_MODE)):
        (data / part).mkdir(exist_ok=True)
        (data / part).chmod(mode)
        for path in (made / part).iterdir():
            path.replace(data / part / path.name)
    (made / CARD).replace(data / CARD)


def _remove_flat_copies(data: Path, card: DatasetCard, notify: Notify) -> None:
    """Remove the files that were found in the folder itself, because labels must not lie beside images.

    Files that came from another folder are never touched.
    """
    for name in FILES:
        stored = card.path_of(name)
        assert stored is not None
        parts = (data / part / f"{name}{suffix}" for part in ("images", "labels") for suffix in ("", ".gz"))
        for path in (data / f"{name}.gz", data / name, *parts):
            if path.is_file() and path != data / stored:
                path.unlink()
                notify(f"Moved {path.relative_to(data)} to {stored}.")


def _refuse_another(data: Path, existing: DatasetCard, card: DatasetCard) -> None:
    """Refuse to prepare a data set over another one.

    Raises:
        DataRefused: the folder's card does not describe what was asked for.
    """
    silent = {"files", "source", "made_from"}
    same = existing.model_dump(exclude=silent) == card.model_dump(exclude=silent)
    if not same or existing.content_sha256 != card.content_sha256:
        raise DataRefused(
            f"{data} already holds {existing.name}, and another data set was asked for; choose another --data."
        )


def _verify(data: Path, card: DatasetCard, options: PrepareOptions, again: bool = False) -> DatasetCard:
    """Check a prepared folder against its card and the options.

    Args:
        data: the folder.
        card: its card.
        options: what was asked for.
        again: the source was read again and is the same, so the options need no check.

    Raises:
        DataRefused: a file is missing or changed, or the folder holds another data set than the options ask for.
    """
    if not again:
        _check_options(data, card, options)
    for name in FILES:
        listed = card.path_of(name)
        path = data / (listed or stored_path(name))
        if not path.is_file():
            raise DataRefused(f"{path} is missing although {data / CARD} lists it; remove {data} and prepare again.")
        if listed is None or hash_file(path) != card.files[listed].sha256:
            raise DataRefused(f"{path} is not the file that {data / CARD} lists; remove {data} and prepare again.")
    (data / "labels").chmod(LABELS_MODE)
    return card


def _check_options(data: Path, card: DatasetCard, options: PrepareOptions) -> None:
    # Older cards of re-drawn splits do not say what was drawn from: it was the training images.
    drawn_from = card.redrawn_from or "training"
    asked = (options.redraw_seed, options.redraw_from)
    if options.redraw_seed is not None and asked != (card.redraw_seed, drawn_from):
        original = card.name.partition(" re-drawn split ")[0]
        total = card.pool_size + card.test_size if options.redraw_from == "all" else None
        other = _split_name(original, options, total)
        raise DataRefused(f"{data} already holds {card.name}; choose another --data for {other}.")
    if options.redraw_seed is None and card.redraw_seed is not None:
        option = f"--redraw {card.redraw_seed}{' --redraw-from all' if drawn_from == 'all' else ''}"
        raise DataRefused(f"{data} already holds {card.name}; pass {option}, or choose another --data.")
    if options.source is None and (options.test_share is not None or options.shuffle):
        option = "--shuffle" if options.test_share is None else "--test-share"
        raise DataRefused(f"{data} already holds {card.name}, and {option} is for a source: name it with --from.")
    given: Mapping[str, tuple[object, object]] = {
        "--size": (options.size and (options.size, options.size), card.image_shape),
        "--grey": (options.grey and 1, card.channels),
        "--class-names": (options.class_names, card.class_names),
        "--name": (options.redraw_seed is None and options.name, card.name),
        "--balanced": (options.balanced, card.balanced),
    }
    for option, (wanted, found) in given.items():
        if wanted and wanted != found:
            raise DataRefused(f"{data} already holds {card.name}, made without this {option}; choose another --data.")
