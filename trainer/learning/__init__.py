"""Networks and neighbour graph: HCL pretraining, semi-supervised fine-tuning, label propagation, joint beliefs.

May import: `images`, `config`, `errors`, and of `records` the progress display and the atomic file writer.
Must not import: `oracle`, `run`, `acquisition`, anything of HTTP.
"""
