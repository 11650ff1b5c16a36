"""Neighbours are the nearest ones, propagation is Zhou's closed form, and balancing balances."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.learning.graph import (
    NeighbourGraph,
    balance_classes,
    build_graph,
    diffuse,
    nearest_neighbours,
    propagate_labels,
)


def unit_rows(count: int, dimensions: int = 6, seed: int = 0) -> Tensor:
    """Draw unit vectors."""
    return F.normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)), dim=1)


def closed_form(graph: NeighbourGraph, Y: Tensor, alpha: float) -> Tensor:
    """Solve (1 - alpha) (I - alpha S)^-1 Y in float64."""
    S = graph.affinity.to_dense().double()
    return (1 - alpha) * torch.linalg.solve(torch.eye(len(S), dtype=torch.float64) - alpha * S, Y.double())


def two_islands(count: int = 12) -> Tensor:
    """Make two groups of unit vectors so far apart that a graph of 3 neighbours joins none of them."""
    noise = 0.05 * torch.randn(2 * count, 4, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([[1.0, 0, 0, 0]] * count + [[0, 1.0, 0, 0]] * count)
    return F.normalize(centre + noise, dim=1)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_neighbours_are_those_of_a_full_sort(chunk: int) -> None:
    """Chunked search finds what sorting all similarities finds, nearest first."""
    queries, keys = unit_rows(20, seed=1), unit_rows(50, seed=2)
    similarities, indices = nearest_neighbours(queries, keys, 5, chunk)
    sorted_similarities, order = (queries @ keys.T).sort(1, descending=True)
    assert torch.equal(indices, order[:, :5])
    torch.testing.assert_close(similarities, sorted_similarities[:, :5])


def test_neighbours_among_candidates_are_nearly_the_true_ones_with_their_true_similarities() -> None:
    """In more dimensions than are searched, with variances that fall as real features' do, 99% are found."""
    variances = torch.exp(-torch.arange(200) / 30.0)
    features = F.normalize(torch.randn(3000, 200, generator=torch.Generator().manual_seed(0)) * variances.sqrt(), dim=1)
    similarities, indices = nearest_neighbours(features[:500], features, 10)
    exact = features[:500] @ features.T
    torch.testing.assert_close(similarities, exact.gather(1, indices))
    assert (similarities.diff(dim=1) <= 0).all(), "nearest first"
    true = exact.topk(10, 1).indices
    assert (indices.unsqueeze(2) == true.unsqueeze(1)).any(2).float().mean() > 0.99


def test_candidates_are_never_more_than_there_are_keys() -> None:
    """Where k is the whole of the keys, all of them are the answer."""
    keys = unit_rows(6, 200, seed=4)
    _, indices = nearest_neighbours(keys[:2], keys, 6)
    assert torch.equal(indices.sort(1).values, torch.arange(6).expand(2, 6))


def test_the_graph_has_each_node_s_nearest_others() -> None:
    """The graph's neighbours are the brute-force ones with the node itself left out."""
    features = unit_rows(60)
    graph = build_graph(features, 7)
    similarities = features @ features.T
    similarities.fill_diagonal_(-2)
    assert torch.equal(graph.neighbours, similarities.topk(7, 1).indices)
    torch.testing.assert_close(graph.similarities, similarities.topk(7, 1).values)


def test_no_node_neighbours_itself_even_among_duplicates() -> None:
    """With more exact duplicates than neighbours, the search may miss the node itself; it still never is its own."""
    features = torch.cat([unit_rows(1).repeat(12, 1), unit_rows(20, seed=3)])
    graph = build_graph(features, 4)
    assert graph.neighbours.shape == (32, 4)
    assert not (graph.neighbours == torch.arange(32).unsqueeze(1)).any()
    assert all(row.unique().numel() == 4 for row in graph.neighbours)
    assert graph.affinity.to_dense().isfinite().all()
    assert (graph.neighbours[:12] < 12).all(), "duplicates neighbour each other"


def test_the_affinity_is_symmetric_normalised_and_without_a_diagonal() -> None:
    """S = D^-1/2 W D^-1/2 of a symmetric W: symmetric, not negative, zero diagonal, largest eigenvalue one."""
    S = build_graph(unit_rows(40), 5).affinity.to_dense()
    torch.testing.assert_close(S, S.T)
    assert S.min() >= 0
    assert torch.equal(S.diagonal(), torch.zeros(40))
    assert torch.linalg.eigvalsh(S.double()).abs().max().item() == pytest.approx(1, abs=1e-5)


def test_the_affinity_holds_the_self_tuning_weights() -> None:
    """Entry by entry, S is W + W^T of exp(-d² / (s_i s_j)) over the neighbours, normalised by the degrees."""
    features = unit_rows(15)
    k = 3
    graph = build_graph(features, k)
    d = torch.cdist(features.double(), features.double())
    W = torch.zeros(15, 15, dtype=torch.float64)
    scale = d[torch.arange(15), graph.neighbours[:, -1]]
    for i in range(15):
        for j in graph.neighbours[i].tolist():
            weight = torch.exp(-(d[i, j] ** 2) / (scale[i] * scale[j]))
            W[i, j] += weight
            W[j, i] += weight
    degree = W.sum(1)
    torch.testing.assert_close(
        graph.affinity.to_dense().double(), W / torch.sqrt(degree[:, None] * degree[None]), rtol=1e-3, atol=1e-5
    )


def test_a_small_pool_has_fewer_neighbours() -> None:
    """Four images have three neighbours each, whatever was asked."""
    assert build_graph(unit_rows(4), 15).neighbours.shape == (4, 3)


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_diffusion_is_the_closed_form(alpha: float) -> None:
    """Iterated long enough, the values are (1 - alpha)(I - alpha S)^-1 Y; Y itself is not changed."""
    graph, Y = build_graph(unit_rows(30), 6), torch.rand(30, 3, generator=torch.Generator().manual_seed(5))
    kept = Y.clone()
    torch.testing.assert_close(diffuse(graph, Y, alpha, 300).double(), closed_form(graph, Y, alpha), rtol=0, atol=1e-4)
    assert torch.equal(Y, kept)


@pytest.mark.parametrize("has_prior", [False, True])
def test_propagation_diffuses_balances_and_clamps(has_prior: bool) -> None:
    """Y has the known labels, and the prior (else zeros) elsewhere; the prior itself is not changed."""
    graph = build_graph(unit_rows(30), 6)
    ids, labels = torch.tensor([2, 11, 25]), torch.tensor([1, 0, 2])
    prior = torch.rand(30, 3, generator=torch.Generator().manual_seed(5)).softmax(1) if has_prior else None
    Y = torch.zeros(30, 3) if prior is None else prior.clone()
    kept = Y.clone()
    beliefs = propagate_labels(graph, ids, labels, 3, alpha=0.6, steps=200, start=prior)
    assert prior is None or torch.equal(prior, kept)
    Y[ids] = F.one_hot(labels, 3).float()
    expected = closed_form(graph, Y, 0.6)
    expected = balance_classes(expected / expected.sum(1, keepdim=True))
    assert expected[ids].max() < 1, "the clamp does something"
    expected[ids] = Y[ids].double()
    torch.testing.assert_close(beliefs.double(), expected, rtol=0, atol=1e-4)


def test_beliefs_are_probabilities_and_known_labels_certain() -> None:
    """Rows sum to one, nothing is negative, and a queried image's belief is its label."""
    graph = build_graph(unit_rows(50), 5)
    ids, labels = torch.arange(0, 50, 10), torch.tensor([0, 1, 2, 3, 0])
    beliefs = propagate_labels(graph, ids, labels, 4)
    torch.testing.assert_close(beliefs.sum(1), torch.ones(50))
    assert beliefs.min() >= 0
    assert torch.equal(beliefs[ids], F.one_hot(labels, 4).float())


def test_labels_fill_their_island() -> None:
    """One label an island is enough: every image takes its island's class."""
    beliefs = propagate_labels(build_graph(two_islands(), 3), torch.tensor([0, 12]), torch.tensor([1, 0]), 2)
    assert beliefs.argmax(1).tolist() == [1] * 12 + [0] * 12


def test_a_node_no_label_reaches_is_uniform() -> None:
    """On an island without a label, every class is as likely as another."""
    ids, labels = torch.tensor([0, 1]), torch.tensor([1, 0])
    beliefs = propagate_labels(build_graph(two_islands(), 3), ids, labels, 3)
    torch.testing.assert_close(beliefs[12:], torch.full((12, 3), 1 / 3))
    assert (beliefs[:12].max(1).values > 0.34).any()


@pytest.mark.parametrize("skew", [[1.0, 1.0, 1.0], [5.0, 1.0, 0.5]])
def test_balancing_gives_every_class_the_same_mass(skew: list[float]) -> None:
    """Class masses become equal to within a percent, and rows stay probabilities."""
    beliefs = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(skew)
    balanced = balance_classes(beliefs)
    torch.testing.assert_close(balanced.sum(1), torch.ones(300))
    torch.testing.assert_close(balanced.mean(0), torch.full((3,), 1 / 3), rtol=0.01, atol=0)


def test_balancing_keeps_the_order_within_a_class() -> None:
    """Rescaling columns keeps odds ratios: who is likelier of class 0 against class 1 stays so."""
    beliefs = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    odds, balanced = beliefs[:, 0] / beliefs[:, 1], balance_classes(beliefs)
    assert torch.equal(odds.argsort(), (balanced[:, 0] / balanced[:, 1]).argsort())
