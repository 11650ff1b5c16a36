"""The search in cells finds nearly what a whole search finds."""

import pytest
import torch
import torch.nn.functional as F

from trainer.learning import graph
from trainer.learning.cells import nearest_in_cells


def clustered(count: int) -> torch.Tensor:
    """Draw unit vectors around forty centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 24, generator=generator)
    return F.normalize(
        centres[torch.randint(40, (count,), generator=generator)] + torch.randn(count, 24, generator=generator), dim=1
    )


def test_most_true_neighbours_are_found() -> None:
    """More than nine in ten, with their similarities, the most similar first."""
    queries, keys = clustered(4300).split([300, 4000])
    wanted = (queries @ keys.T).topk(10, dim=1)
    values, found = nearest_in_cells(queries, keys, 10)
    shared = (found.unsqueeze(2) == wanted.indices.unsqueeze(1)).any(2).float().mean()
    assert shared > 0.9
    assert torch.allclose(values, (queries.unsqueeze(1) * keys[found]).sum(2), atol=1e-5)
    assert bool((values.diff(dim=1) <= 0).all())


def test_copies_of_one_vector_are_no_trouble() -> None:
    """All keys in one cell: k of them are found."""
    keys = clustered(1).expand(500, -1)
    values, found = nearest_in_cells(keys[:3], keys, 10)
    assert torch.allclose(values, torch.ones(3, 10), atol=1e-5)
    assert all(len(set(row)) == 10 for row in found.tolist())


def test_large_pools_are_searched_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the graph's search takes the cells, and finds nearly the same."""
    keys = clustered(2000)
    _, whole = graph.nearest_neighbours(keys, keys, 6)
    monkeypatch.setattr(graph, "SEARCHED_WHOLE", 1000)
    _, found = graph.nearest_neighbours(keys, keys, 6)
    assert 0.85 < (found == whole).float().mean() < 1
