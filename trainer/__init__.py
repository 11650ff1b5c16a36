"""The learner: pretrains without labels, asks the label service over HTTP, and learns from the answers.

It holds images only. It never imports `label_service` and never opens a label file.
"""

__version__ = "0.1.0"
