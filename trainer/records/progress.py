"""Progress of the work: log file and console, progress bars, time by stage, metrics.

    OUT/trainer.log        all messages, appended over resumes
    OUT/stages.json        wall seconds by stage, over resumes
    OUT/metrics.jsonl      and OUT/tensorboard/: training metrics

A terminal shows a bar with the time left. Elsewhere (a container, a pipe) there is at most a line every half minute.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter
from tqdm import tqdm

from trainer.errors import RecordsUnwritable, printable
from trainer.records.files import read_file, replace_file
from trainer.records.run_records import MetricRecord, append_metric, read_metrics

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.utils.tensorboard import SummaryWriter

    from trainer.records.tracking import Tracker

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


class _Formatter(logging.Formatter):
    """A line for each message, and an indented one for each line of a traceback, in printable characters.

    A message may repeat what the label service sent: it must not move a cursor or look like another message.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the standard library's
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - the standard library's own signature
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))


class _ConsoleFormatter(_Formatter):
    """The message alone; warnings and errors begin with their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


@contextmanager
def setup_logging(out_dir: Path, verbose: bool = False) -> Iterator[None]:
    """Log the trainer to OUT/trainer.log and, shorter, to stderr, inside the `with` block.

    The file always has the debug lines, the console only if `verbose`.

    Raises:
        RecordsUnwritable: The log file cannot be opened.
    """
    path = out_dir / LOG_FILE
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise RecordsUnwritable(f"{path} cannot be written ({error.strerror}); choose another --out.") from error
    formatter = _Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    to_file.setFormatter(formatter)
    to_console = _ConsoleHandler(logging.DEBUG if verbose else logging.INFO)
    to_console.setFormatter(_ConsoleFormatter("%(message)s"))
    root = logging.getLogger("trainer")
    root.setLevel(logging.DEBUG)
    handlers: list[logging.Handler] = [to_file, to_console]
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def progress(
    iterable: Iterable[_T],
    total: int,
    description: str,
    *,
    line_every_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_T]:
    """Yield the `total` items of an iterable and show the progress, described as `pretrain 3/100` for example.

    Where stderr is no terminal, there are `line_every_s` seconds between two lines, and shorter work is silent. Where
    logging is disabled, nothing is shown.
    """
    if not logger.isEnabledFor(logging.CRITICAL):
        yield from iterable
        return
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=description, leave=False, dynamic_ncols=True)
        return
    began = logged = clock()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = clock()
        if now - logged >= line_every_s:
            logged = now
            left = duration((now - began) / done * (total - done))
            logger.info("%s: %.0f%% (%d of %d), %s left", description, 100 * done / total, done, total, left)


@contextmanager
def overall_line() -> Iterator[Callable[[str], None]]:
    """Show one line about the whole work above the bar of the moment, inside the `with` block.

    Where stderr is no terminal, a line that differs in more than its end (the time left) is logged.

    Yields:
        A function that shows a line, such as `round 4 of 12, 214 of 400 labels, 21 min left`.
    """
    if sys.stderr.isatty():
        with tqdm(total=0, bar_format="{desc}", leave=False, dynamic_ncols=True) as line:
            yield lambda text: line.set_description_str(text)
        return
    shown: str | None = None

    def log_line(text: str) -> None:
        nonlocal shown
        place = text.rpartition(", ")[0] if text.endswith(" left") else text
        if place != shown:
            shown = place
            logger.info("%s", text)

    yield log_line


def duration(seconds: float) -> str:
    """Write seconds for people: `17 s`, `5 min 8 s`, `2 h 7 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class StageClock:
    """Wall seconds by stage, added up over resumes and kept in OUT/stages.json.

    A nested stage pauses the outer one, so the seconds add up to the total. Call `save` with each checkpoint: a kill
    then loses the time since the checkpoint, as it loses the work since then.
    """

    def __init__(self, out_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Continue from stages.json.

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
        """Seconds by stage so far, in the order in which the stages first ran."""
        self._book()
        return dict(self._seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block as a stage, and save it at the end, also after an error.

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
        """Write stages.json, with the running stage's time so far.

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
    damage = "is damaged; remove it, which costs the times of former sessions."
    return read_file(out_dir / STAGES_FILE, _SECONDS_BY_STAGE.validate_json, damage) or {}


class MetricWriter(AbstractContextManager["MetricWriter", None]):
    """Write metrics to metrics.jsonl, to TensorBoard, and to a tracker if there is one.

    Close it, or use it as a context manager.
    """

    def __init__(
        self, out_dir: Path, clock: Callable[[], float] = time.monotonic, tracker: Tracker | None = None
    ) -> None:
        """Continue after the metrics in the folder; `wall_s` continues from the last one.

        Raises:
            DataError: metrics.jsonl is damaged.
        """
        self._out_dir = out_dir
        self._clock = clock
        former = read_metrics(out_dir)
        self._began = clock() - max((record.wall_s for record in former), default=0.0)
        self._board: SummaryWriter | None = None
        self._tracker = tracker

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, stage: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write the metrics of one step; step and epoch (a fraction, maybe) are counted within the stage.

        Raises:
            RecordsUnwritable: metrics.jsonl cannot be written.
        """
        wall_s = self._clock() - self._began
        record = MetricRecord(stage=stage, step=step, epoch=epoch, wall_s=round(wall_s, 3), values=dict(values))
        append_metric(self._out_dir, record)
        self.write_point(stage, step, values)

    def write_point(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Show values in TensorBoard and in the tracker alone: what other records keep already."""
        if self._tracker is not None:
            self._tracker.log({f"{stage}/{name}": value for name, value in values.items()}, step)
        board = self._open_board()
        for name, value in values.items():
            board.add_scalar(f"{stage}/{name}", value, step)

    def write_images(self, name: str, step: int, images: npt.NDArray[np.uint8]) -> None:
        """Show images [N, H, W] or [N, H, W, 3], uint8, in TensorBoard."""
        if len(images):
            colour = images if images.ndim == 4 else images[..., None]
            self._open_board().add_images(name, colour, step, dataformats="NHWC")

    def close(self) -> None:
        """Flush and close TensorBoard's event file; a later write opens a new one."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _open_board(self) -> SummaryWriter:
        """Open TensorBoard's writer at the first metric: its import takes seconds and loads PyTorch."""
        if self._board is None:
            # TensorBoard prefers an installed TensorFlow, which prints pages of its own at import.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._out_dir / TENSORBOARD_FOLDER))
        return self._board
