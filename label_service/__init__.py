"""The label database: it reveals, charges, limits and logs every label query over HTTP.

Packages: web (HTTP), ledger (decides and charges), log (proves), data (label files), store (databases).
`cli` starts it, `service` opens and closes it. No module imports `trainer`; every package may import `errors`.
"""

__version__ = "0.1.0"
