"""The query log: its entries, the Merkle tree over them, signed heads, receipts, and the offline verifier.

May import: errors, files, store.
Must not import: `web`, `ledger` (which decides what is logged) or anything of HTTP. `verify` must not load SQLAlchemy.
"""
