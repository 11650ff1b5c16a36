"""The learner: pretrains without labels, asks the label service over HTTP, and learns from the answers.

It holds images only. It never imports `label_service` and never opens a label file.
"""

import os

# Read by the OpenMP runtime when torch loads it: threads that wait by spinning slow a shared machine down a
# hundredfold (measured with two cores under a load of four: 14 s a step instead of 0.1 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
