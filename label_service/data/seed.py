"""Seeding: the labels of the label files become rows of the database, once.

This is the only module of the running service that opens a label file. Fashion-MNIST is recognised by its SHA-256 and
data that `prepare` has made by the card in its folder. Any other data needs the operator's option `--other-data`.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Mapping
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
    TEST_LABELS,
    TRAIN_LABELS,
    DatasetCard,
    check_class_names,
    find_flat_file,
    images_fingerprint,
    is_official,
    read_card,
    sha256,
)
from label_service.errors import DatabaseRefused, DataMissing, DataRefused
from label_service.log.entries import now
from label_service.store import tables
from label_service.store.labels import TYPE, write_labels

LOG_ID_BYTES = 8


class DatasetInfo(BaseModel, frozen=True):
    """The data set the service holds the labels of."""

    name: str
    official: bool = Field(description="The four files are the published Fashion-MNIST files.")
    redraw_seed: int | None
    pool_size: int = Field(description="Labels that can be asked for: ids 0 to pool_size - 1.")
    test_size: int = Field(description="Predictions an evaluation needs.")
    class_names: tuple[str, ...]
    balanced: bool = Field(
        False, description="The operator declares that all classes are equally frequent; nothing is counted."
    )
    fingerprint: str | None = Field(
        description="SHA-256 of `A\\nB\\n`, A and B the SHA-256 (hex) of the unpacked training and test image files; "
        "null if the service does not know them."
    )
    # The id of the log that began with this seeding. It is left out of answers about the data set.
    log_id: str = Field(exclude=True)


@dataclass(frozen=True)
class LabelFiles:
    """The content of checked label files.

    Attributes:
        info: the data set.
        pool: labels of the pool (N,).
        test: labels of the test set (N,).
        labels_sha256: of both files, unpacked.
    """

    info: DatasetInfo
    pool: idx.Labels
    test: idx.Labels
    labels_sha256: str


def read_label_files(data: Path, other_data: bool) -> LabelFiles:
    """Read and check the label files of a prepared folder, or of its labels folder alone.

    Args:
        data: the folder.
        other_data: accept files that are neither Fashion-MNIST's nor made by `prepare`.

    Raises:
        DataMissing: there are no label files.
        DataRefused: a file is damaged, swapped, changed since `prepare`, or unknown.
    """
    paths = _find_label_files(data)
    folder = paths[TRAIN_LABELS].parent
    card = read_card(folder / CARD) or read_card(folder.parent / CARD)
    contents, official = {}, True
    for name, path in paths.items():
        contents[name] = idx.read_content(path)
        official &= is_official(name, sha256(contents[name]), path)
        if card is not None and card.content_sha256.get(name) != sha256(contents[name]):
            raise DataRefused(f"{path} is not the file that {CARD} beside it lists; prepare the folder again.")
    pool, test = (idx.parse_labels(contents[name], name) for name in paths)
    if not len(pool) or not len(test):
        raise DataRefused(f"The label files in {folder} hold no label; check which data set this is.")
    if not official and not other_data and card is None:
        raise DataRefused(
            f"The label files in {folder} are not the known Fashion-MNIST files; pass --other-data if this is meant."
        )
    info = _describe(folder, card, official, pool, test)
    return LabelFiles(info, pool, test, sha256(contents[TRAIN_LABELS] + contents[TEST_LABELS]))


def _find_label_files(data: Path) -> dict[str, Path]:
    """Return the paths of both label files, in the folder's part for labels or in the folder itself."""
    for folder in (data / "labels", data):
        train, test = (find_flat_file(folder, name) for name in (TRAIN_LABELS, TEST_LABELS))
        if train is not None and test is not None:
            return {TRAIN_LABELS: train, TEST_LABELS: test}
    raise DataMissing(
        f"{data} has no label files ({TRAIN_LABELS}.gz and {TEST_LABELS}.gz); "
        f"run `python -m label_service prepare --data {data}` first."
    )


def _describe(
    folder: Path, card: DatasetCard | None, official: bool, pool: idx.Labels, test: idx.Labels
) -> DatasetInfo:
    classes = 1 + int(max(pool.max(), test.max()))
    content_sha256: Mapping[str, str] = {}
    if official:
        name, class_names, content_sha256 = FASHION_MNIST, FASHION_MNIST_CLASSES, OFFICIAL_CONTENT_SHA256
    elif card is not None:
        name, class_names = card.name, check_class_names(card.class_names, max(classes, len(card.class_names)))
        content_sha256 = card.content_sha256
    else:
        # Data that is not prepared is named after its folder.
        name = folder.resolve().parent.name if folder.name == "labels" else folder.resolve().name
        class_names = check_class_names(None, classes)
    return DatasetInfo(
        name=name,
        official=official,
        redraw_seed=card.redraw_seed if card and not official else None,
        pool_size=len(pool),
        test_size=len(test),
        class_names=class_names,
        balanced=official or (card is not None and card.balanced),
        fingerprint=images_fingerprint(content_sha256),
        log_id=new_log_id(),
    )


def new_log_id() -> str:
    """Return a fresh id for a log."""
    return f"log-{secrets.token_hex(LOG_ID_BYTES)}"


def load_info(connection: Connection) -> DatasetInfo | None:
    """Return the data set that the database was seeded with, or None if it is empty."""
    row = connection.execute(select(tables.dataset)).one_or_none()
    if row is None:
        return None
    return DatasetInfo(**{**row._mapping, "class_names": json.loads(row.class_names)})


def seed(connection: Connection, files: LabelFiles) -> DatasetInfo:
    """Write the labels into an empty database. If it holds these labels already, change nothing.

    Raises:
        DatabaseRefused: the database holds other labels.
    """
    existing = load_info(connection)
    if existing is not None:
        stored = connection.execute(select(tables.dataset.c.labels_sha256)).scalar_one()
        if stored != files.labels_sha256:
            raise DatabaseRefused(
                f"The database holds the labels of {existing.name}, and the data folder those of {files.info.name}; "
                "give each data set its own database."
            )
        return existing
    for table, labels in ((tables.pool_labels, files.pool), (tables.test_labels, files.test)):
        write_labels(connection, table, array(TYPE, labels.astype(TYPE).tobytes()))
    info = files.info
    # Last: once this row exists, the triggers refuse further labels.
    connection.execute(
        insert(tables.dataset).values(
            {
                **dict(info),
                "singleton": 1,
                "official": int(info.official),
                "balanced": int(info.balanced),
                "class_names": json.dumps(info.class_names),
                "labels_sha256": files.labels_sha256,
                "seeded_at": now(),
            }
        )
    )
    return info
