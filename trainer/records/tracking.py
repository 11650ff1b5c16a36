"""Optional tracking of a run in MLflow or Weights & Biases; off unless `--track` names one.

A tracker gets what the records have: settings, metrics, accuracies and the report. It is a copy for people who watch
many runs; nothing reads it back, and the run needs none. Where it sends its copy is its own configuration
(`MLFLOW_TRACKING_URI`, `WANDB_MODE` and so on). Labels do not leave the folder but inside the report.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.errors import ConfigError
from trainer.records.files import read_file, replace_file

TrackerName = Literal["mlflow", "wandb"]
# Keeps the tracker's own id of the run, so that a resumed run goes on in it.
TRACKING_FILE = "tracking-id"


class Tracker(Protocol):
    """Where a copy of a run's numbers goes."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values of one step."""

    def close(self, report: Path) -> None:
        """End, with the report if it is there."""


def open_tracker(name: TrackerName, out: Path, title: str, settings: Mapping[str, object]) -> Tracker:
    """Begin to track a run, or go on.

    Args:
        name: of the tracker.
        out: the run's folder.
        title: what people see.
        settings: of the run.

    Raises:
        ConfigError: the tracker's package is not installed, or it cannot begin.
    """
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--track {name} needs the package {name}: pip install 'labelmeter[{name}]'") from error
    former = read_file(out / TRACKING_FILE, bytes.decode, "is damaged; remove it")
    try:
        tracker: _Mlflow | _Wandb = _TRACKERS[name](package, former, title, settings)
    except Exception as error:
        # Each tracker has errors of its own, which share no base.
        raise ConfigError(f"--track {name} cannot begin ({error}); correct its settings or leave it out") from error
    replace_file(out / TRACKING_FILE, tracker.run_id)
    return tracker


class _Mlflow:
    def __init__(self, mlflow: Any, former: str | None, title: str, settings: Mapping[str, object]) -> None:  # noqa: ANN401
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=former, run_name=None if former else title)
        self.run_id: str = run.info.run_id
        if former is None:
            mlflow.log_params(dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, report: Path) -> None:
        if report.is_file():
            self._mlflow.log_artifact(str(report))
        self._mlflow.end_run()


class _Wandb:
    def __init__(self, wandb: Any, former: str | None, title: str, settings: Mapping[str, object]) -> None:  # noqa: ANN401
        self._wandb = wandb
        self._run = wandb.init(
            project="labelmeter",
            name=title,
            id=former,
            resume="allow",
            config=dict(settings),
            settings={"silent": True},
        )
        self.run_id: str = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Its own steps count calls and only rise; ours go along as a value.
        self._run.log(dict(values) | {"step": step})

    def close(self, report: Path) -> None:
        if report.is_file():
            self._run.log({"report": self._wandb.Html(report.read_text(encoding="utf-8"))})
        self._run.finish()


_TRACKERS: dict[TrackerName, Any] = {"mlflow": _Mlflow, "wandb": _Wandb}
