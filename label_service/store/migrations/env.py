"""Alembic's entry point. `migrate` gives it a connection inside a transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
