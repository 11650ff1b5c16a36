"""The label database: it reveals, charges, limits and logs every label query over HTTP.

Rooms: web (HTTP), ledger (what a run may do), log (entries, tree, signatures), data (label files), store (databases).
No module here imports `trainer`; `errors` stands above all rooms and imports only the standard library.
"""

__version__ = "0.1.0"
