"""Labels in bulk: the database packs and unpacks them as JSON, which takes a tenth of the time of row after row.

JSON also tells the types apart: SQLite keeps a value of any type in any column.
"""

from __future__ import annotations

import json
from array import array

from sqlalchemy import Connection, Table, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import DatabaseRefused

# A few hundred kilobytes of JSON, and some megabytes of Python objects.
_AT_ONCE = 50_000
# Of an array of labels: four bytes each.
TYPE = "i"
_UNPACK = {
    "sqlite": "SELECT key + :start, value FROM json_each(:labels)",
    "postgresql": "SELECT place - 1 + :start, label::integer"
    " FROM json_array_elements_text(CAST(:labels AS json)) WITH ORDINALITY AS packed(label, place)",
}
_PACK = {"sqlite": "json_group_array", "postgresql": "json_agg"}


def write_labels(connection: Connection, table: Table, labels: array[int]) -> None:
    """Write labels into an empty table; ids are their places, from 0 up."""
    unpack = text(f"INSERT INTO {table.name} (id, label) {_UNPACK[connection.dialect.name]}")
    for start in range(0, len(labels), _AT_ONCE):
        packed = json.dumps(labels[start : start + _AT_ONCE].tolist())
        connection.execute(unpack, {"start": start, "labels": packed})


def read_labels(connection: Connection, table: Table, count: int) -> array[int]:
    """Return the labels of a table, by id.

    Args:
        connection: inside a transaction.
        table: with the columns `id` and `label`.
        count: how many there must be, with the ids from 0 up.

    Raises:
        DatabaseRefused: there are others, or what is there are no labels.
    """
    pack = getattr(func, _PACK[connection.dialect.name])
    labels = array(TYPE)
    bounds = select(func.min(table.c.id), func.max(table.c.id))
    try:
        # First, so that a foreign id does not make the reading long.
        if tuple(connection.execute(bounds).one()) == ((0, count - 1) if count else (None, None)):
            for start in range(0, count, _AT_ONCE):
                part = select(table.c.label).where(table.c.id >= start, table.c.id < start + _AT_ONCE)
                packed = connection.execute(select(pack(part.order_by(table.c.id).subquery().c.label))).scalar_one()
                labels.extend(json.loads(packed) if isinstance(packed, str | bytes) else packed)
            if len(labels) == count:
                return labels
    except (TypeError, ValueError, OverflowError, SQLAlchemyError) as error:
        raise DatabaseRefused(f"The table {table.name} cannot be read as labels: the database was changed.") from error
    raise DatabaseRefused(f"The table {table.name} does not hold {count} labels: the database was changed.")
