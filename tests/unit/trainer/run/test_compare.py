"""Several runs on one page."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.trainer.run.test_report import finished_run, queries, read, result
from trainer.cli import app
from trainer.errors import ConfigError, DataError
from trainer.profiles import profile_named
from trainer.records.run_records import PointResult, RoundRecord, append_queries, append_round, write_result
from trainer.run.compare import write_comparison
from trainer.run.session import RunConfig, begin_or_resume


def begun(out: Path, seed: int, images: str = "f" * 64) -> Path:
    """Begin a run in a folder."""
    begin_or_resume(out, RunConfig(profile=profile_named("cpu"), seed=seed, images=images), resume=False)
    return out


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A finished run and one in its first round."""
    first, second = begun(tmp_path / "a", 1), begun(tmp_path / "b", 2)
    finished_run(first)
    ended = result()
    write_result(
        first,
        ended.model_copy(update={"points": (PointResult(labels=60, evaluation=ended.evaluation, stage_seconds={}),)}),
    )
    append_round(first, RoundRecord(round=1, labels=40, estimated_accuracy=0.875, estimate_error=0.01))
    append_queries(second, queries(20))
    return [first, second]


def test_two_runs_stand_side_by_side(two: list[Path], tmp_path: Path) -> None:
    """Accuracy, estimate, strategy, seed, and how many queries they share; a run that has not ended says so."""
    page = read(write_comparison(two, tmp_path / "page.html"))
    text = " ".join(page.text.split())
    assert "A: own estimate" in text and "A: test accuracy" in text and "B: " not in text
    assert "90.12% 87.5%" in text.replace("90.12%87.5%", "90.12% 87.5%")
    assert "not yet" in text and "uncertain-clusters" in text
    assert "60" in text and "20" in text
    assert not {"script", "link", "img"} & {tag for tag, _ in page.tags}


def test_runs_that_cannot_be_compared_are_refused(two: list[Path], tmp_path: Path) -> None:
    """One run, five runs, no run, other images: one sentence each, and no page."""
    page = tmp_path / "page.html"
    for several in (two[:1], two[:1] * 5):
        with pytest.raises(ConfigError, match="two to 4 runs"):
            write_comparison(several, page)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no run"):
        write_comparison([two[0], tmp_path / "empty"], page)
    with pytest.raises(DataError, match="other images"):
        write_comparison([two[0], begun(tmp_path / "c", 1, "e" * 64)], page)
    assert not page.exists()


def test_the_command_names_the_page(two: list[Path], tmp_path: Path) -> None:
    """`python -m trainer compare A B --to PAGE`, and its exit code for a folder without a run."""
    page = tmp_path / "page.html"
    # One as `make run` keeps it.
    two[1].rename(tmp_path / "trainer")
    made = two[1]
    made.mkdir()
    (tmp_path / "trainer").rename(made / "trainer")
    done = CliRunner().invoke(app, ["compare", *map(str, two), "--to", str(page)])
    assert done.exit_code == 0 and str(page) in done.stdout and page.is_file()
    done = CliRunner().invoke(app, ["compare", str(two[0]), str(tmp_path / "no"), "--to", str(page)])
    assert done.exit_code == 65 and done.stderr.startswith("error: ") and "holds no run" in done.stderr
