"""`make leaderboard`: compare query strategies, your own included, under one budget and the same seeds.

A leaderboard is a study (`scripts.study`) with an arm for each strategy: each run is a full `make run` with verified
evidence, strategies share the pretrained weights of a seed, and the same command resumes. The first strategy is what
the others are compared with, seed by seed: what is alike in two runs of one seed drops out of their difference.

    RUNS/runs-SETTINGS/          the runs, by strategy and seed; a file of yours is known by its content
    RUNS/SETTINGS-STRATEGIES/    record.json and the runs' evidence, leaderboard.md, leaderboard.svg

An edited file is another strategy and is run anew; other runs are only checked again. A strategy that fails has no row,
and the others have theirs; the command then ends with the trainer's exit code for it.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import processes
from scripts.errors import RunError
from scripts.options import LeaderboardOptions, read_options
from scripts.run import Programs
from scripts.study import tables
from scripts.study.__main__ import carry_out
from scripts.study.records import read_results
from scripts.study.studies import Arm, Study
from scripts.study.tables import ArmResults, RecordResults
from scripts.study.workspace import Workspace
from trainer.acquisition.plugin import identity_of
from trainer.errors import StrategyFailed, TrainerError
from trainer.records.files import replace_file

TABLE_FILE, PICTURE_FILE = "leaderboard.md", "leaderboard.svg"


def study_of(options: LeaderboardOptions) -> Study:
    """Make an arm of each strategy.

    Raises:
        RunError: a strategy is named twice or cannot be found, or profile, rounds and budget do not fit.
    """
    names = [_name_of(strategy) for strategy in options.strategies]
    if len(set(names)) != len(names):
        raise RunError(f"STRATEGIES names one of them twice: {' '.join(options.strategies)}.", 2)
    arms = tuple(
        Arm(name, options.profile, options.seeds, strategy, options.budget, options.rounds)
        for name, strategy in zip(names, options.strategies, strict=True)
    )
    try:
        _ = [arm.full_profile for arm in arms]
    except TrainerError as error:
        raise RunError(f"{error}.", 2) from error
    return Study("Leaderboard of query strategies", arms)


def _name_of(strategy: str) -> str:
    """Name a strategy; that of a file has the beginning of its SHA-256, so that an edited file is another one."""
    try:
        sha256 = identity_of(strategy)
    except TrainerError as error:
        raise RunError(f"{error}.", 2) from error
    return strategy if sha256 is None else f"{strategy} ({sha256[:8]})"


def workspace_of(options: LeaderboardOptions, study: Study) -> Workspace:
    """Name the folders: runs are kept by what all of them share, the record by the strategies that it compares."""
    profile = study.arms[0].full_profile.model_copy(update={"strategy": ""})
    settings = (
        f"{options.profile}-{hashlib.sha256(f'{profile.model_dump_json()} {options.data}'.encode()).hexdigest()[:8]}"
    )
    compared = hashlib.sha256("\n".join(sorted(arm.name for arm in study.arms)).encode()).hexdigest()[:8]
    return Workspace(options.data, options.runs / f"runs-{settings}", options.runs / f"{settings}-{compared}")


def rank(results: RecordResults, labels: int) -> list[ArmResults]:
    """Sort the strategies by their mean accuracy after so many labels, the best first."""
    reached = [arm for arm in results.arms if arm.percent_at(labels)]
    return sorted(reached, key=lambda arm: -statistics.mean(arm.percent_at(labels).values()))


def render(results: RecordResults) -> str:
    """Write the page: rank, accuracies, differences from the first strategy with their 95% intervals."""
    first, last = results.arms[0], results.labels[-1]
    seeds = ", ".join(map(str, sorted(first.percent_at(last))))
    head = [f"{count:,} labels" for count in results.labels]
    lines = [
        f"# {results.title}",
        "",
        f"Test accuracy, percent: mean ± standard deviation (runs). Profile `{first.profile}`, seeds {seeds}. The last "
        f"column is the difference from `{first.name}` at {last:,} labels in points, over the same seeds: mean and 95% "
        "confidence interval (Student's t). An interval that holds zero shows no difference.",
        "",
        "| | strategy | " + " | ".join(head) + " | difference |",
        "|---:|---|" + "---:|" * (len(head) + 1),
    ]
    for place, arm in enumerate(rank(results, last), 1):
        cells = [tables.mean_and_sd(list(arm.percent_at(count).values())) for count in results.labels]
        other = arm is not first
        cells.append(tables.paired_difference(arm.percent_at(last), first.percent_at(last)) if other else "")
        lines.append(f"| {place} | `{arm.name}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"![Differences and accuracies]({PICTURE_FILE})"]) + "\n"


def draw(results: RecordResults, path: Path) -> None:
    """Draw each strategy's difference from the first, a point for each seed, and the accuracies by number of labels."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "labelmeter"
    from matplotlib import pyplot as plt

    first, last = results.arms[0], results.labels[-1]
    ranked = rank(results, last)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.6 + 0.5 * max(4, len(ranked))))
    reference = first.percent_at(last)
    for row, arm in enumerate(reversed(ranked)):
        own = arm.percent_at(last)
        differences = [own[seed] - reference[seed] for seed in sorted(own.keys() & reference.keys())]
        left.plot(differences, [row] * len(differences), "o", color="0.75", markersize=5)
        colour = "black" if arm is first else "tab:blue"
        mean = statistics.mean(differences)
        left.plot([mean], [row], "D", color=colour, markersize=6)
        if len(differences) > 1 and arm is not first:
            left.plot(tables.interval(differences), [row, row], "-", color=colour, linewidth=2)
    left.set_yticks(range(len(ranked)), [arm.name for arm in reversed(ranked)])
    left.axvline(0, color="0.6", linewidth=1, linestyle="--")
    left.set_xlabel(f"points above {first.name} at {last:,} labels\n(mean, 95% interval; grey: each seed)")
    left.grid(axis="x", color="0.92")
    for arm in ranked:
        means = [statistics.mean(arm.percent_at(count).values()) for count in results.labels]
        right.plot(results.labels, means, "o-", markersize=4, label=arm.name)
    right.set_xlabel("labels asked for")
    right.set_ylabel("test accuracy, %, mean")
    right.set_xticks(results.labels)
    right.grid(color="0.92")
    right.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _compare(study: Study, workspace: Workspace, programs: Programs, at_a_time: int) -> list[str]:
    """Make the runs, strategy by strategy; return the names of those that failed by themselves.

    Raises:
        RunError: a run failed for another reason, or the first strategy failed, with which all are compared.
    """
    failed = []
    for arm in study.arms:
        try:
            carry_out(study, workspace, programs, at_a_time, only=[arm.name])
        except RunError as error:
            if error.exit_code != StrategyFailed.exit_code or arm is study.arms[0]:
                raise
            print(f"[study] {arm.name} failed: {error}", flush=True)
            failed.append(arm.name)
    return failed


def main(arguments: Sequence[str], programs: Programs | None = None) -> int:
    """Compare; every expected error is one sentence on standard error."""

    def work() -> None:
        options = read_options(LeaderboardOptions, arguments)
        study = study_of(options)
        workspace = workspace_of(options, study)
        failed = _compare(study, workspace, programs or Programs(), options.jobs)
        results = read_results(workspace.record)
        page = render(results)
        replace_file(workspace.record / TABLE_FILE, page)
        draw(results, workspace.record / PICTURE_FILE)
        print(f"\n{page}\nIn {workspace.record}: {TABLE_FILE} has this table, {PICTURE_FILE} its picture.", flush=True)
        if failed:
            raise RunError(
                f"{' and '.join(failed)} failed, and the table has the runs that ended well; the reason stands above.",
                StrategyFailed.exit_code,
            )

    return processes.exit_code_of("make leaderboard", work, "the same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
