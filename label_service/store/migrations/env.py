"""Alembic's entry point. `label_service.store.sqlite.migrate` gives it a connection inside a transaction."""

from alembic import context

from label_service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place; later steps copy tables instead.
    render_as_batch=True,
)
context.run_migrations()
