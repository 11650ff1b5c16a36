"""A copy of a run's numbers in MLflow or Weights & Biases, with the real packages where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.records.progress import MetricWriter
from trainer.records.tracking import TRACKING_FILE, open_tracker


@pytest.mark.filterwarnings("default")
def test_mlflow_gets_settings_metrics_and_report_and_a_resumed_run_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions of one run are one run there."""
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    out, report = tmp_path / "out", tmp_path / "report.html"
    report.write_text("<p>report</p>")
    for epoch, loss in enumerate((2.0, 1.5)):
        tracker = open_tracker("mlflow", out, "smoke seed 3", {"seed": 3})
        with MetricWriter(out, tracker=tracker) as metrics:
            metrics.write("pretrain", epoch, epoch + 1, {"loss": loss})
        tracker.close(report)
    (run,) = mlflow.tracking.MlflowClient().search_runs(["0"])
    assert run.info.run_name == "smoke seed 3" and run.data.params == {"seed": "3"}
    history = mlflow.tracking.MlflowClient().get_metric_history(run.info.run_id, "pretrain/loss")
    assert [(point.step, point.value) for point in history] == [(0, 2.0), (1, 1.5)]
    assert [file.path for file in mlflow.tracking.MlflowClient().list_artifacts(run.info.run_id)] == ["report.html"]


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_gets_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, so that nothing leaves this machine."""
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = open_tracker("wandb", tmp_path / "out", "smoke seed 3", {"seed": 3})
    tracker.log({"pretrain/loss": 2.0}, 1)
    tracker.close(tmp_path / "none.html")
    assert list(tmp_path.rglob("*.wandb")) and (tmp_path / "out" / TRACKING_FILE).read_text()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install, before any work."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"needs the package {name}: pip install"):
        open_tracker(name, tmp_path, "x", {})
    assert not (tmp_path / TRACKING_FILE).exists()
