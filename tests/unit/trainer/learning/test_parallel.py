"""Work side by side gives the same results in the same order; replicas share parameters but not gradients."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.support.tiny_learning import CPU, TINY_ENCODER
from trainer.learning import parallel
from trainer.learning.parallel import Replicas, Share, parts_on, side_by_side, split_batch
from trainer.learning.pretrain import new_encoder


@pytest.fixture(autouse=True)
def two_workers() -> Iterator[None]:
    """Start workers anew from two threads, whatever the machine and the tests before, and put all back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    parallel._workers.cache_clear()
    yield
    parallel._workers.cache_clear()
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    """The first item's result is first, also if a later item is done earlier."""
    second_is_done = threading.Event()

    def wait_for_the_second(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(10)
        elif item == 1:
            second_is_done.set()
        return item * 10

    assert side_by_side(wait_for_the_second, range(5), CPU) == [0, 10, 20, 30, 40]


def test_an_error_in_one_part_is_the_caller_s() -> None:
    """Nothing is swallowed."""

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError(f"item {item}")
        done.append(item)
        return item

    done: list[int] = []
    with pytest.raises(ValueError, match="item 3"):
        side_by_side(fail, [3, 4, 5], CPU)
    assert sorted(done) == [4, 5], "the others are not left half done"


def test_the_caller_s_number_of_threads_is_left_alone() -> None:
    """A worker computes on its share of the cores; the main thread keeps what it had."""
    torch.set_num_threads(4)
    shares = side_by_side(lambda _: torch.get_num_threads(), range(2), CPU)
    assert torch.get_num_threads() == 4
    assert shares == [2, 2]


@pytest.mark.parametrize(
    ("rows", "parts", "sizes"), [(8, 2, [4, 4]), (5, 2, [3, 2]), (3, 2, [3]), (1, 2, [1]), (8, 1, [8])]
)
def test_a_batch_is_split_so_that_each_part_can_be_normalised(rows: int, parts: int, sizes: list[int]) -> None:
    """No part has fewer than two rows, unless the batch has."""
    batch = torch.arange(rows)
    shares = split_batch(batch, parts)
    assert [len(share) for share in shares] == sizes
    assert torch.equal(torch.cat(list(shares)), batch)


def test_a_cpu_always_splits_alike_and_a_gpu_does_not_split() -> None:
    """The number of parts depends only on the kind of device, so one core computes what two do."""
    assert parts_on(torch.device("cpu")) == 2
    assert parts_on(torch.device("cuda")) == 1


@pytest.mark.parametrize("rows", [8, 5, 1])
def test_gradients_of_the_parts_add_up_to_the_whole_batch_s(rows: int) -> None:
    """Without normalisation, the replicas' gradients together are those of one network on the whole batch."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images = torch.randn(rows, 6, dtype=torch.double)
    loss = whole(images).square().sum()
    loss.backward()
    expected = [parameter.grad.clone() for parameter in whole.parameters() if parameter.grad is not None]
    replicas = Replicas(whole, 2)
    replicas.start_epoch(0)

    def forward(share: Share[nn.Sequential]) -> torch.Tensor:
        return share.network(images[share.batch])  # type: ignore[no-any-return]

    measured = replicas.learn(torch.arange(rows), forward, lambda parts, _: torch.cat(list(parts)).square().sum()[None])
    torch.testing.assert_close(measured[0], loss.detach())
    for parameter, wanted in zip(whole.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)
    assert all(parameter.grad is None for parameter in replicas.networks[1].parameters())


def test_replicas_see_every_step_and_every_loaded_state() -> None:
    """Optimisers and load_state_dict change parameters in place, so those of the replica change too."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    replica = Replicas(encoder, 2).networks[1]
    assert replica is not encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    encoder.load_state_dict(new_encoder(TINY_ENCODER, 3, 5, CPU).state_dict())
    for own, shared in zip(replica.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(own, shared) and own.data_ptr() == shared.data_ptr()
