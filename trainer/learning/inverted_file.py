"""Candidate neighbours in a large pool, by faiss: only the part of the pool that is near a query is searched.

The keys are parted into cells by k-means, and a query is compared with the keys of the cells nearest to it (H. Jegou,
M. Douze and C. Schmid, "Product quantization for nearest neighbor search", TPAMI 2011; without its quantization: keys
are kept in float16).
"""

import math

import faiss
import torch
from torch import Tensor

# Cells for each square root of the number of keys, and how many of them are searched for a query. Measured by
# benchmarks/growth.py, which prints the recall.
_CELLS_PER_ROOT = 4
_PROBED_CELLS = 48
_KMEANS_STEPS = 6
# Keys that k-means sees, for each cell.
_SEEN_PER_CELL = 50


class InvertedFile:
    """An index of keys; its result depends on the keys alone."""

    def __init__(self, keys: Tensor) -> None:
        """Part the keys, float32 [N, D] on the CPU, into cells."""
        _use_torchs_threads()
        cells = _CELLS_PER_ROOT * math.isqrt(len(keys))
        dimensions = keys.shape[1]
        self._centres = faiss.IndexFlatIP(dimensions)
        self._index = faiss.IndexIVFScalarQuantizer(
            self._centres, dimensions, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        self._index.cp.max_points_per_centroid = _SEEN_PER_CELL
        self._index.cp.min_points_per_centroid = 1
        self._index.cp.niter = _KMEANS_STEPS
        self._index.nprobe = _PROBED_CELLS
        self._keys = keys
        rows = keys.numpy()
        self._index.train(rows)
        self._index.add(rows)

    def nearest(self, queries: Tensor, k: int) -> Tensor:
        """Find about the k most similar keys of each query, float32 [Q, D] on the CPU: int64 [Q, k], none twice.

        Where a query's cells hold fewer keys, all keys are searched.
        """
        _use_torchs_threads()
        found = torch.from_numpy(self._index.search(queries.numpy(), k)[1])
        for row in (found < 0).any(1).nonzero().flatten().tolist():
            found[row] = (self._keys @ queries[row]).topk(k).indices
        return found


def _use_torchs_threads() -> None:
    """Give faiss as many threads as PyTorch has in the calling thread, for which alone the number holds."""
    faiss.omp_set_num_threads(torch.get_num_threads())
