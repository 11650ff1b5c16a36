"""The database's history (Alembic). Applied by `label_service.database.migrate` at every start."""
