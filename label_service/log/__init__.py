"""The query log: its entries, the Merkle tree over them, signed heads, receipts, and the offline verifier.

May import: errors, files, store.
Must not import: HTTP, `web` or `ledger`, which decides what is logged; `verify` loads no database either.
"""
