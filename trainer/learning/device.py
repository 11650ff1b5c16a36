"""Device, cores, precision and random generators."""

import contextlib
import ctypes
import functools
import hashlib
import os
from pathlib import Path

import torch

from trainer.errors import ConfigError

# CPU flags (Linux) of instructions that multiply bfloat16. Without them autocast is slower than float32.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
_CPUINFO = Path("/proc/cpuinfo")
# Parameters of glibc's mallopt (malloc.h): how much free memory to keep, and how many blocks to map singly.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def processes_here() -> tuple[int, int]:
    """Return this process's number among those that torchrun started on this machine, and their count: else 0 of 1."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def pick_device(wanted: str = "auto") -> torch.device:
    """Choose the device: `auto`, or a PyTorch device such as `cpu`, `cuda` or `cuda:1`.

    Of several processes on a machine, each takes a GPU of its own.

    Raises:
        ConfigError: the device does not exist here.
    """
    number, count = processes_here()
    is_auto = wanted == "auto"
    if is_auto:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and count > 1:
        if wanted != "cuda" or count > torch.cuda.device_count():
            raise ConfigError(
                f"each of {count} processes needs a GPU of its own, and {torch.cuda.device_count()} are here; start "
                "fewer, and let --device be cuda or cpu"
            )
        wanted = f"cuda:{number}"
    if is_auto:
        return torch.device(wanted)
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
        # Devices such as `meta` hold tensors but do not train.
        known = device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        known = False
    if not known:
        raise ConfigError(f"device {wanted!r} cannot be used here; choose auto, cpu or cuda")
    return device


def available_cores() -> int:
    """Count the cores that this process may use (a container's share, not the host's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Give PyTorch one thread for each available core; several processes on a machine share them evenly."""
    torch.set_num_threads(max(1, available_cores() // processes_here()[1]))


def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory for the next step; return whether it could be set.

    By default glibc gets new pages from the kernel for every large tensor, and the kernel fills them with zeros first.
    That took 10 to 25% of a training step on two cores.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 arithmetic is faster than float32 on the device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return _lists_bfloat16(_CPUINFO)


# Cached: every training step calls this, and the kernel generates /proc/cpuinfo again for each read.
@functools.cache
def _lists_bfloat16(cpuinfo: Path) -> bool:
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in _BF16_FLAGS)


def arithmetic_on(device: torch.device) -> str:
    """Name the type that networks compute in on a device: `bfloat16` or `float32`."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Enter bfloat16 autocast where it is faster, else change nothing."""
    if has_bfloat16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def derived_seed(seed: int, *purpose: object) -> int:
    """Derive an independent 63-bit seed from the run's seed and a purpose such as ("pretrain", epoch)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(device: torch.device, seed: int, *purpose: object) -> torch.Generator:
    """Make a new generator for one purpose.

    Each epoch and each round has its own, so a resumed run draws what an uninterrupted one draws, and no generator
    state is saved.
    """
    return torch.Generator(device).manual_seed(derived_seed(seed, *purpose))
