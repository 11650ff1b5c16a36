"""The data set: getting its four files, checking them, and seeding the database with their labels.

May import `label_service.store`, the clock of `label_service.log.entries`, and the package's errors and files.
Must not import `label_service.web` or `label_service.ledger`; only `seed` and `prepare` open label files.
"""
