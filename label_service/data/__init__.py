"""The data set: getting its four files, checking them, and seeding the database with their labels.

May import: errors, files, log, store.
Must not import: `web` or `ledger`; only `seed` and `prepare` open label files.
"""
