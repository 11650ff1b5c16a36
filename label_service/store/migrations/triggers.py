"""Triggers that refuse a statement, in the words of SQLite and of PostgreSQL.

Revisions call this module, so what it makes for a call must stay the same once a revision is released. Conditions are
boolean expressions over NEW and OLD that both databases read; `IS DISTINCT FROM` is the one that is translated. Names
come from the revisions, never from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alembic import op

# PostgreSQL's class 23 is what drivers raise as an integrity error, as they do for SQLite's RAISE(ABORT).
_ERRCODE = "integrity_constraint_violation"


def refuse(name: str, action: str, table: str, reason: str, condition: str = "1 = 1") -> None:
    """Refuse each row of an INSERT, UPDATE or DELETE for which the condition holds.

    Args:
        name: of the trigger (and, on PostgreSQL, of its function).
        action: INSERT, UPDATE or DELETE.
        table: it acts on.
        reason: the error's text.
        condition: SQL over NEW and OLD; may hold subqueries.
    """
    told = reason.replace("'", "''")
    if _on_postgresql():
        # A function, because a WHEN of PostgreSQL takes no subquery. Returning the row lets the statement go on.
        row = "OLD" if action == "DELETE" else "NEW"
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {condition} THEN RAISE EXCEPTION '{told}' USING ERRCODE = '{_ERRCODE}'; END IF;"
            f" RETURN {row}; END $$"
        )
        op.execute(f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
    else:
        # SQLite before 3.39 knows the comparison only as IS NOT.
        condition = condition.replace("IS DISTINCT FROM", "IS NOT")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {action} ON {table} WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{told}'); END"
        )


def refuse_truncate(table: str, reason: str) -> None:
    """Refuse TRUNCATE, which passes by the triggers of rows. SQLite has no such statement."""
    if not _on_postgresql():
        return
    told, name = reason.replace("'", "''"), f"{table}_no_truncate"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION '{told}' USING ERRCODE = '{_ERRCODE}'; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}()")


def write_once(tables: Sequence[str]) -> None:
    """Refuse to change or remove rows of these tables."""
    for table in tables:
        reason = f"rows of {table} are written once"
        for action in ("UPDATE", "DELETE"):
            refuse(f"{table}_no_{action.lower()}", action, table, reason)
        refuse_truncate(table, reason)


def no_replace(keys: Mapping[str, Sequence[str]]) -> None:
    """Refuse SQLite's INSERT OR REPLACE, which removes a row without a delete trigger noticing.

    PostgreSQL has no such statement: its ON CONFLICT DO UPDATE is an update to the triggers too.

    Args:
        keys: the primary key of each table.
    """
    if _on_postgresql():
        return
    for table, key in keys.items():
        same = " AND ".join(f"{column} = NEW.{column}" for column in key)
        refuse(
            f"{table}_no_replace",
            "INSERT",
            table,
            f"rows of {table} are written once",
            f"EXISTS (SELECT 1 FROM {table} WHERE {same})",  # noqa: S608 - names from the revisions
        )


def _on_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
