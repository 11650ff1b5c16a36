"""The query log: its entries, the Merkle tree over them, signed heads, receipts, and the offline verifier.

May import `label_service.store` and the package's errors and files; `verify` and what it imports need none of these.
Must not import HTTP, `label_service.web` or `label_service.ledger`, which decides what is logged.
"""
