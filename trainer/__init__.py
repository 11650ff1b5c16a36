"""The trainer: pretrains without labels, asks the label service for a few over HTTP, and learns from the answers.

Packages: run (the stages of a run), acquisition (what to ask), learning (networks and graph), images, oracle (asking
and proving), records (a run's files). `cli` takes `options`; `config` says what a profile is made of, `profiles` names
them. It holds images only: it never imports `label_service` and never opens a label file.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# OpenMP reads this when torch loads it. Threads that spin while they wait make training on a busy machine a hundred
# times slower (two cores under a load of four: 14 s a step instead of 0.1 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("labelmeter")
except PackageNotFoundError:  # a copy of the source that nobody installed
    __version__ = "unknown"
