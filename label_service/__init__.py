"""The label database: reveals, charges, limits and logs every label query over HTTP. Imports nothing from `trainer`."""

__version__ = "0.1.0"
