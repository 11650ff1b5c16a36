"""The neighbour graph of the pool, and label propagation on it.

Propagation: D. Zhou et al., "Learning with local and global consistency", NeurIPS 2003. Class-mass normalisation:
X. Zhu et al., "Semi-supervised learning using Gaussian fields and harmonic functions", ICML 2003. It needs the share of
each class in the pool: equal shares where the data set declares them, else those that `estimate_class_prior` finds.
"""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.learning.device import mixed_precision
from trainer.learning.losses import PROBABILITY_FLOOR
from trainer.learning.parallel import side_by_side
from trainer.learning.ranks import by_rows

# Principal axes on which candidate neighbours are searched.
LEADING_AXES = 128
# Similarities held at once by a search, in numbers: a larger pool is searched for fewer queries at a time.
SEARCH_NUMBERS = 2**26
# A larger pool is searched in part on a CPU: the time of a whole search grows with the square of the pool.
SEARCHED_WHOLE = 100_000
# Smallest weight of an edge: an image whose neighbours are all copies of one another would have no edge else.
_SMALLEST_WEIGHT = 1e-6
# Fewest neighbours of an image, and how many of an average class's images may be neighbours: 1 / 4.
_FEWEST_NEIGHBOURS, _CLASS_SHARE = 5, 4


@dataclass(frozen=True)
class NeighbourGraph:
    """A symmetric k-nearest-neighbour graph.

    Attributes:
        neighbours: int64 [N, k], nearest first, never the node itself.
        similarities: float32 [N, k], cosine similarities of those neighbours.
        affinity: sparse CSR float32 [N, N], D^-1/2 W D^-1/2 with a zero diagonal.
    """

    neighbours: Tensor
    similarities: Tensor
    affinity: Tensor


def nearest_neighbours(queries: Tensor, keys: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the k most similar keys of each query.

    In many dimensions, the 2k most similar keys on the leading principal axes are candidates, and among those the
    similarities are exact. On the joint features of 50,000 images this finds 99.6% of the true neighbours, in float32
    and in bfloat16 (docs/decisions/0019-halves-side-by-side.md). Of more than 100,000 keys on a CPU, the candidates are
    those of an inverted file (`inverted_file.py`).

    Args:
        queries: float32 [Q, D], unit vectors.
        keys: float32 [N, D], unit vectors.
        k: neighbours a query, at most N.
        chunk: queries per matrix product, to bound memory; fewer if there are more than 65,536 keys.

    Returns:
        Similarities float32 [Q, k], highest first, and indices int64 [Q, k].
    """
    similarities, indices = by_rows(_nearest_neighbours, queries, keys, k, chunk)
    return similarities, indices


def _nearest_neighbours(queries: Tensor, keys: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    is_direct = keys.shape[1] <= LEADING_AXES
    axes = None if is_direct else torch.linalg.eigh(keys.T @ keys).eigenvectors[:, -LEADING_AXES:]
    leading = keys if axes is None else keys @ axes
    index = None
    if len(keys) > SEARCHED_WHOLE and keys.device.type == "cpu":
        # Most runs do without it, and loading faiss takes time.
        from trainer.learning.inverted_file import InvertedFile

        index = InvertedFile(leading)
    else:
        chunk = max(1, min(chunk, SEARCH_NUMBERS // len(keys)))

    def nearest(part: Tensor) -> tuple[Tensor, Tensor]:
        on_axes = part if axes is None else part @ axes
        if index is not None:
            candidates = index.nearest(on_axes, min(2 * k, len(keys)))
        elif axes is None:
            values, best = (on_axes @ leading.T).topk(k, dim=1)
            return values, best
        else:
            # Rounding moves few similarities past the last candidate's, and bfloat16 takes a third of the time.
            with mixed_precision(queries.device):
                candidates = (on_axes @ leading.T).topk(min(2 * k, len(keys)), dim=1).indices
        values, order = torch.bmm(keys[candidates], part.unsqueeze(2)).squeeze(2).topk(k, dim=1)
        return values, candidates.gather(1, order)

    similarities, indices = zip(
        *side_by_side(nearest, queries.split(chunk), queries.device, "finding neighbours"), strict=True
    )
    return torch.cat(similarities), torch.cat(indices)


def neighbours_for(pool_size: int, classes: int, wanted: int) -> int:
    """Lower the number of neighbours on a small pool, so that most neighbours can be of an image's own class."""
    return min(wanted, max(_FEWEST_NEIGHBOURS, pool_size // (_CLASS_SHARE * classes)))


def build_graph(features: Tensor, k: int = 15, found: Tensor | None = None) -> NeighbourGraph:
    """Build the graph of unit vectors.

    Weights are exp(-d_ij^2 / (s_i s_j)) with the local scale s_i, the distance of the k-th neighbour (L. Zelnik-Manor
    and P. Perona, "Self-tuning spectral clustering", NeurIPS 2004), which suits dense and sparse classes alike.

    Args:
        features: float32 [N, D], unit vectors.
        k: neighbours a node; lowered on a smaller pool.
        found: int64 [M], ascending, the nodes that may be found as neighbours; None for all. Of more copies of one
            image than there are neighbours only one should be found: the copies would see nothing but each other.
    """
    N = len(features)
    k = min(k, (N if found is None else len(found)) - 1)
    similarities, indices = nearest_neighbours(features, features if found is None else features[found], k + 1)
    indices = indices if found is None else found[indices]
    # A node is its own nearest neighbour. Among many exact duplicates it may be missing: then drop the last one.
    own = indices == torch.arange(N, device=indices.device).unsqueeze(1)
    own[:, -1] |= ~own.any(1)
    indices = indices[~own].view(N, k)
    similarities = similarities[~own].view(N, k)
    distance_sq = (2 - 2 * similarities).clamp_min(0)
    scale = distance_sq[:, -1].clamp_min(1e-12).sqrt()
    weights = torch.exp(-distance_sq / (scale.unsqueeze(1) * scale[indices])).clamp_min(_SMALLEST_WEIGHT)
    rows = torch.arange(N, device=indices.device).repeat_interleave(k)
    columns = indices.flatten()
    # W + W^T counts mutual neighbours twice on purpose: they share a class more often.
    W = _sparse(
        torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])]),
        weights.flatten().repeat(2),
        N,
    ).coalesce()
    i, j = W.indices()
    degree = torch.zeros(N, device=features.device).index_add_(0, i, W.values())
    scaled = W.values() / torch.sqrt(degree[i] * degree[j])
    affinity = _compressed(_sparse(W.indices(), scaled, N).coalesce())
    return NeighbourGraph(indices, similarities, affinity)


def _sparse(indices: Tensor, values: Tensor, N: int) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, (N, N), check_invariants=True)


def _compressed(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # Compressed rows multiply several times faster; torch's warning does not concern the user.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return matrix.to_sparse_csr()


def propagate_labels(
    graph: NeighbourGraph,
    ids: Tensor,
    labels: Tensor,
    classes: int,
    *,
    alpha: float = 0.95,
    steps: int = 60,
    start: Tensor | None = None,
    class_prior: Tensor | None = None,
) -> Tensor:
    """Spread known labels over the graph, give each class its share, and clamp the known labels.

    Args:
        graph: the pool's graph.
        ids: int64 [L], nodes whose label is known.
        labels: int64 [L].
        classes: number of classes, C.
        alpha: see `diffuse`.
        steps: see `diffuse`.
        start: float [N, C], beliefs to start from where no label is known, rows summing to one; None for zeros.
        class_prior: see `balance_classes`.

    Returns:
        float32 [N, C], rows summing to one; uniform where no label reached.
    """
    Y = torch.zeros(len(graph.neighbours), classes, device=graph.affinity.device) if start is None else start.clone()
    known = F.one_hot(labels, classes).float()
    Y[ids] = known
    beliefs = diffuse(graph, Y, alpha, steps).clamp_min(0)
    beliefs = balance_classes(beliefs / beliefs.sum(1, keepdim=True).clamp_min(1e-12), class_prior)
    beliefs = beliefs + PROBABILITY_FLOOR / classes
    beliefs = beliefs / beliefs.sum(1, keepdim=True)
    beliefs[ids] = known
    return beliefs


def diffuse(graph: NeighbourGraph, Y: Tensor, alpha: float, steps: int) -> Tensor:
    """Iterate F <- alpha S F + (1 - alpha) Y from F = Y, with the graph's affinity S.

    Args:
        graph: of N nodes.
        Y: float32 [N, C].
        alpha: share of a node's value that comes from its neighbours.
        steps: iterations; alpha^steps bounds the remaining error.
    """
    values = Y
    for _ in range(steps):
        values = alpha * (graph.affinity @ values) + (1 - alpha) * Y
    return values


def estimate_class_prior(
    graph: NeighbourGraph, ids: Tensor, labels: Tensor, classes: int, *, alpha: float = 0.8, steps: int = 60
) -> Tensor:
    """Estimate the share of each class in the pool from the labels paid for.

    Counting the labels would not do: images are asked for because they are unlike the others or hard, so rare and
    difficult classes are counted too often. What a label says about the images around it does not depend on why it was
    asked for, so each image of the pool counts with the labels that reach it over the graph. They are squared, because
    spread labels are less certain than right. One label more of each
    class (a Dirichlet prior) keeps a class that was not seen yet possible.

    Args:
        graph: the pool's graph.
        ids: int64 [L], nodes whose label is known.
        labels: int64 [L].
        classes: number of classes, C.
        alpha: see `diffuse`; less than for beliefs, so that a label counts for its surroundings alone.
        steps: see `diffuse`.

    Returns:
        float32 [C], positive, summing to one.
    """
    Y = torch.zeros(len(graph.neighbours), classes, device=graph.affinity.device)
    Y[ids] = F.one_hot(labels, classes).float()
    reached = diffuse(graph, Y, alpha, steps).clamp_min(0)
    mass = reached.sum(1, keepdim=True)
    votes = (reached / mass.clamp_min(1e-12))[mass.squeeze(1) > 1e-12].square()
    counted = (votes / votes.sum(1, keepdim=True)).sum(0)
    share = counted / counted.sum().clamp_min(1e-12)
    return (len(ids) * share + 1) / (len(ids) + classes)


def balance_classes(beliefs: Tensor, class_prior: Tensor | None = None, steps: int = 10) -> Tensor:
    """Rescale the columns of [N, C] beliefs until every class has its share of the mass, rows summing to one.

    Args:
        beliefs: float [N, C], non-negative.
        class_prior: float [C], positive, summing to one; None for equal shares.
        steps: alternations of column and row scaling (Sinkhorn); ten leave under a percent of imbalance.
    """
    for _ in range(steps):
        mass = beliefs.mean(0).clamp_min(1e-12)
        mass = mass * beliefs.shape[1] if class_prior is None else mass / class_prior
        beliefs = beliefs / mass
        beliefs = beliefs / beliefs.sum(1, keepdim=True).clamp_min(1e-12)
    return beliefs
