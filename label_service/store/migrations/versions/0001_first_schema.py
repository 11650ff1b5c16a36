"""First schema: labels, runs, the append-only log, and the triggers that keep it so.

Revision: 0001, after nothing.
"""

import sqlalchemy as sa
from alembic import op

from label_service.store.migrations.triggers import no_replace, refuse, refuse_truncate, write_once

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Tables whose rows are never changed or removed.
WRITE_ONCE = (
    "dataset",
    "pool_labels",
    "test_labels",
    "entries",
    "entry_ids",
    "reveals",
    "evaluations",
    "idempotency_keys",
)
# Primary keys of the tables in which `INSERT OR REPLACE` would remove a row without a delete trigger noticing.
KEYS = {
    "dataset": ("singleton",),
    "runs": ("run_id",),
    "entry_ids": ("label_id", "seq"),
    "reveals": ("run_id", "label_id"),
    "evaluations": ("run_id", "number"),
    "idempotency_keys": ("run_id", "key"),
}


def upgrade() -> None:
    """Create every table and trigger."""
    op.create_table(
        "dataset",
        sa.Column("singleton", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("official", sa.Integer(), nullable=False),
        sa.Column("redraw_seed", sa.Integer()),
        sa.Column("pool_size", sa.Integer(), nullable=False),
        sa.Column("test_size", sa.Integer(), nullable=False),
        sa.Column("class_names", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("labels_sha256", sa.Text(), nullable=False),
        sa.Column("log_id", sa.Text(), nullable=False),
        sa.Column("seeded_at", sa.Text(), nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_dataset_one_row")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_dataset")),
    )
    for table in ("pool_labels", "test_labels"):
        op.create_table(
            table,
            sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
            sa.Column("label", sa.Integer(), nullable=False),
            sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.Text()),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("evaluation_budgets", sa.Text(), nullable=False),
        sa.Column("evaluations_allowed", sa.Integer(), nullable=False),
        sa.Column("spent", sa.Integer(), server_default="0", nullable=False),
        sa.Column("opened_at", sa.Text(), nullable=False),
        sa.Column("sealed_at", sa.Text()),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_runs")),
    )
    op.create_table(
        "entries",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("charged", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_entries_run_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_entries")),
    )
    op.create_index(op.f("ix_entries_run_id"), "entries", ["run_id"])
    op.create_table(
        "entry_ids",
        sa.Column("label_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["seq"], ["entries.seq"], name=op.f("fk_entry_ids_seq")),
        sa.PrimaryKeyConstraint("label_id", "seq", name=op.f("pk_entry_ids")),
    )
    op.create_table(
        "reveals",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("label_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_reveals_run_id")),
        sa.ForeignKeyConstraint(["label_id"], ["pool_labels.id"], name=op.f("fk_reveals_label_id")),
        sa.ForeignKeyConstraint(["seq"], ["entries.seq"], name=op.f("fk_reveals_seq")),
        sa.PrimaryKeyConstraint("run_id", "label_id", name=op.f("pk_reveals")),
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("budget", sa.Integer()),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_evaluations_run_id")),
        sa.ForeignKeyConstraint(["seq"], ["entries.seq"], name=op.f("fk_evaluations_seq")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_idempotency_keys_run_id")),
        sa.ForeignKeyConstraint(["seq"], ["entries.seq"], name=op.f("fk_idempotency_keys_seq")),
        sa.PrimaryKeyConstraint("run_id", "key", name=op.f("pk_idempotency_keys")),
    )
    heartbeat = op.create_table(
        "heartbeat",
        sa.Column("singleton", sa.Integer(), nullable=False),
        sa.Column("beat_at", sa.Text(), nullable=False),
        sa.Column("filler", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_heartbeat_one_row")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_heartbeat")),
    )
    # Through the types: an empty byte string is written differently in each database.
    op.bulk_insert(heartbeat, [{"singleton": 1, "beat_at": "", "filler": b""}])
    _create_triggers()


def _create_triggers() -> None:
    write_once(WRITE_ONCE)
    no_replace(KEYS)
    # Sequence numbers have no gap and never come twice; this also stops INSERT OR REPLACE.
    refuse(
        "entries_in_sequence",
        "INSERT",
        "entries",
        "seq must be the next number",
        "NEW.seq <> (SELECT coalesce(max(seq), -1) + 1 FROM entries)",
    )
    # The dataset row is written last when seeding; from then on no label can be added or replaced.
    for table in ("pool_labels", "test_labels"):
        refuse(f"{table}_sealed", "INSERT", table, f"{table} is complete", "EXISTS (SELECT 1 FROM dataset)")
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
        " OR NEW.opened_at <> OLD.opened_at OR NEW.spent < OLD.spent"
        " OR (NEW.spent > OLD.spent AND NEW.spent > NEW.budget)"
        " OR (NEW.budget <> OLD.budget AND OLD.run_id <> 'guest')"
        " OR (OLD.sealed_at IS NOT NULL AND NEW.sealed_at IS DISTINCT FROM OLD.sealed_at)",
    )


def downgrade() -> None:
    """Refuse: going back from the first schema would delete the log."""
    raise NotImplementedError("The first schema cannot be undone; remove the database to start over.")
