"""The schema: the tables of `tables.py`, and the triggers that keep the log append-only.

Until the first release this revision follows `tables.py`. The first release freezes both: from then on a change of a
table is a revision of its own, and this one lists its columns itself.

Revision: 0001_schema, after nothing.
"""

from alembic import op

from label_service.store import tables
from label_service.store.migrations.triggers import no_replace, refuse, refuse_truncate, write_once

revision = "0001_schema"
down_revision = None
branch_labels = None
depends_on = None

# The only tables whose rows may change; the triggers below say how a run may.
MUTABLE = (tables.runs, tables.heartbeat)
# No trigger against INSERT OR REPLACE here: the insert triggers below stop it, and the heartbeat may be replaced.
NO_REPLACE_ELSEWHERE = (tables.entries, tables.pool_labels, tables.test_labels, tables.heartbeat)


def upgrade() -> None:
    """Create every table and trigger, and the one row of the heartbeat."""
    tables.metadata.create_all(op.get_bind())
    # Through the types: an empty byte string is written differently in each database.
    op.bulk_insert(tables.heartbeat, [{"singleton": 1, "beat_at": "", "filler": b""}])
    for table in tables.metadata.sorted_tables:
        if table not in MUTABLE:
            write_once(table.name)
        if table not in NO_REPLACE_ELSEWHERE:
            no_replace(table.name, table.primary_key.columns.keys())
    # Sequence numbers have no gap and never come twice; this also stops INSERT OR REPLACE.
    refuse(
        "entries_in_sequence",
        "INSERT",
        "entries",
        "seq must be the next number",
        "NEW.seq <> (SELECT coalesce(max(seq), -1) + 1 FROM entries)",
    )
    # Seeding writes the dataset row last; from then on no label can be added or replaced.
    for name in ("pool_labels", "test_labels"):
        refuse(f"{name}_sealed", "INSERT", name, f"{name} is complete", "EXISTS (SELECT 1 FROM dataset)")
    refuse("runs_no_delete", "DELETE", "runs", "runs are never removed")
    refuse_truncate("runs", "runs are never removed")
    # A run's identity is fixed, its count only grows and stays within the budget, and its seal is not broken.
    # Only the guest's budget may change: it is a setting of the operator, and each change is a log entry.
    refuse(
        "runs_only_forward",
        "UPDATE",
        "runs",
        "a run's terms are fixed and its count only grows",
        "NEW.run_id <> OLD.run_id OR NEW.name <> OLD.name OR NEW.token_sha256 IS DISTINCT FROM OLD.token_sha256"
        " OR NEW.evaluation_budgets <> OLD.evaluation_budgets OR NEW.evaluations_allowed <> OLD.evaluations_allowed"
        " OR NEW.opened_with IS DISTINCT FROM OLD.opened_with"
        " OR NEW.opened_at <> OLD.opened_at OR NEW.spent < OLD.spent"
        " OR (NEW.spent > OLD.spent AND NEW.spent > NEW.budget)"
        " OR (NEW.budget <> OLD.budget AND OLD.run_id <> 'guest')"
        " OR (OLD.sealed_at IS NOT NULL AND NEW.sealed_at IS DISTINCT FROM OLD.sealed_at)",
    )


def downgrade() -> None:
    """Refuse: going back would delete the log."""
    raise NotImplementedError("The schema cannot be undone; remove the database to start over.")
