"""Nearest neighbours in a large pool: search only the cells around a query (an inverted file, as in faiss's IVF).

The keys are parted into about sqrt(N) cells by k-means. A query is compared with the keys of the cells nearest to the
centre of its own cell. Source: H. Jegou, M. Douze and C. Schmid, "Product quantization for nearest neighbor search",
TPAMI 2011; without its quantization.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.learning.parallel import side_by_side

# Cells that are searched for a query, its own among them.
PROBED_CELLS = 24
_KMEANS_STEPS = 5
# Keys that k-means sees, for each cell.
_SEEN_PER_CELL = 50
# Queries that are compared with their candidates at a time.
_CHUNK = 1024


def nearest_in_cells(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find about the k most similar keys of each query.

    Args:
        queries: float32 [Q, D], unit vectors.
        keys: float32 [N, D], unit vectors.
        k: neighbours a query, well below sqrt(N).

    Returns:
        Similarities float32 [Q, k], highest first, and indices int64 [Q, k]. Where a query's cells hold fewer keys, all
        keys are searched.
    """
    centres = _centres(keys, math.isqrt(len(keys)))
    cell_of_key = _cell_of(keys, centres)
    order = torch.argsort(cell_of_key)
    sizes = torch.bincount(cell_of_key, minlength=len(centres))
    starts = [0, *sizes.cumsum(0).tolist()]
    probed = (centres @ centres.T).topk(min(PROBED_CELLS, len(centres)), dim=1).indices
    own = _cell_of(queries, centres)
    asked = torch.argsort(own)
    cells = torch.bincount(own, minlength=len(centres)).tolist()
    similarities = torch.empty(len(queries), k, device=queries.device)
    indices = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)

    def search(cell: int) -> tuple[Tensor, Tensor, Tensor] | None:
        rows = by_cell[cell]
        if len(rows) == 0:
            return None
        near = probed[cell].tolist()
        found = torch.cat([order[starts[other] : starts[other + 1]] for other in near])
        found = found if len(found) >= k else torch.arange(len(keys), device=keys.device)
        held = keys[found]
        best = [(queries[part] @ held.T).topk(k, dim=1) for part in rows.split(_CHUNK)]
        return rows, torch.cat([part.values for part in best]), found[torch.cat([part.indices for part in best])]

    by_cell = asked.split(cells)
    for result in side_by_side(search, range(len(centres)), queries.device):
        if result is not None:
            rows, values, index = result
            similarities[rows], indices[rows] = values, index
    return similarities, indices


def _centres(keys: Tensor, cells: int) -> Tensor:
    """Compute k-means centres of evenly spaced keys; the result depends on the keys alone."""
    step = max(1, len(keys) // (cells * _SEEN_PER_CELL))
    seen = keys[::step]
    centres = seen[:: max(1, len(seen) // cells)][:cells].clone()
    for _ in range(_KMEANS_STEPS):
        sums = torch.zeros_like(centres).index_add_(0, _cell_of(seen, centres), seen)
        empty = sums.square().sum(1, keepdim=True) == 0
        centres = torch.where(empty, centres, F.normalize(sums, dim=1))
    return centres


def _cell_of(rows: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in rows.split(8192)])
