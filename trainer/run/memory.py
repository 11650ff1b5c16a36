"""How much memory a run will need, and how much there is: said before any work, and refused if it does not fit.

The need is a sum over the stages, although they follow each other: what one has freed stays with the process
(`keep_freed_memory`), and the next finds it in other pieces than it needs. The factors are fitted to measured peaks
(docs/own-data.md, "How much memory a run takes").
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import Profile
from trainer.errors import ConfigError
from trainer.images.pixels import CHUNK_BYTES, working_shape
from trainer.learning.graph import LEADING_AXES, SEARCH_NUMBERS, SEARCHED_WHOLE

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30
# PyTorch, the other libraries and the interpreter, measured; a GPU holds its kernels instead.
_LIBRARIES = 0.5 * _GIB
# The similarities that a search holds, for two parts side by side, and what sorting them takes.
_SEARCH_COPIES, _SEARCHED = 5, 1024
# Bytes for each key of a large pool: its axes in float32 and in float16, twice while the index grows, and its number.
_INDEXED_BYTES = 4 * LEADING_AXES + 2 * 2 * LEADING_AXES + 8
# Numbers of a training step, by pixel of a batch and channel of the first stage: maps forward and backward.
_TRAINING_MAPS = 12
# Copies of a chunk of images, as floats, while their size is changed.
_RESIZED_COPIES = 3
# The descriptor's images at once, and bytes for each pixel of them: eight copies of six maps.
_DESCRIBED, _DESCRIBED_BYTES = 2048, 200
# Images in evaluation at once, in two parts; bytes for each pixel, and for each channel of the first stage beside that.
_EVALUATED, _EVALUATED_BYTES, _CHANNEL_BYTES = 2000, 160, 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """What the memory depends on.

    Attributes:
        pool: number of images, N.
        test: number of test images.
        height: of the images as they are, pixels.
        width: likewise.
        channels: 1 or 3.
        classes: number of classes, C; 2 while it is not known.
        own_features: dimensions of the user's features, 0 without.
    """

    pool: int
    test: int
    height: int
    width: int
    channels: int
    classes: int
    own_features: int = 0


def needed_bytes(sizes: Sizes, profile: Profile) -> int:
    """Foresee the memory that a run needs at its worst moment, in bytes."""
    N = min(sizes.pool, profile.pool_limit or sizes.pool)
    rows = N + sizes.test
    h, w = working_shape(sizes.height, sizes.width, profile.working_px)
    is_resized = (h, w) != (sizes.height, sizes.width)
    # The images as read, counted as if a gzipped file were unpacked, and at the size that is worked with.
    images = sizes.channels * ((sizes.pool + sizes.test) * sizes.height * sizes.width + is_resized * rows * h * w)
    whole = 4 * rows * sizes.channels * max(sizes.height * sizes.width, h * w)
    resizing = is_resized * _RESIZED_COPIES * min(CHUNK_BYTES, whole)
    embedding = 512 if profile.encoder.backbone == "resnet18" else profile.encoder.widths[-1]
    ours = 0 if profile.graph.own_features == "alone" else profile.graph.descriptor_dimensions + embedding
    dimensions = ours + sizes.own_features + (embedding if any(r.phases for r in profile.rounds) else 0)
    # Fixed, weighted and, with a network, joined features, and one copy while they are joined or searched.
    features = (4 if any(r.phases for r in profile.rounds) else 3) * rows * dimensions * 4
    # Two directions of each edge, as coordinates and compressed, while they are sorted.
    graph = N * profile.graph.neighbours * (2 * 20 * 4 + 12)
    beliefs = 8 * rows * sizes.classes * 4
    # While the pool is covered, each image's similarity to each label and pick.
    covering = 2 * N * min(profile.budget, 4 * sizes.classes + 100) * 4
    widest = profile.encoder.widths[0] if profile.encoder.backbone == "oriented" else 64
    quarter = 4 if profile.encoder.backbone == "oriented" else 1
    batch = 3 * max(profile.pretrain.batch, profile.finetune.batch)
    trains = profile.pretrain.epochs > 0 or any(r.phases for r in profile.rounds)
    training = trains * batch * h * w // quarter * widest * 4 * _TRAINING_MAPS
    described = 0 if profile.graph.own_features == "alone" else min(N, _DESCRIBED) * h * w * _DESCRIBED_BYTES
    evaluated_bytes = _EVALUATED_BYTES + _CHANNEL_BYTES * widest * (4 // quarter)
    # Training and evaluation run in the same threads and find each other's memory.
    networks = max(training, min(max(N, sizes.test), _EVALUATED) * h * w * evaluated_bytes)
    # A large pool has an index of the keys' leading axes instead, and one more copy of these.
    whole_search = _SEARCH_COPIES * min(N * min(_SEARCHED, N), SEARCH_NUMBERS) * 4
    search = whole_search if N <= SEARCHED_WHOLE else N * _INDEXED_BYTES
    parts = (images, resizing, described, networks, features, graph, max(beliefs, covering), search)
    return int(_LIBRARIES + sum(parts))


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that is free for this process: the device's, or the machine's within its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [size for size in (_free_in_machine(), _free_in_container()) if size is not None]
    return min(found) if found else None


def _free_in_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _free_in_container() -> int | None:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = next(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return int(limit) - int(used) + cached
    except (OSError, ValueError, StopIteration):
        return None


def require_memory(sizes: Sizes, profile: Profile, device: torch.device) -> None:
    """State what a run will need and what there is.

    Raises:
        ConfigError: it does not fit.
    """
    needed, available = needed_bytes(sizes, profile), available_bytes(device)
    there = "" if available is None else f", {available / _GIB:.1f} GB free"
    log.info("memory: about %.1f GB needed%s", needed / _GIB, there)
    if available is not None and needed > available:
        raise ConfigError(
            f"a pool of {sizes.pool:,} images of {sizes.height}x{sizes.width} pixels in {sizes.classes} classes needs "
            f"about {needed / _GIB:.1f} GB of memory with profile {profile.name}, and {available / _GIB:.1f} GB are "
            "free; prepare fewer or smaller images (`prepare --size`), give a smaller --working-size, choose a smaller "
            "profile, or use a machine with more memory"
        )
