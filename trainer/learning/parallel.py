"""Run the halves of a batch side by side, each on half of the cores: small layers gain little from a second core.

How much time that saves: benchmarks/training_speed.py. Every CPU splits a batch into the same parts, whatever the
number of its cores, because the last bits of a result depend on the split. A GPU does not split.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from trainer.learning.device import generator_for
from trainer.records.progress import progress

# Parts of a batch on a CPU. More would leave batch normalisation too few images in a part.
_CPU_PARTS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")
Network = TypeVar("Network", bound=nn.Module)


def parts_on(device: torch.device) -> int:
    """Return the number of parts that a batch is split into on a device."""
    return _CPU_PARTS if device.type == "cpu" else 1


@functools.cache
def _workers() -> ThreadPoolExecutor:
    """Start one thread a part, or one a core if there are fewer cores; the threads share the cores evenly."""
    # This call also fixes the number for the calling thread. Without it, PyTorch would use a worker's number here too.
    cores = torch.get_num_threads()
    threads = min(_CPU_PARTS, cores)
    return ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(max(1, cores // threads)))


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device, title: str = ""
) -> list[Result]:
    """Apply a function to each item; on a CPU to several at a time, each on its share of the cores.

    Args:
        function: on a CPU it runs in other threads, where the modes of autograd and autocast are the defaults. It must
            not call `side_by_side` itself: a single worker would wait for itself.
        items: independent of each other.
        device: where the function computes.
        title: what a reader of the progress sees; empty to show none.

    Returns:
        The results in the order of the items. If calls fail, the first exception is raised after all have ended.
    """
    if device.type != "cpu":
        listed = list(items)
        return [function(item) for item in (progress(listed, len(listed), title) if title else listed)]
    futures = [_workers().submit(function, item) for item in items]
    if title:
        for _ in progress(as_completed(futures), len(futures), title):
            pass
    wait(futures)
    return [future.result() for future in futures]


@dataclass(frozen=True)
class Share(Generic[Network]):
    """One network's part of a training step.

    Attributes:
        network: learns from the part.
        batch: the part's rows.
        weight: the part's share of the whole batch, in (0, 1].
        generator: the part's randomness.
    """

    network: Network
    batch: Tensor
    weight: float
    generator: torch.Generator


class Replicas(Generic[Network]):
    """A network and its copies: shared parameters, but gradients and normalisation statistics of their own.

    As in PyTorch's DistributedDataParallel, only the first network's statistics are kept.

    Attributes:
        networks: the network itself first.
    """

    def __init__(self, network: Network, count: int) -> None:
        """Make the copies.

        Args:
            network: must keep its parameter tensors from here on (loading a state does).
            count: number of networks, the given one included.
        """
        self.networks: list[Network] = [network, *(self._copy(network) for _ in range(count - 1))]
        self._device = next(network.parameters()).device
        self._generators: list[torch.Generator] = []

    @staticmethod
    def _copy(network: Network) -> Network:
        replica = copy.deepcopy(network)
        for own, shared in zip(replica.parameters(), network.parameters(), strict=True):
            own.data = shared.data
        return replica

    def start_epoch(self, seed: int, *purpose: object) -> torch.Generator:
        """Enter training mode, drop gradients, and derive a generator for each network; return the first generator."""
        for network in self.networks:
            network.train()
            network.zero_grad(set_to_none=True)
        self._generators = [generator_for(self._device, seed, *purpose, index) for index in range(len(self.networks))]
        return self._generators[0]

    def learn(
        self,
        batch: Tensor,
        forward: Callable[[Share[Network]], Tensor],
        join: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
    ) -> Tensor:
        """Add one step's gradients to the first network.

        Args:
            batch: the step's rows.
            forward: computes the output of one share; runs side by side.
            join: combines the outputs of all shares and their weights into the step's measures, float [M]; the first
                is the loss.

        Returns:
            What `join` computed, detached.
        """
        parts = split_batch(batch, len(self.networks))
        shares = [
            Share(network, part, len(part) / len(batch), generator)
            for network, part, generator in zip(self.networks, parts, self._generators, strict=False)
        ]
        outputs = side_by_side(forward, shares, self._device)
        leaves = [output.detach().requires_grad_() for output in outputs]
        measured = join(leaves, [share.weight for share in shares])
        measured[0].backward()
        side_by_side(lambda pair: pair[0].backward(pair[1].grad), zip(outputs, leaves, strict=True), self._device)
        self._gather_gradients()
        return measured.detach()

    def _gather_gradients(self) -> None:
        """Move the copies' gradients to the first network."""
        for replica in self.networks[1:]:
            for first, other in zip(self.networks[0].parameters(), replica.parameters(), strict=True):
                if other.grad is None:
                    continue
                first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
                other.grad = None


def split_batch(batch: Tensor, parts: int) -> Sequence[Tensor]:
    """Split a batch into `parts` of nearly equal size, or fewer: batch normalisation needs two rows in each."""
    return batch.tensor_split(max(1, min(parts, len(batch) // 2)))
