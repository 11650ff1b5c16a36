"""The database's history (Alembic): `migrate` brings a database up to date at every start."""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import DatabaseRefused
from label_service.store.backends import reason_of


def migrate(engine: Engine) -> None:
    """Bring the schema up to the newest revision, in one transaction.

    Raises:
        DatabaseRefused: the file is no database, cannot be written, or has a schema that this version does not know.
    """
    # Alembic needs no .ini file here, only the folder of the revisions. It reads % as the start of an interpolation.
    config = Config(stdout=sys.stderr)
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (SQLAlchemyError, CommandError) as error:
        raise DatabaseRefused(
            f"{engine.url.database} cannot be opened as a label database ({reason_of(error)}); check the path."
        ) from error
