"""Seeding: label files in, rows out, once. The only module of the running service that opens a label file.

Known Fashion-MNIST files are recognised by their SHA-256. Files that `prepare --redraw` made are accepted because the
folder's card lists them; anything else needs the operator's word (`--other-data`).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field
from sqlalchemy import Connection, insert, select

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FASHION_MNIST,
    FASHION_MNIST_CLASSES,
    OFFICIAL_CONTENT_SHA256,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DatasetCard,
    check_class_names,
    check_place,
    count_classes,
    find_file,
    images_fingerprint,
    read_card,
    sha256,
)
from label_service.errors import DatabaseRefused, DataMissing, DataRefused
from label_service.log.entries import now
from label_service.store import tables

LOG_ID_BYTES = 8


class DatasetInfo(BaseModel, frozen=True):
    """The data set the service holds the labels of."""

    name: str
    official: bool = Field(description="The four files are the published Fashion-MNIST files.")
    redraw_seed: int | None
    pool_size: int = Field(description="Labels that can be asked for: ids 0 to pool_size - 1.")
    test_size: int = Field(description="Predictions an evaluation needs.")
    class_names: tuple[str, ...]
    fingerprint: str | None = Field(
        description="SHA-256 of `A\\nB\\n`, A and B the SHA-256 (hex) of the unpacked training and test image files; "
        "null if the service does not know them."
    )
    # Of the log that began with this seeding. Answers about the log have it, those about the data set do not.
    log_id: str = Field(exclude=True)


@dataclass(frozen=True)
class LabelFiles:
    """Checked label files: what they are, their labels (uint8), and the hash that tells them from others."""

    info: DatasetInfo
    pool: idx.Bytes
    test: idx.Bytes
    labels_sha256: str


def labels_folder(data: Path) -> Path:
    """Return the folder with the label files: `data` itself, or the labels folder inside it.

    Raises:
        DataMissing: neither has both label files.
    """
    for folder in (data / "labels", data):
        if all(_find(folder, name) for name in (TRAIN_LABELS, TEST_LABELS)):
            return folder
    raise DataMissing(
        f"{data} has no label files ({TRAIN_LABELS}.gz and {TEST_LABELS}.gz); "
        f"run `python -m label_service prepare --data {data}` first."
    )


def read_label_files(data: Path, other_data: bool) -> LabelFiles:
    """Read and check the label files of a prepared folder (or of its labels folder alone).

    Args:
        data: the folder.
        other_data: accept files that are neither Fashion-MNIST's nor a re-drawn split of it.

    Raises:
        DataRefused: a file is missing, damaged, swapped, changed since `prepare`, or unknown.
    """
    folder = labels_folder(data)
    card = read_card(folder / CARD) or read_card(folder.parent / CARD)
    contents, official = {}, True
    for name in (TRAIN_LABELS, TEST_LABELS):
        path = _find(folder, name)
        assert path is not None, "labels_folder found both"
        contents[name] = idx.read_content(path)
        official &= check_place(name, contents[name], path)
        if card is not None and card.content_sha256(name) != sha256(contents[name]):
            raise DataRefused(f"{path} is not the file that {CARD} beside it lists; prepare the folder again.")
    pool, test = (idx.parse_labels(contents[name], name) for name in (TRAIN_LABELS, TEST_LABELS))
    if not len(pool) or not len(test):
        raise DataRefused(f"The label files in {folder} hold no label; check which data set this is.")
    if not official and not other_data and (card is None or card.redraw_seed is None):
        raise DataRefused(
            f"The label files in {folder} are not the known Fashion-MNIST files; pass --other-data if this is meant."
        )
    info = _describe(folder, card, official, pool, test)
    return LabelFiles(info, pool, test, sha256(contents[TRAIN_LABELS] + contents[TEST_LABELS]))


def _describe(folder: Path, card: DatasetCard | None, official: bool, pool: idx.Bytes, test: idx.Bytes) -> DatasetInfo:
    classes = count_classes((pool, test))
    if official:
        name, class_names = FASHION_MNIST, FASHION_MNIST_CLASSES
        images = (OFFICIAL_CONTENT_SHA256[TRAIN_IMAGES], OFFICIAL_CONTENT_SHA256[TEST_IMAGES])
        fingerprint: str | None = images_fingerprint(*images)
    elif card is not None:
        name, class_names = card.name, check_class_names(card.class_names, max(classes, len(card.class_names)))
        train, other = card.content_sha256(TRAIN_IMAGES), card.content_sha256(TEST_IMAGES)
        fingerprint = images_fingerprint(train, other) if train and other else None
    else:
        # The labels folder of an unprepared data set: its parent is what the operator would call it by.
        name = folder.resolve().parent.name if folder.name == "labels" else folder.resolve().name
        class_names, fingerprint = check_class_names(None, classes), None
    return DatasetInfo(
        name=name,
        official=official,
        redraw_seed=card.redraw_seed if card and not official else None,
        pool_size=len(pool),
        test_size=len(test),
        class_names=tuple(class_names),
        fingerprint=fingerprint,
        log_id=f"log-{secrets.token_hex(LOG_ID_BYTES)}",
    )


def load_info(connection: Connection) -> DatasetInfo | None:
    """Return what the database was seeded with, or None if it is empty."""
    row = connection.execute(select(tables.dataset)).one_or_none()
    if row is None:
        return None
    return DatasetInfo(
        name=row.name,
        official=bool(row.official),
        redraw_seed=row.redraw_seed,
        pool_size=row.pool_size,
        test_size=row.test_size,
        class_names=tuple(json.loads(row.class_names)),
        fingerprint=row.fingerprint,
        log_id=row.log_id,
    )


def seed(connection: Connection, files: LabelFiles) -> DatasetInfo:
    """Write the labels into an empty database, or find that it holds exactly these.

    Raises:
        DatabaseRefused: the database holds other labels.
    """
    existing = load_info(connection)
    if existing is not None:
        held = connection.execute(select(tables.dataset.c.labels_sha256)).scalar_one()
        if held != files.labels_sha256:
            raise DatabaseRefused(
                f"The database holds the labels of {existing.name}, and the data folder those of {files.info.name}; "
                "give each data set its own database."
            )
        return existing
    for table, labels in ((tables.pool_labels, files.pool), (tables.test_labels, files.test)):
        connection.execute(insert(table), [{"id": row, "label": int(label)} for row, label in enumerate(labels)])
    info = files.info
    # Last, because the triggers close the label tables once this row is there.
    connection.execute(
        insert(tables.dataset).values(
            singleton=1,
            name=info.name,
            official=int(info.official),
            redraw_seed=info.redraw_seed,
            pool_size=info.pool_size,
            test_size=info.test_size,
            class_names=json.dumps(list(info.class_names)),
            fingerprint=info.fingerprint,
            labels_sha256=files.labels_sha256,
            log_id=info.log_id,
            seeded_at=now(),
        )
    )
    return info


def _find(folder: Path, name: str) -> Path | None:
    """Find a label file in exactly this folder (`find_file` also looks into its parts)."""
    path = find_file(folder, name)
    return path if path is not None and path.parent == folder else None
