"""The commitment to the answer key, and the signed head of each commit; both written once.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

from label_service.store.migrations.triggers import no_replace, write_once

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEYS = {"answer_key": ("singleton",), "heads": ("size",)}


def upgrade() -> None:
    """Create both tables and their triggers."""
    op.create_table(
        "answer_key",
        sa.Column("singleton", sa.Integer(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("commitment", sa.Text(), nullable=False),
        sa.Column("committed_at", sa.Text(), nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_answer_key_one_row")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_answer_key")),
    )
    op.create_table(
        "heads",
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_heads")),
    )
    write_once(tuple(KEYS))
    no_replace(KEYS)


def downgrade() -> None:
    """Refuse: without the commitment the log's entries could not be checked."""
    raise NotImplementedError("The commitment cannot be undone; remove the database to start over.")
