"""The search in a part of the pool finds nearly what a whole search finds."""

import pytest
import torch
import torch.nn.functional as F

from trainer.learning import graph
from trainer.learning.inverted_file import InvertedFile


def clustered(count: int) -> torch.Tensor:
    """Draw unit vectors around forty centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 24, generator=generator)
    return F.normalize(
        centres[torch.randint(40, (count,), generator=generator)] + torch.randn(count, 24, generator=generator), dim=1
    )


def test_most_true_neighbours_are_found() -> None:
    """More than nine in ten, none twice, and the same ones each time."""
    queries, keys = clustered(4300).split([300, 4000])
    wanted = (queries @ keys.T).topk(10, dim=1).indices
    found = InvertedFile(keys).nearest(queries, 10)
    shared = (found.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean()
    assert shared > 0.9
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert torch.equal(found, InvertedFile(keys).nearest(queries, 10))


def test_copies_of_one_vector_are_no_trouble() -> None:
    """All keys in one cell: k of them are found, also where the search meets empty cells alone."""
    keys = clustered(1).expand(500, -1).contiguous()
    for queries in (keys[:3], -keys[:3]):
        found = InvertedFile(keys).nearest(queries, 10)
        assert all(len(set(row)) == 10 and min(row) >= 0 for row in found.tolist())


@pytest.mark.parametrize("dimensions", [24, 200])
def test_large_pools_are_searched_in_part(monkeypatch: pytest.MonkeyPatch, dimensions: int) -> None:
    """Beyond the limit the graph's search finds nearly the same, with exact similarities, the most similar first."""
    keys = F.normalize(F.pad(clustered(3000), (0, dimensions - 24), value=0.01), dim=1)
    _, whole = graph.nearest_neighbours(keys, keys, 6)
    monkeypatch.setattr(graph, "SEARCHED_WHOLE", 1000)
    values, found = graph.nearest_neighbours(keys, keys, 6)
    assert 0.85 < (found.unsqueeze(2) == whole.unsqueeze(1)).any(2).float().mean() < 1
    assert torch.allclose(values, (keys.unsqueeze(1) * keys[found]).sum(2), atol=1e-5)
    assert bool((values.diff(dim=1) <= 0).all())
