"""The database's history (Alembic). Applied by `label_service.store.sqlite.migrate` at every start."""
