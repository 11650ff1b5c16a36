"""Put several runs on one page: accuracies by number of labels, results, times, and the queries that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer.errors import ConfigError, DataError
from trainer.records.files import replace_file
from trainer.records.progress import read_stages
from trainer.records.run_records import RoundRecord, RunResult, read_queries, read_result, read_rounds
from trainer.run import session
from trainer.run.report import evaluated_accuracies, is_calibrated, own_estimates, page_environment
from trainer.run.report_charts import SERIES_COLOURS, draw_accuracies

# More lines than these colours would not be told apart.
MOST_RUNS = len(SERIES_COLOURS)


@dataclass(frozen=True)
class _Compared:
    """What the page shows of one run; `letter` names its lines in the chart."""

    letter: str
    folder: Path
    config: session.RunConfig
    images: str
    result: RunResult | None
    rounds: tuple[RoundRecord, ...]
    asked: frozenset[int]
    total_s: float
    calibrated: bool

    @property
    def strategy(self) -> str:
        return self.config.profile.strategy

    @property
    def estimate(self) -> RoundRecord | None:
        """The newest round with an estimate of the run's own."""
        return next((each for each in reversed(self.rounds) if each.estimated_accuracy is not None), None)


def write_comparison(folders: Sequence[Path], page: Path) -> Path:
    """Write one page about several runs, finished or not; return its path.

    Raises:
        ConfigError: There are too few or too many runs.
        DataError: A folder holds no run, its records are damaged, or the runs have different images.
        RecordsUnwritable: The page cannot be written.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise ConfigError(f"give two to {MOST_RUNS} runs to compare, not {len(folders)}")
    runs = [_read(letter, folder) for letter, folder in zip("ABCDEFGH", folders, strict=False)]
    for run in runs[1:]:
        if run.images != runs[0].images:
            raise DataError(f"{run.folder} and {runs[0].folder} are runs over other images; compare runs over the same")
    series = []
    for run, colour in zip(runs, SERIES_COLOURS, strict=False):
        series.append(own_estimates(run.rounds, f"{run.letter}: own estimate", colour, calibrated=run.calibrated))
        series.append(evaluated_accuracies(run.result, f"{run.letter}: test accuracy", colour))
    drawn = [one for one in series if one.points]
    svg = draw_accuracies(drawn, "Accuracy by number of labels")
    shared = [[len(one.asked & other.asked) for other in runs] for one in runs]
    replace_file(
        page,
        page_environment()
        .get_template("compare.html")
        .render(
            runs=runs,
            chart=None if svg is None else {"series": drawn, "svg": svg},
            shared=shared,
            written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        ),
    )
    return page


def _read(letter: str, folder: Path) -> _Compared:
    if not (folder / session.CONFIG_FILE).is_file():
        raise DataError(f"{folder} holds no run; name folders that `python -m trainer run --out` has made")
    config, result = session.read_config(folder), read_result(folder)
    stages = read_stages(folder) if result is None else result.stage_seconds
    return _Compared(
        letter,
        folder,
        config,
        config.images,
        result,
        tuple(read_rounds(folder)),
        frozenset(query.id for query in read_queries(folder)),
        sum(stages.values()),
        is_calibrated(folder),
    )
