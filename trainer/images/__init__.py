"""Images without labels: IDX files, random views, and a descriptor that learns nothing from labels.

May import: the trainer's `config` and `errors`.
Must not import: any other package of the trainer.
"""
