"""OUT/pool-map.npz: a map of the pool for the report, with the class that each image is believed to have."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.learning.device import generator_for
from trainer.learning.projection import project
from trainer.records.files import read_file, replace_file
from trainer.run.active_loop import LearnedState

_FILE = "pool-map.npz"
# Images beside the queried ones: enough to show the groups, few enough for seconds.
_DRAWN = 5_000


@dataclass(frozen=True)
class PoolMap:
    """A part of the pool on a plane.

    Attributes:
        ids: int64 [P], rows of the pool; all queried images are among them.
        places: float32 [P, 2].
        classes: int64 [P], the most probable class of each.
    """

    ids: npt.NDArray[np.int64]
    places: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


def write_pool_map(out: Path, learned: LearnedState, asked: list[int], seed: int) -> None:
    """Lay out the queried images and some thousand others by the joint features, and keep them in OUT.

    Raises:
        RecordsUnwritable: the file cannot be written.
    """
    features = learned.model.features
    generator = generator_for(torch.device("cpu"), seed, "map", learned.labels)
    others = torch.randperm(len(features), generator=generator)[:_DRAWN]
    ids = torch.cat([torch.tensor(asked, dtype=torch.long), others]).unique().to(features.device)
    places = project(features[ids], generator_for(features.device, seed, "map places", learned.labels))
    content = io.BytesIO()
    np.savez_compressed(
        content,
        ids=ids.cpu().numpy(),
        places=places.cpu().numpy().astype(np.float32),
        classes=learned.beliefs[ids].argmax(1).cpu().numpy(),
    )
    replace_file(out / _FILE, content.getvalue())


def read_pool_map(out: Path) -> PoolMap | None:
    """Read the map; None before there is one.

    Raises:
        DataError: the file is damaged.
    """
    return read_file(out / _FILE, _parse, "is damaged; remove it, the report can do without")


def _parse(content: bytes) -> PoolMap:
    try:
        # Without pickled objects, which could run code.
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            pool_map = PoolMap(arrays["ids"], arrays["places"], arrays["classes"])
    except (KeyError, EOFError, OSError) as error:
        raise ValueError("no map") from error
    if pool_map.places.shape != (len(pool_map.ids), 2) or pool_map.classes.shape != pool_map.ids.shape:
        raise ValueError("its arrays do not fit together")
    return pool_map
