"""Alembic's entry point. The connection comes from `label_service.database.migrate`, already inside a transaction."""

from alembic import context

from label_service.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place; later steps copy tables instead.
    render_as_batch=True,
)
context.run_migrations()
