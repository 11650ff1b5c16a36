"""Networks and neighbour graph: HCL pretraining, semi-supervised fine-tuning, label propagation, joint beliefs.

May import: config, errors, images, records.
Must not import: `oracle`, `run`, `acquisition`, anything of HTTP; it knows no file of a run but its checkpoint.
"""
