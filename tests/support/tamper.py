"""Change a database as someone with write access to it can: remove the triggers, then run any statement."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine, make_url

from label_service.settings import Settings
from tests.support.postgres import PostgresServer

_SWAP = re.compile(r"swap\((\w+), ('\w+'), ('\w+')\)")
_SWAPPED = {
    "sqlite": r"CAST(replace(\1, \2, \3) AS BLOB)",
    "postgresql": r"convert_to(replace(convert_from(\1, 'UTF8'), \2, \3), 'UTF8')",
}


def tamper(url: str, *statements: str) -> None:
    """Run SQL statements that the triggers would refuse.

    Args:
        url: the database.
        statements: SQL for both databases; `swap(column, 'old', 'new')` replaces text in a column of bytes.
    """
    engine = create_engine(url)
    kind = engine.dialect.name
    try:
        with engine.begin() as connection:
            if kind == "postgresql":
                # A superuser can do this: no trigger fires, and no foreign key is checked.
                connection.exec_driver_sql("SET session_replication_role = replica")
            else:
                found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars()
                for name in found.all():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
            for statement in statements:
                connection.exec_driver_sql(_SWAP.sub(_SWAPPED[kind], statement).replace("%", "%%"))
    finally:
        engine.dispose()


def take_backup(settings: Settings, server: PostgresServer | None) -> Callable[[], None]:
    """Copy the database of a stopped service; return a function that puts the copy in its place."""
    database = make_url(settings.database_url).database
    assert database is not None
    if server is not None:
        copy = server.create_database(template=database)

        def put_back() -> None:
            server.drop_database(database)
            server.execute(f"ALTER DATABASE {copy} RENAME TO {database}")

        return put_back
    path = Path(database)
    kept = shutil.copy(path, path.with_name("backup"))

    def put_file_back() -> None:
        for leftover in path.parent.glob(f"{path.name}-*"):
            leftover.unlink()
        shutil.copy(kept, path)

    return put_file_back
