"""Seeding: which label files are accepted, and that a database is filled once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import select

from label_service.data.dataset import TEST_LABELS, TRAIN_LABELS, stored_path
from label_service.data.seed import read_label_files
from label_service.errors import DatabaseRefused, DataMissing, DataRefused
from label_service.service import open_service
from label_service.settings import Settings
from label_service.store import tables
from tests.support.datasets import make_idx_dataset, read_pool_labels, read_test_labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared folder of 30 pool and 10 test images in 3 classes."""
    return make_idx_dataset(tmp_path / "data", pool=30, test=10)


def settings_for(tmp_path: Path, data: Path, **more: object) -> Settings:
    """Return settings with a database in the test's folder."""
    given = {"data": data, "database_url": f"sqlite:///{tmp_path / 'labels.sqlite3'}", "other_data": True}
    return Settings(**{**given, **more})


def test_database_holds_exactly_the_labels_of_the_files(tmp_path: Path, data: Path) -> None:
    """Every row of both files is there, in its place."""
    with open_service(settings_for(tmp_path, data)) as service, service.writer._engine.connect() as connection:
        for table, expected in (
            (tables.pool_labels, read_pool_labels(data)),
            (tables.test_labels, read_test_labels(data)),
        ):
            assert connection.execute(select(table.c.label).order_by(table.c.id)).scalars().all() == expected


def test_labels_folder_alone_is_enough(tmp_path: Path, data: Path) -> None:
    """The service's container has only labels/; the card there holds the rest, such as the images' fingerprint."""
    whole = read_label_files(data, True).info
    shutil.move(data / "labels", tmp_path / "alone")
    alone = read_label_files(tmp_path / "alone", True).info
    assert (alone.name, alone.class_names, alone.fingerprint) == (whole.name, whole.class_names, whole.fingerprint)
    assert whole.fingerprint is not None


def test_service_never_opens_an_image_file(tmp_path: Path, data: Path) -> None:
    """A folder whose images are gone or garbage seeds just as well."""
    for path in (data / "images").iterdir():
        path.write_bytes(b"garbage")
    with open_service(settings_for(tmp_path, data)) as service:
        assert service.dataset.pool_size == 30


def test_other_data_needs_the_flag(tmp_path: Path, data: Path) -> None:
    """Unknown label files are refused unless `prepare` has made them or the operator says that they are meant."""
    assert read_label_files(data, other_data=False).info.pool_size == 30
    for folder in (data, data / "labels"):
        (folder / "dataset.json").unlink()
    with pytest.raises(DataRefused, match="pass --other-data"):
        read_label_files(data, other_data=False)


def test_data_set_without_a_card_has_numbers_for_names(tmp_path: Path) -> None:
    """Bare label files work: classes are called by their numbers, and there is no fingerprint."""
    data = make_idx_dataset(tmp_path / "data", pool=30, test=10, classes=4)
    for card in (data / "dataset.json", data / "labels" / "dataset.json"):
        card.unlink()
    info = read_label_files(data, True).info
    assert (info.name, info.class_names, info.fingerprint) == ("data", ("0", "1", "2", "3"), None)


def test_missing_changed_and_swapped_files_are_refused(tmp_path: Path, data: Path) -> None:
    """A missing folder, an empty one, a file that the card does not list, and a damaged card."""
    with pytest.raises(DataMissing, match="run `python -m label_service prepare"):
        read_label_files(tmp_path / "nowhere", True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissing):
        read_label_files(tmp_path / "empty", True)
    shutil.copy(data / stored_path(TEST_LABELS), data / stored_path(TRAIN_LABELS))
    with pytest.raises(DataRefused, match=r"is not the file that dataset\.json beside it lists"):
        read_label_files(data, True)
    (data / "labels" / "dataset.json").write_text("{}")
    with pytest.raises(DataRefused, match="is no data set card"):
        read_label_files(data, True)


def test_seeded_database_needs_its_files_no_more(tmp_path: Path, data: Path) -> None:
    """After the first start the label files may be taken away."""
    with open_service(settings_for(tmp_path, data)) as service:
        first = service.dataset
    shutil.rmtree(data)
    with open_service(settings_for(tmp_path, data)) as service:
        assert service.dataset == first


def test_database_of_another_data_set_is_refused(tmp_path: Path) -> None:
    """One database, one data set: a folder with other labels is refused, and so is a damaged one."""
    first = make_idx_dataset(tmp_path / "first", pool=30, test=10)
    second = make_idx_dataset(tmp_path / "second", pool=30, test=10, seed=1)
    with open_service(settings_for(tmp_path, first)):
        pass
    with (
        pytest.raises(DatabaseRefused, match="give each data set its own database"),
        open_service(settings_for(tmp_path, second)),
    ):
        pass
    (first / stored_path(TRAIN_LABELS)).write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataRefused, match="cut short or damaged"), open_service(settings_for(tmp_path, first)):
        pass


def test_failed_seeding_leaves_an_empty_database(tmp_path: Path, data: Path) -> None:
    """A first start without data can be repeated with data."""
    with pytest.raises(DataMissing), open_service(settings_for(tmp_path, tmp_path / "nowhere")):
        pass
    with open_service(settings_for(tmp_path, data)) as service:
        assert service.dataset.pool_size == 30
