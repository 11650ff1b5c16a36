"""The label service as the trainer sees it: the client, the checks and proofs of its answers, the witness of its log.

May import: errors, records.
Must not import: PyTorch, nor anything of `learning`, `acquisition`, `images` or `run`.
"""

from trainer.oracle.client import LabelClient
from trainer.oracle.witness import Witness

__all__ = ["LabelClient", "Witness"]
