"""The tables, as SQLAlchemy Core. Only rows of `runs` and of the heartbeat ever change.

Triggers in the database, made by the migration, refuse every other change. Every count stands in two places, so that
one can check the other: `runs.spent` against the rows of `reveals` and against the sum over `entries`.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row: what was seeded. `labels_sha256` shows whether a folder holds the same labels; no answer contains it.
dataset = Table(
    "dataset",
    metadata,
    Column("singleton", Integer, CheckConstraint("singleton = 1", name="one_row"), primary_key=True),
    Column("name", Text, nullable=False),
    Column("official", Integer, nullable=False),
    Column("balanced", Integer, nullable=False),
    Column("redraw_seed", Integer),
    Column("pool_size", Integer, nullable=False),
    Column("test_size", Integer, nullable=False),
    Column("class_names", Text, nullable=False),  # JSON list
    Column("fingerprint", Text),
    Column("labels_sha256", Text, nullable=False),
    Column("log_id", Text, nullable=False),
    Column("seeded_at", Text, nullable=False),
)

# One row: what the service committed to before the first query. The secret stays here; each revealed label is answered
# with one salt made from it.
answer_key = Table(
    "answer_key",
    metadata,
    Column("singleton", Integer, CheckConstraint("singleton = 1", name="one_row"), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("commitment", Text, nullable=False),  # base64 root
    Column("committed_at", Text, nullable=False),
)

pool_labels = Table(
    "pool_labels",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("label", Integer, nullable=False),
)

test_labels = Table(
    "test_labels",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("label", Integer, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("token_sha256", Text),  # null for the guest run
    Column("budget", Integer, nullable=False),
    Column("evaluation_budgets", Text, nullable=False),  # JSON list
    Column("evaluations_allowed", Integer, nullable=False),
    Column("opened_with", Text),  # the name of the token that allowed it; null if it needed none
    Column("spent", Integer, nullable=False, server_default="0"),
    Column("opened_at", Text, nullable=False),
    Column("sealed_at", Text),
)

# `entry` is the canonical JSON, byte for byte: it is served, exported and hashed as a leaf of the tree.
# `mac` authenticates it and `bound_sha256` under a secret that is not in the database. `bound_sha256` is what the entry
# binds without showing it: the hash of the token of the run it opens, or of the Idempotency-Key it answers.
# The other columns repeat parts of the entry so that the log can be filtered.
entries = Table(
    "entries",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Column("bound_sha256", Text),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("op", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("charged", Integer, nullable=False),
    # One for each filter of the log, in the order of the numbers.
    Index("ix_entries_run", "run_id", "seq"),
    Index("ix_entries_run_outcome", "run_id", "outcome", "seq"),
    Index("ix_entries_outcome", "outcome", "seq"),
    Index("ix_entries_op", "op", "seq"),
)

# The signed head of every commit but the newest. That one is in memory and can be signed again, to the same bytes.
heads = Table(
    "heads",
    metadata,
    Column("size", Integer, primary_key=True, autoincrement=False),
    Column("signature", Text, nullable=False),  # key id and signature, base64, as in the note
)

# Which entries asked for which label (ids inside the data set only).
entry_ids = Table(
    "entry_ids",
    metadata,
    Column("label_id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, ForeignKey("entries.seq"), primary_key=True, autoincrement=False),
)

reveals = Table(
    "reveals",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("label_id", Integer, ForeignKey("pool_labels.id"), primary_key=True, autoincrement=False),
    Column("seq", Integer, ForeignKey("entries.seq"), nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # 1, 2, … within the run
    Column("budget", Integer),
    Column("correct", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("seq", Integer, ForeignKey("entries.seq"), nullable=False),
)

# A key is bound to the entry that first answered it; a repeat is answered from the rows of that entry.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", Text, nullable=False),
    Column("seq", Integer, ForeignKey("entries.seq"), nullable=False),
)

# Who repeats the opening of a run under its key gets its token again: an HMAC of the key under `nonce`. Neither the key
# nor the token stands here.
opening_keys = Table(
    "opening_keys",
    metadata,
    Column("key_sha256", Text, primary_key=True),  # of the key, and of the token that allowed the opening
    Column("request_sha256", Text, nullable=False),
    Column("nonce", Text, nullable=False),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
)

# The readiness check writes here, because only a write shows that writing works.
heartbeat = Table(
    "heartbeat",
    metadata,
    Column("singleton", Integer, CheckConstraint("singleton = 1", name="one_row"), primary_key=True),
    Column("beat_at", Text, nullable=False),
    Column("filler", LargeBinary, nullable=False),
)
