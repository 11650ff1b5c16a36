"""HTTP: the server, routes, request and answer models, error answers, pages.

May import: data, errors, ledger, log, metrics, service, settings.
Must not import: `trainer`; it decides nothing about a run and writes nothing to the database.
"""
