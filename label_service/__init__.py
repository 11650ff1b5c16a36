"""The label database: it reveals, charges, limits and logs every label query over HTTP.

Packages: web (HTTP), ledger (decides and charges), log (proves), data (label files), store (databases).
`cli` starts it, `service` opens and closes it. No module imports `trainer`; every package may import `errors`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("labelmeter")
except PackageNotFoundError:  # a copy of the source that nobody installed
    __version__ = "unknown"
