"""Query strategies from outside this package: a file, a function of an installed package, or one of scikit-activeml.

    ./mine.py                   the function `select` of a file (./mine.py:other names another one)
    package.module:function     a function that Python can import
    skactiveml:ProbCover        a class of `skactiveml.pool`, by the adapter in `activeml.py`

Nothing of a plug-in is loaded before it is asked for. It is known by the SHA-256 of its file (of scikit-activeml: of
its version), and what it returns is checked before anything is asked. A plug-in is somebody's code and runs with the
rights of the trainer; a look at `PoolState` gives it no label that was not paid for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from trainer.acquisition import STRATEGIES, Strategy, strategy_named, unknown_strategy
from trainer.acquisition.state import PoolState
from trainer.errors import ConfigError, StrategyFailed

_ACTIVEML = ("activeml", "skactiveml", "skactiveml.pool")
_DEFAULT_FUNCTION = "select"
# Characters of a SHA-256 that name a version of a plug-in to people.
_SHORT = 12
# Characters of a plug-in's own error that are repeated.
_LONGEST_REASON = 200


@dataclass(frozen=True)
class QueryStrategy:
    """A strategy that is ready to choose.

    Attributes:
        name: as given on the command line.
        select: the function.
        sha256: of a plug-in's content; None for a strategy of this package.
    """

    name: str
    select: Strategy
    sha256: str | None = None

    @property
    def title(self) -> str:
        """The name that each query is recorded with; a plug-in's has its version."""
        return self.name if self.sha256 is None else f"{self.name}@{self.sha256[:_SHORT]}"

    def choose(self, state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
        """Choose up to `batch` unlabelled images, int64, most wanted first, none twice.

        Raises:
            StrategyFailed: the function raised, changed the state, or returned anything else.
        """
        if self.sha256 is None:
            return self.select(state, batch, generator)
        before = _versions(state)
        try:
            with _seeded(generator.initial_seed()):
                answer = self.select(state, batch, generator)
        except StrategyFailed:
            raise
        # SystemExit too: a plug-in must not end a run without a word.
        except (Exception, SystemExit) as error:
            raise StrategyFailed(f"the query strategy {self.name} raised {_describe(error)}") from error
        after = _versions(state)
        changed = [name for name, version in before.items() if after[name] != version]
        if changed:
            raise StrategyFailed(f"the query strategy {self.name} changed state.{changed[0]}, which it may only read")
        picks = _indices(answer)
        fault = picks if isinstance(picks, str) else _fault_of(picks, state, min(batch, len(state.free)))
        if fault is not None:
            raise StrategyFailed(f"the query strategy {self.name} returned {fault}")
        assert isinstance(picks, Tensor)
        return picks.to(state.labelled.device)


def load_strategy(name: str) -> QueryStrategy:
    """Load a strategy by its name, file, or package.module:function.

    Raises:
        ConfigError: there is no such strategy, file, module or function.
        StrategyFailed: its code cannot be loaded.
    """
    if name in STRATEGIES:
        return QueryStrategy(name, strategy_named(name))
    sha256 = identity_of(name)
    place, _, function = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    if place in _ACTIVEML:
        from trainer.acquisition.activeml import adapt

        return QueryStrategy(name, adapt(function, name), sha256)
    try:
        module = _load_file(Path(place), sha256) if place.endswith(".py") else import_module(place)
    except (Exception, SystemExit) as error:
        raise StrategyFailed(f"the query strategy {name} cannot be loaded: {_describe(error)}") from error
    select = getattr(module, function or _DEFAULT_FUNCTION, None)
    if not callable(select):
        raise ConfigError(
            f"{place} has no function {function or _DEFAULT_FUNCTION}; a query strategy is "
            "select(state, batch, generator)"
        )
    return QueryStrategy(name, select, sha256)


def identity_of(name: str) -> str | None:
    """Compute the SHA-256 of a plug-in's content without running it; None for a strategy of this package.

    Raises:
        ConfigError: there is no such strategy, file or module.
    """
    if name in STRATEGIES:
        return None
    place = name if name.endswith(".py") else name.rpartition(":")[0]
    if place in _ACTIVEML:
        try:
            version = importlib.metadata.version("scikit-activeml")
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                f"{name} needs scikit-activeml; install it with `pip install 'labelmeter[activeml]'`"
            ) from error
        return hashlib.sha256(f"scikit-activeml {version} {name}".encode()).hexdigest()
    if not place:
        raise unknown_strategy(name)
    path = Path(place) if place.endswith(".py") else _file_of(place, name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"the query strategy {path} cannot be read ({error.strerror}); name a file") from error


def _file_of(module: str, name: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        raise ConfigError(f"there is no module {module}, which the query strategy {name} names")
    return Path(spec.origin)


def _load_file(path: Path, sha256: str | None) -> ModuleType:
    """Run a file as a module of its own; files beside it can be imported, and hide nothing that is installed."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    title = f"strategy_{path.stem}_{str(sha256)[:_SHORT]}"
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, and put them back: a resumed run must choose the same images."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _versions(state: PoolState) -> dict[str, int]:
    """Return how often each tensor of a state was written in place."""
    return {name: value._version for name, value in vars(state).items() if isinstance(value, Tensor)}


def _describe(error: BaseException) -> str:
    """Name an error and the line of the plug-in that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__) and "importlib" not in frame.filename]
    line = getattr(error, "lineno", None) or (own[-1].lineno if own else None)
    file = getattr(error, "filename", None) or (own[-1].filename if own else "")
    where = f" ({Path(str(file)).name}, line {line})" if line and file else ""
    text = str(error.args[0] if isinstance(error, SyntaxError) and error.args else error)
    # Some libraries print their arguments, which may be the whole pool.
    first = text.partition("\n")[0]
    first = first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]}…"
    return f"{type(error).__name__}{f': {first}' if first else ''}{where}"


def _indices(answer: object) -> Tensor | str:
    """Read what a plug-in returned (a tensor, an array, a list) as indices, or say what is wrong with it."""
    try:
        values = answer.detach().cpu() if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))
    except (TypeError, ValueError, RuntimeError):
        return f"{type(answer).__name__}, where it must return the numbers of images"
    if values.ndim != 1:
        return f"an array of shape {tuple(values.shape)}, where it must return one row of numbers"
    if values.is_floating_point() and len(values):
        what = "numbers that are not finite (NaN)" if not bool(values.isfinite().all()) else f"{values.dtype} numbers"
        return f"{what}, where the numbers of images are integers"
    if values.dtype == torch.bool or values.is_complex():
        return f"{values.dtype} values, where the numbers of images are integers"
    return values.long()


def _fault_of(picks: Tensor, state: PoolState, wanted: int) -> str | None:
    """Say what is wrong with a choice of images; None if it is as promised."""
    if len(picks) != wanted:
        return f"{len(picks)} images where {wanted} were asked for"
    outside = picks[(picks < 0) | (picks >= len(state.labelled))]
    if len(outside):
        return f"image {int(outside[0])}, and the pool has images 0 to {len(state.labelled) - 1}"
    values, counts = picks.unique(return_counts=True)
    if bool((counts > 1).any()):
        return f"image {int(values[counts > 1][0])} more than once"
    paid = picks[state.labelled.cpu()[picks]]
    return f"image {int(paid[0])}, whose label is paid for already" if len(paid) else None
