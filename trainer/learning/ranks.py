"""Several processes train together: `torchrun --nproc-per-node N -m trainer run …`.

Rank 0 runs the program as if it were alone: it reads the data, asks, decides and writes. The other ranks serve it. What
takes long is a function that is called `everywhere`: rank 0 sends the call, and each rank computes its share of the
rows. So only rank 0 has files and a run to resume, and the number of ranks may change from one session to the next.

A training step splits the batch into one part a rank. PyTorch's DistributedDataParallel averages the gradients. Each
rank normalises its part by itself, and rank 0's running statistics are kept, as `parallel.Replicas` does: two ranks on
the CPU compute what the two halves of one process do.

Messages travel by gloo; gradients and embeddings by gloo on the CPU and NCCL on GPUs.
"""

import functools
import io
import logging
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import ConfigError, RankLost, TrainerError
from trainer.learning.device import generator_for, keep_freed_memory, pick_device, use_all_cores
from trainer.learning.parallel import Network, Replicas, Share, parts_on, split_batch

# A rank that died is noticed at once, by its closed connections. Only one that hangs is waited for: longer than rank 0
# takes for anything that it does alone.
_SILENCE = timedelta(hours=1)
# What shells report for a program ended by Ctrl-C.
_EXIT_INTERRUPTED = 130

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Tensors = tuple[Tensor, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """The processes that train together, as this one sees them."""

    rank: int
    size: int
    device: torch.device


# None while this process is alone.
_group: _Group | None = None


@contextmanager
def joined(device: str, patience_s: float) -> Iterator[None]:
    """Join the processes that torchrun started; rank 0 leads them inside the `with` block, and lets them go at its end.

    Args:
        device: as for `pick_device`.
        patience_s: how long rank 0 may wait for the label service, while the others wait for rank 0.

    Raises:
        RankLost: a process ended or stopped answering. The first process to notice raises it; the others exit silently.
        ConfigError: there is no such device, or no GPU for each process.
    """
    global _group
    store, rank, size = next(rendezvous("env://", timeout=_SILENCE))
    try:
        # torchrun ends the processes that are left by this signal.
        signal.signal(signal.SIGTERM, _end)
        own = pick_device(device)
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_SILENCE + timedelta(seconds=patience_s),
        )
        _group = _Group(rank, size, own)
        log.info("%d processes train together", size)
        yield
        if rank == 0:
            _send(None)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _give_up(error, rank, store)
    finally:
        _group = None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.destroy_process_group()


def serve(device: str, patience_s: float) -> None:
    """Do what rank 0 calls `everywhere`, until it lets this process go; show and write nothing.

    Raises:
        RankLost: see `joined`.
        ConfigError: see `joined`.
    """
    logging.disable()
    use_all_cores()
    keep_freed_memory()
    with joined(device, patience_s):
        while (message := _receive()) is not None:
            function, arguments, named = message
            function(*arguments, **named)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _lost()


def _lost() -> RankLost:
    return RankLost(
        "a process of this run ended or stopped answering, so all of them end; nothing that was paid for is lost, and "
        "the same command with --resume goes on"
    )


def _give_up(error: BaseException, rank: int, store: Store) -> NoReturn:
    """Raise the error if this process is the first to have one that tells the user something, else exit silently."""
    if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
        log.debug("lost", exc_info=error)
        error = _lost()
    is_told = False
    # The others notice a defect here, and tell of it, by the end of this process.
    if rank == 0 or isinstance(error, TrainerError):
        try:
            # torchrun's own process keeps this number, so it outlives rank 0.
            is_told = int(store.add("told", 1)) > 1
        except RuntimeError:
            log.debug("torchrun is gone")
    if rank and isinstance(error, KeyboardInterrupt):
        raise SystemExit(_EXIT_INTERRUPTED)
    if is_told and isinstance(error, TrainerError):
        raise SystemExit(error.exit_code)
    raise error


def everywhere(
    *own: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let rank 0's calls of a function be calls on every rank, with the same arguments.

    Args:
        own: keyword arguments that stay on rank 0, such as callbacks that write files. Elsewhere they have their
            defaults.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            if _group is not None and _group.rank == 0:
                _send((call, arguments, {name: value for name, value in named.items() if name not in own}))
            return function(*arguments, **named)

        return call

    return decorate


def by_rows(
    function: Callable[Concatenate[Tensor, Parameters], Tensors],
    rows: Tensor,
    *arguments: Parameters.args,
    **named: Parameters.kwargs,
) -> Tensors:
    """Compute `function(rows, …)`, each rank on its share of the rows.

    The function is a module's own. It returns tensors with one row for each row that it got.
    """
    if _group is None or len(rows) < _group.size:
        return function(rows, *arguments, **named)
    return _by_rows(function, rows, *arguments, **named)


@everywhere()
def _by_rows(function: Callable[..., Tensors], rows: Tensor, *arguments: Any, **named: Any) -> Tensors:  # noqa: ANN401
    assert _group is not None
    own = function(rows.tensor_split(_group.size)[_group.rank], *arguments, **named)
    return tuple(torch.cat(_gather(part, is_even=len(rows) % _group.size == 0)) for part in own)


def _send(message: tuple[Callable[..., Any], Any, Any] | None) -> None:
    """Send a call to the other ranks; None lets them go."""
    assert _group is not None
    buffer = io.BytesIO()
    if message is not None:
        torch.save(message, buffer)
    payload = torch.frombuffer(bytearray(buffer.getvalue()) or bytearray(1), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(payload) if message is not None else 0]), 0)
    if message is not None:
        dist.broadcast(payload, 0)


def _receive() -> tuple[Callable[..., Any], Any, Any] | None:
    assert _group is not None
    size = torch.zeros(1, dtype=torch.long)
    dist.broadcast(size, 0)
    if not size:
        return None
    payload = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(payload, 0)
    # Rank 0 is cuda:0, and its tensors are to be on this rank's GPU. It is this program, so its pickles are trusted.
    places = {"cuda:0": str(_group.device)}
    message: tuple[Callable[..., Any], Any, Any] = torch.load(
        io.BytesIO(payload.numpy().tobytes()), map_location=places, weights_only=False, pickle_module=pickle
    )
    return message


def _gather(own: Tensor, *, is_even: bool) -> list[Tensor]:
    """Collect a tensor of every rank, by rank. Uneven ones differ in their number of rows, which is asked first."""
    assert _group is not None
    sizes = [len(own)] * _group.size
    if not is_even:
        counts = [torch.zeros(1, dtype=torch.long) for _ in sizes]
        dist.all_gather(counts, torch.tensor([len(own)]))
        sizes = [int(count) for count in counts]
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [part[:size] for part, size in zip(gathered, sizes, strict=True)]


class _Used(nn.Module, Generic[Network]):
    """A network as DistributedDataParallel wants it: whatever is done with it is one call of `forward`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[[Share[Network]], Tensor], share: Share[Network]) -> Tensor:
        return function(share)


class RankReplica(Replicas[Network]):
    """This rank's replica of a network, of which every rank has one; to be made on all ranks at the same time.

    It begins with rank 0's weights.
    """

    def __init__(self, network: Network, group: _Group) -> None:
        super().__init__(network, 1)
        self._group = group
        with warnings.catch_warnings():
            # The argument has another name since torch 2.13.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            # Projection head or classifier may be unused, but then in every step. Buffers are copied after it, below.
            self._used = DistributedDataParallel(_Used(network), static_graph=True, broadcast_buffers=False)

    def start_epoch(self, seed: int, *purpose: object) -> torch.Generator:
        """See `Replicas.start_epoch`; the generator returned is the same on every rank, to draw the same batches."""
        first = super().start_epoch(seed, *purpose)
        if self._group.rank:
            self._generators = [generator_for(self._device, seed, *purpose, self._group.rank)]
        return first

    def learn(
        self,
        batch: Tensor,
        forward: Callable[[Share[Network]], Tensor],
        join: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
    ) -> Tensor:
        """Add one step's gradients to the network, the same on every rank; see `Replicas.learn`.

        Raises:
            ConfigError: see `parts_by_rank`.
        """
        rank, size = self._group.rank, self._group.size
        parts = parts_by_rank(batch, size)
        weights = [len(part) / len(batch) for part in parts]
        output = self._used(forward, Share(self.networks[0], parts[rank], weights[rank], self._generators[0]))
        leaves = _gather(output.detach(), is_even=len(batch) % size == 0)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        measured = join(leaves, weights)
        measured[0].backward()
        gradient = leaves[rank].grad
        assert gradient is not None
        # Every rank has the gradient of the whole loss by its own part. The parameters' is the sum over the ranks, and
        # DistributedDataParallel takes the mean.
        output.backward(gradient * size)
        self._copy_statistics()
        return measured.detach()

    def _copy_statistics(self) -> None:
        """Take over rank 0's running statistics, which the moving average follows."""
        buffers = [buffer for buffer in self.networks[0].buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, 0)
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def parts_by_rank(batch: Tensor, ranks: int) -> Sequence[Tensor]:
    """Split a batch into a part for each rank.

    Raises:
        ConfigError: there are not two rows for each.
    """
    parts = split_batch(batch, ranks)
    if len(parts) < ranks:
        raise ConfigError(f"{ranks} processes are too many for {len(batch)} images a step: each takes two; start fewer")
    return parts


def replicate(network: Network, device: torch.device) -> Replicas[Network]:
    """Make the replicas that train a network: one on each rank, or, in a single process, one for each part."""
    return Replicas(network, parts_on(device)) if _group is None else RankReplica(network, _group)
