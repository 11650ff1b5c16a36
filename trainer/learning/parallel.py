"""Halves of the work side by side, each on half of the cores: small layers gain little from a second core.

What it is worth: benchmarks/training_speed.py. A batch is parted into the same parts on every CPU, whatever the number
of its cores, of which only the last bits of a result depend. On a GPU nothing is parted.
"""

import copy
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

# Parts of a batch on a CPU. More would leave batch normalisation too few images a part.
_CPU_PARTS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")
Network = TypeVar("Network", bound=nn.Module)


def available_cores() -> int:
    """Count the cores that this process may use (a container's share, not the host's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parts_on(device: torch.device) -> int:
    """Tell into how many parts a batch is parted on a device."""
    return _CPU_PARTS if device.type == "cpu" else 1


@functools.cache
def _workers() -> ThreadPoolExecutor:
    """Start as many threads as there are parts, or cores if they are fewer; each has its share of the cores."""
    # Asking also fixes the caller's own number, which a worker's would replace while nobody has asked.
    cores = torch.get_num_threads()
    threads = min(_CPU_PARTS, cores)
    return ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(max(1, cores // threads)))


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Apply a function to each item; on a CPU several at a time, each on its share of the cores.

    Args:
        function: on a CPU it runs in other threads, where autograd's and autocast's modes are their defaults again. It
            must not call `side_by_side` itself: with one worker it would wait for itself.
        items: independent of each other.
        device: that the function computes on.

    Returns:
        The results in the items' order. If some fail, the first one's exception is raised when all have ended.
    """
    if device.type != "cpu":
        return [function(item) for item in items]
    futures = [_workers().submit(function, item) for item in items]
    wait(futures)
    return [future.result() for future in futures]


@dataclass(frozen=True)
class Share(Generic[Network]):
    """A part of a step: the network that learns it, its rows of the batch, its weight in the step, its randomness."""

    network: Network
    batch: Tensor
    weight: float
    generator: torch.Generator


class Replicas(Generic[Network]):
    """A network and its twins: the same parameters in memory, gradients and normalisation statistics of their own.

    As in PyTorch's DistributedDataParallel the first network's statistics are the ones that last.

    Attributes:
        networks: the network itself first.
    """

    def __init__(self, network: Network, count: int) -> None:
        """Make the twins.

        Args:
            network: its parameters must stay the same tensors from here on (loading a state keeps them).
            count: networks in all.
        """
        self.networks: list[Network] = [network, *(self._twin(network) for _ in range(count - 1))]

    @staticmethod
    def _twin(network: Network) -> Network:
        twin = copy.deepcopy(network)
        for own, shared in zip(twin.parameters(), network.parameters(), strict=True):
            own.data = shared.data
        return twin

    def train(self) -> None:
        """Put all in training mode and forget gradients."""
        for network in self.networks:
            network.train()
            network.zero_grad(set_to_none=True)

    def deal(self, batch: Tensor, generators: Sequence[torch.Generator]) -> list[Share[Network]]:
        """Part a batch among the networks, each with its generator; a small batch leaves some without a share."""
        parts = part(batch, len(self.networks))
        return [
            Share(network, rows, len(rows) / len(batch), generator)
            for network, rows, generator in zip(self.networks, parts, generators, strict=False)
        ]

    def gather_gradients(self) -> None:
        """Add the twins' gradients to the first network's, and forget the twins'."""
        for twin in self.networks[1:]:
            for first, other in zip(self.networks[0].parameters(), twin.parameters(), strict=True):
                if other.grad is None:
                    continue
                first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
                other.grad = None


def part(batch: Tensor, parts: int, smallest: int = 2) -> Sequence[Tensor]:
    """Part a batch into `parts` of nearly equal size, or fewer, so that none has less than `smallest` rows."""
    return batch.chunk(max(1, min(parts, len(batch) // smallest)))
