"""Labels in bulk: what was written is read, and what is no table of labels is refused."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from label_service.errors import DatabaseRefused
from label_service.store import labels as store
from label_service.store import tables
from label_service.store.labels import read_labels, write_labels
from label_service.store.sqlite import open_writing_engine

LABELS = array("i", [number * 65_537 % 2_000_003 for number in range(25)])


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """The connection to a database of 25 labels, written ten at a time, without the triggers of the service."""
    monkeypatch.setattr(store, "_AT_ONCE", 10)
    engine = open_writing_engine(tmp_path / "labels.sqlite3", 0.0)
    with engine.begin() as opened:
        tables.pool_labels.create(opened)
        write_labels(opened, tables.pool_labels, LABELS)
        yield opened
    engine.dispose()


def test_labels_are_read_as_they_were_written(connection: Connection) -> None:
    """By id, whatever their number; an empty table has none."""
    assert read_labels(connection, tables.pool_labels, 25) == LABELS
    tables.test_labels.create(connection)
    write_labels(connection, tables.test_labels, array("i"))
    assert read_labels(connection, tables.test_labels, 0) == array("i")


@pytest.mark.parametrize("id_", [0, 9, 10, 24])
@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM pool_labels WHERE id = {id}",
        "UPDATE pool_labels SET id = 25 WHERE id = {id}",
        "UPDATE pool_labels SET id = -1 WHERE id = {id}",
        "UPDATE pool_labels SET id = 9000000000000000000 WHERE id = {id}",
        "INSERT INTO pool_labels VALUES (25 + {id}, 0)",
        "UPDATE pool_labels SET label = 'five' WHERE id = {id}",
        "UPDATE pool_labels SET label = x'35' WHERE id = {id}",
        "UPDATE pool_labels SET label = 5.5 WHERE id = {id}",
        "UPDATE pool_labels SET label = 2147483648 WHERE id = {id}",
        "DELETE FROM pool_labels",
    ],
)
def test_what_is_no_table_of_labels_is_refused(connection: Connection, change: str, id_: int) -> None:
    """Ids that lack or are too many, and values of another type, which SQLite keeps."""
    connection.execute(text(change.format(id=id_)))
    with pytest.raises(DatabaseRefused, match=r"The table pool_labels .* the database was changed"):
        read_labels(connection, tables.pool_labels, 25)
