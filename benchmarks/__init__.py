"""Measurements of the ledger, each a program that prints a table; see `docs/measurements.md`."""
