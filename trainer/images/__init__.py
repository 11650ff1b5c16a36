"""Images without labels: IDX files, random views, and a descriptor that learns nothing from labels.

May import: config, errors.
Must not import: any other package of the trainer.
"""
