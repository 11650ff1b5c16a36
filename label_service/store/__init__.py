"""Databases: the tables, SQLite and PostgreSQL engines, and the migrations with the append-only triggers.

May import: errors, files, settings.
Must not import: `web`, `service`, `ledger`, `log` or anything of HTTP.
"""
