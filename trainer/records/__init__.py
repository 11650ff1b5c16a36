"""The files of a run in OUT: safe writing and reading, the records as models, log, metrics and times.

May import: errors.
Must not import: PyTorch when it is loaded, nor anything of `oracle`, `learning` or `run`.
"""
