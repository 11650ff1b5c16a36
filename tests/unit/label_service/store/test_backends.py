"""Which database a URL names, what is refused, and where the service's own files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import DatabaseRefused
from label_service.settings import Settings
from label_service.store.backends import find_database, heads_path, key_path
from tests.support.datasets import make_idx_dataset

POSTGRES = "postgresql+psycopg://labels:secret@127.0.0.1:1/labels"


def places(**given: Any) -> tuple[Path, Path]:
    """Return where key and heads of a log lie under some settings."""
    settings = Settings(**given)
    database = find_database(settings)
    return key_path(settings, database, "log-1"), heads_path(settings, database, "log-1")


def test_key_and_heads_lie_beside_the_file_or_in_the_data_folder(tmp_path: Path) -> None:
    """SQLite: the file's folder; PostgreSQL: `service` in the data folder; the heads in its sibling; settings win."""
    sqlite = {"database_url": f"sqlite:///{tmp_path}/db/labels.sqlite3"}
    assert places(**sqlite) == (tmp_path / "db/labels.key", tmp_path / "db-heads/log-1.heads")
    shared = {"database_url": POSTGRES, "data": tmp_path / "data"}
    assert places(**shared) == (tmp_path / "data/service/log-1.key", tmp_path / "data/service-heads/log-1.heads")
    moved = {**shared, "key_folder": tmp_path / "k"}
    assert places(**moved) == (tmp_path / "k/log-1.key", tmp_path / "k-heads/log-1.heads")
    assert places(**moved, heads_folder=tmp_path / "h") == (tmp_path / "k/log-1.key", tmp_path / "h/log-1.heads")


@pytest.mark.parametrize("url", ["postgresql://u@h/d", "postgresql+psycopg2://u@h/d", "postgresql+psycopg://u@h/d"])
def test_any_postgresql_url_is_opened_with_psycopg_3(url: str) -> None:
    """One driver is tested; the URL need not name it."""
    assert find_database(Settings(database_url=url)).name == "postgresql+psycopg://u@h/d"


@pytest.mark.parametrize("url", ["nonsense", "", "mysql://user:secret@host/db", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    """One sentence that shows how a URL is written."""
    with pytest.raises(DatabaseRefused, match=r"sqlite:///data/labels\.sqlite3") as refused:
        find_database(Settings.model_construct(**{**Settings().model_dump(), "database_url": url}))
    assert "secret" not in str(refused.value)


def test_sqlite_takes_one_worker(tmp_path: Path) -> None:
    """Two are refused in one sentence before anything is made."""
    data = make_idx_dataset(tmp_path / "data", pool=6, test=3)
    url = f"sqlite:///{tmp_path}/db/labels.sqlite3"
    command = ["serve", "--data", str(data), "--other-data", "--database-url", url, "--port", "0", "--workers", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert done.output == (
        "Error: An SQLite file takes one worker and 2 were asked for; choose --workers 1, or a PostgreSQL database.\n"
    )
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("command", ["serve", "export"])
def test_server_that_is_away_is_one_sentence(tmp_path: Path, command: str) -> None:
    """Nothing listens there: the sentence says so, and has no password."""
    data = make_idx_dataset(tmp_path / "data", pool=6, test=3)
    given = ["--data", str(data), "--other-data", "--port", "0"] if command == "serve" else []
    done = CliRunner().invoke(app, [command, "--database-url", POSTGRES, *given])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ") and done.output.count("\n") == 1
    assert "secret" not in done.output and "127.0.0.1" in done.output
