"""Tell how the work goes: the log file, the console, progress bars, time by stage, metrics.

    OUT/trainer.log        everything, one line each, appended over resumes
    OUT/stages.json        wall seconds by stage, over resumes
    OUT/metrics.jsonl      and OUT/tensorboard/: training metrics

On a terminal a bar shows the time left; elsewhere (a container, a pipe) at most a line every half minute.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from trainer.errors import DataError, RecordsUnwritable
from trainer.records.files import replace_file
from trainer.records.run_records import MetricRecord, append_metric, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "trainer.log"
STAGES_FILE = "stages.json"
TENSORBOARD_FOLDER = "tensorboard"

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_SECONDS_BY_STAGE = TypeAdapter(dict[str, float])


class _ConsoleHandler(logging.Handler):
    """Write short lines to stderr, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _ConsoleFormatter(logging.Formatter):
    """The bare message; from warnings on with the level before it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class LoggingSession:
    """The trainer's log handlers while they are installed; close it, or use it as a context manager."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        self._handlers = handlers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove and close the handlers; a second call does nothing."""
        while self._handlers:
            handler = self._handlers.pop()
            logging.getLogger("trainer").removeHandler(handler)
            handler.close()


def setup_logging(out_dir: Path, verbose: bool = False) -> LoggingSession:
    """Log the trainer to OUT/trainer.log and, shorter, to stderr.

    Args:
        out_dir: The run's folder; made when missing.
        verbose: Show debug lines on the console too; the file has them always.

    Raises:
        RecordsUnwritable: The log file cannot be opened.
    """
    path = out_dir / LOG_FILE
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise RecordsUnwritable(f"{path} cannot be written ({error.strerror}); choose another --out.") from error
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    to_file.setFormatter(formatter)
    to_console = _ConsoleHandler(logging.DEBUG if verbose else logging.INFO)
    to_console.setFormatter(_ConsoleFormatter("%(message)s"))
    root = logging.getLogger("trainer")
    root.setLevel(logging.DEBUG)
    handlers = [to_file, to_console]
    for handler in handlers:
        root.addHandler(handler)
    return LoggingSession(handlers)


def progress(
    iterable: Iterable[_T],
    total: int | None,
    description: str,
    *,
    line_every_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_T]:
    """Yield from an iterable and show how far it is.

    Args:
        iterable: What is worked through.
        total: How many there are, None if nobody knows.
        description: Name of the work, such as `pretrain epoch 3`.
        line_every_s: Where stderr is no terminal: shortest time between two lines in the log. Shorter work is silent.
        clock: Seconds that only grow.
    """
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=description, leave=False, dynamic_ncols=True)
        return
    began = told = clock()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = clock()
        if now - told >= line_every_s:
            told = now
            logger.info("%s: %s", description, _how_far(done, total, now - began))


def _how_far(done: int, total: int | None, elapsed_s: float) -> str:
    """Say how far the work is and how long it will take."""
    if not total:
        return f"{done} done in {duration(elapsed_s)}"
    left_s = elapsed_s / done * max(0, total - done)
    return f"{100 * done / total:.0f}% ({done} of {total}), {duration(left_s)} left"


def duration(seconds: float) -> str:
    """Write seconds for people: 12 s, 3 min 5 s, 2 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class StageClock:
    """Wall seconds by stage, added up over resumes and kept in OUT/stages.json.

    A stage inside another one stops the outer's clock, so the seconds add up to the whole. `save` at every
    checkpoint: what a kill takes away is then the time since, like the work.
    """

    def __init__(self, out_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Go on from what stages.json holds.

        Raises:
            DataError: The file is damaged.
        """
        self._path = out_dir / STAGES_FILE
        self._clock = clock
        self._seconds = read_stages(out_dir)
        self._running: list[str] = []
        self._since = clock()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage up to now, in the order in which the stages first ran."""
        self._book()
        return dict(self._seconds)

    @property
    def total_s(self) -> float:
        """Seconds of all stages up to now."""
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block to a stage, and save it at the end, also after an error.

        Raises:
            RecordsUnwritable: stages.json cannot be written.
        """
        self._book()
        self._running.append(name)
        self._seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._book()
            self._running.pop()
            self.save()

    def save(self) -> None:
        """Write stages.json, the running stage's time so far included.

        Raises:
            RecordsUnwritable: It cannot be written.
        """
        self._book()
        rounded = {name: round(seconds, 3) for name, seconds in self._seconds.items()}
        replace_file(self._path, _SECONDS_BY_STAGE.dump_json(rounded, indent=2).decode() + "\n")

    def _book(self) -> None:
        """Add the time since the last booking to the innermost running stage."""
        now = self._clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now


def read_stages(out_dir: Path) -> dict[str, float]:
    """Read stages.json: seconds by stage, empty when there is none.

    Raises:
        DataError: The file is damaged.
    """
    path = out_dir / STAGES_FILE
    try:
        return _SECONDS_BY_STAGE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is damaged; remove it, which costs the times of former sessions.") from error


class MetricWriter:
    """Write metrics to metrics.jsonl and to TensorBoard. Close it, or use it as a context manager."""

    def __init__(self, out_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Go on after the metrics that are there; `wall_s` continues from the last one's.

        Raises:
            DataError: metrics.jsonl is damaged.
        """
        self._out_dir = out_dir
        self._clock = clock
        former = read_metrics(out_dir)
        self._began = clock() - max((record.wall_s for record in former), default=0.0)
        self._board: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, stage: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write the metrics of one step.

        Args:
            stage: Such as `pretrain`; TensorBoard groups by it.
            step: Optimiser steps within the stage.
            epoch: Passes over the data within the stage, fractions allowed.
            values: Metric names and values.

        Raises:
            RecordsUnwritable: metrics.jsonl cannot be written.
        """
        wall_s = self._clock() - self._began
        record = MetricRecord(stage=stage, step=step, epoch=epoch, wall_s=round(wall_s, 3), values=dict(values))
        append_metric(self._out_dir, record)
        board = self._open_board()
        for name, value in values.items():
            board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write out what TensorBoard holds back, and close; a later write opens a new event file."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _open_board(self) -> SummaryWriter:
        """Open TensorBoard's writer at the first metric: its import takes seconds, and `--help` must not."""
        if self._board is None:
            # TensorBoard prefers an installed TensorFlow, which prints pages of its own at import.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._out_dir / TENSORBOARD_FOLDER))
        return self._board
