"""Triggers that refuse a statement, written for SQLite and for PostgreSQL.

Revisions call this module, so once a revision is released, its calls must go on making the same triggers. Conditions
are boolean expressions over NEW and OLD that both databases read; only `IS DISTINCT FROM` is translated. Names come
from the revisions, never from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    message = reason.replace("'", "''")
    if _on_postgresql():
        # A function, because WHEN takes no subquery on PostgreSQL. Returning the row lets the statement go on.
        row = "OLD" if action == "DELETE" else "NEW"
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {condition} THEN RAISE EXCEPTION '{message}' USING ERRCODE = '{_ERRCODE}'; END IF;"
            f" RETURN {row}; END $$"
        )
        op.execute(f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
    else:
        # SQLite before 3.39 knows the comparison only as IS NOT.
        condition = condition.replace("IS DISTINCT FROM", "IS NOT")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {action} ON {table} WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def refuse_truncate(table: str, reason: str) -> None:
    """Refuse TRUNCATE, which row triggers do not see. SQLite has no such statement."""
    if not _on_postgresql():
        return
    message, name = reason.replace("'", "''"), f"{table}_no_truncate"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION '{message}' USING ERRCODE = '{_ERRCODE}'; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}()")


def write_once(table: str) -> None:
    """Refuse to change or remove rows of a table."""
    reason = f"rows of {table} are written once"
    for action in ("UPDATE", "DELETE"):
        refuse(f"{table}_no_{action.lower()}", action, table, reason)
    refuse_truncate(table, reason)


def no_replace(table: str, key: Sequence[str]) -> None:
    """Refuse SQLite's INSERT OR REPLACE, which removes the row with the same primary key without a delete trigger.

    PostgreSQL has no such statement: its ON CONFLICT DO UPDATE is an update to the triggers too.
    """
    if _on_postgresql():
        return
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
