"""`make leaderboard` compares strategies, the user's included, by real runs; it resumes, and survives a broken one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.errors import RunError
from scripts.options import LeaderboardOptions, read_options
from scripts.study import leaderboard
from scripts.study.tables import ArmResults, Point, RecordResults, RunResults
from tests.support.datasets import make_idx_dataset

ROOT = Path(__file__).parents[2]
FIRST = "def select(state, batch, generator):\n    return state.free[:batch]\n"


def compare(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the tiny profile."""
    given = [f"DATA={folder / 'data'}", f"RUNS={folder / 'runs'}", "SEEDS=1", *words]
    command = [sys.executable, "-m", "tests.support.tiny_run", "leaderboard", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_strategies_are_compared_and_a_broken_one_costs_only_its_row(tmp_path: Path) -> None:
    """A good one and one that raises: a table, a picture, exit code 88. Mended, its run is made, the other checked."""
    make_idx_dataset(tmp_path / "data", pool=200, test=50, classes=3, side=12)
    mine = tmp_path / "mine.py"
    mine.write_text(FIRST.replace("return", "raise ValueError('oh no')\n    return"))
    words = f"STRATEGIES=random {mine}", "ROUNDS=3,6"
    done = compare(tmp_path, *words)
    assert done.returncode == 88, done.stdout + done.stderr
    assert "raised ValueError: oh no (mine.py, line 2)" in done.stderr
    assert "mine.py (" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    (record,) = (path.parent for path in (tmp_path / "runs").glob("*/leaderboard.md"))
    page = (record / "leaderboard.md").read_text()
    assert "| strategy | 3 labels | 6 labels | difference |" in page
    assert "`random`" in page and "mine.py" not in page
    assert (record / "leaderboard.svg").read_text().count("<svg") == 1
    mine.write_text(FIRST)
    done = compare(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("holds a finished run; checking it again") == 1
    pages = [path.read_text() for path in (tmp_path / "runs").glob("*/leaderboard.md")]
    assert sorted("mine.py (" in text for text in pages) == [False, True]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["STRATEGIES=margin margin"], "names one of them twice"),
        (["STRATEGIES=margin no-such"], "there is no query strategy 'no-such'"),
        (["STRATEGIES=margin ./no-such.py"], r"no-such\.py cannot be read"),
        (["PROFILE=no-such"], "there is no profile 'no-such'"),
        (["ROUNDS=40,20"], "rounds must be ascending"),
        (["ROUNDS=40", "BUDGET=40"], "leave the budget out"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_run(words: list[str], sentence: str) -> None:
    """In one sentence."""
    with pytest.raises(RunError, match=sentence):
        leaderboard.study_of(read_options(LeaderboardOptions, words))


def results_of(**accuracies: list[int]) -> RecordResults:
    """Make results of 1,000 test images at 100 labels, seed by seed."""
    arms = [
        ArmResults(name, tuple(RunResults(seed, (Point(100, right, 1000, 0.0),), "", 0, 0, "") for seed, right in
                               enumerate(rights, 1)), "graph")
        for name, rights in accuracies.items()
    ]  # fmt: skip
    return RecordResults("Leaderboard", tuple(arms))


def test_the_best_comes_first_and_differences_are_paired(tmp_path: Path) -> None:
    """Seeds differ much and strategies little: the interval is that of the differences, not of the accuracies."""
    results = results_of(margin=[700, 800, 900], mine=[710, 812, 908])
    rows = [line for line in leaderboard.render(results).splitlines() if line.startswith("| 1") or "| 2" in line[:3]]
    assert rows[0].startswith("| 1 | `mine` | 81.00 ± 9.90 (3) | +1.00 (+0.50 to +1.50) |")
    assert rows[1].startswith("| 2 | `margin` | 80.00 ± 10.00 (3) |")
    leaderboard.draw(results, tmp_path / "a.svg")
    leaderboard.draw(results, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
