"""`make study`: run an experiment many times and collect the results in a record.

A study has arms (each a profile and a query strategy), and every arm is run with several seeds. Each run is a full
`make run`: fresh database, real HTTP, verified evidence. Arms that need the same pretrained weights share them. The
record is updated after each run and lists the finished ones, so the same command resumes a study, even in a fresh
clone; the folder of runs only holds work in progress.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts import files, processes
from scripts.errors import RunError
from scripts.options import StudyOptions, read_options
from scripts.run import CARD_FILE, Programs
from scripts.study import jobs, record_writer, records, verify_records
from scripts.study.jobs import Job, RunJob
from scripts.study.studies import Arm, Study, studies
from scripts.study.workspace import Workspace
from trainer.records.files import replace_file


@dataclass(frozen=True)
class PlannedRun:
    """A run that a study needs.

    Attributes:
        arm: the arm that it belongs to.
        seed: its seed.
        title: its name in messages.
        out: its results folder.
        weights: folder of the pretrained weights that it starts from, None if it needs none.
    """

    arm: Arm
    seed: int
    title: str
    out: Path
    weights: Path | None


def carry_out(
    study: Study, workspace: Workspace, programs: Programs, at_a_time: int = 1, only: Collection[str] | None = None
) -> None:
    """Make all runs that the record does not have yet.

    Args:
        study: which runs.
        workspace: where.
        programs: how they are made.
        at_a_time: how many runs at a time, each on its share of the cores.
        only: the names of the arms whose runs are made now, None for all.

    Raises:
        RunError: a run failed (the same command resumes it), or the record does not fit this study.
    """
    _have_data(workspace, programs)
    finished = _finished_runs(study, workspace, programs)
    finished |= _take_over(study, workspace, programs, finished)
    plan = _plan(study, workspace)
    missing = [planned for planned in plan if (planned.arm.name, planned.seed) not in finished]
    missing = [planned for planned in missing if only is None or planned.arm.name in only]
    if finished:
        there = len(plan) - len(missing)
        print(f"[study] {workspace.record} has {there} of {len(plan)} runs, with evidence that holds", flush=True)

    def record(planned: PlannedRun) -> None:
        _record(planned, study, workspace)

    jobs.work_through(at_a_time, missing, _RunMaker(workspace, programs, missing).make, record)


def _plan(study: Study, workspace: Workspace) -> list[PlannedRun]:
    """List the runs of a study: first all of the first arm, then the other arms seed by seed.

    So even an unfinished study has the result of the default, and compares the other arms over the same seeds.
    """
    first, *others = study.arms
    order = [(first, seed) for seed in first.seeds]
    seeds = dict.fromkeys(seed for arm in study.arms for seed in arm.seeds)
    order += [(arm, seed) for seed in seeds for arm in others if seed in arm.seeds]
    return [
        PlannedRun(
            arm,
            seed,
            title=f"run {number} of {len(order)}: {arm.name}, seed {seed}",
            out=workspace.runs / records.run_name(arm.name, seed),
            weights=workspace.weights_folder(arm, seed),
        )
        for number, (arm, seed) in enumerate(order, 1)
    ]


class _RunMaker:
    """Makes planned runs, from several threads; the first run that needs some weights pretrains them for all."""

    def __init__(self, workspace: Workspace, programs: Programs, planned: Sequence[PlannedRun]) -> None:
        self._workspace, self._programs = workspace, programs
        self._weights_locks = {run.weights: threading.Lock() for run in planned}
        self._port_lock = threading.Lock()
        self._ports: set[int] = set()

    def make(self, planned: PlannedRun, run_job: RunJob) -> None:
        """Make a run, and its weights if they are not there.

        Raises:
            RunError: one of the two did not end well.
        """
        if planned.weights is not None:
            with self._weights_locks[planned.weights]:
                if not (planned.weights / "encoder.pt").exists():
                    run_job(self._pretraining(planned, planned.weights))
        run_job(self._run(planned))

    def _pretraining(self, planned: PlannedRun, weights: Path) -> Job:
        command = [*self._programs.trainer, "pretrain", "--profile", planned.arm.profile, "--seed", str(planned.seed)]
        command += ["--data", str(self._workspace.data / "images"), "--out", str(weights), "--resume"]
        return Job(f"pretraining for seed {planned.seed}", tuple(command), weights, weights / "encoder.pt")

    def _run(self, planned: PlannedRun) -> Job:
        options = {
            "PROFILE": planned.arm.profile,
            "SEED": planned.seed,
            "STRATEGY": planned.arm.strategy,
            "BUDGET": planned.arm.budget,
            "ROUNDS": planned.arm.rounds,
            "PRETRAINED": planned.weights and planned.weights / "encoder.pt",
            "DATA": self._workspace.given_data,
            "OUT": planned.out,
            "PORT": self._choose_port(),
        }
        words = [f"{name}={value}" for name, value in options.items() if value is not None]
        result = planned.out / "trainer" / "result.json"
        return Job(planned.title, (*self._programs.run, *words), planned.out, result)

    def _choose_port(self) -> int:
        """Choose a free port that no other run was given: two services may look for one at the same moment."""
        with self._port_lock:
            while (port := processes.choose_port(0)) in self._ports:
                pass
            self._ports.add(port)
            return port


def _record(planned: PlannedRun, study: Study, workspace: Workspace) -> None:
    """Put a finished run into the record.

    Raises:
        RunError: the run was made with another configuration than today's, or its files contradict each other.
    """
    workspace.refuse_another_configuration(planned.out / "trainer", planned.arm)
    cores, pretraining_s = jobs.cores_of(planned.out), 0.0
    if planned.weights is not None:
        pretraining_s = float(sum(files.read_json(planned.weights / "stages.json").values()))
        pretrained_on = jobs.cores_of(planned.weights)
        cores = tuple(sorted({*cores, *pretrained_on})) if cores and pretrained_on else ()
    images = workspace.data / "images"
    record_writer.add(workspace.record, study, planned.arm, planned.seed, planned.out, images, pretraining_s, cores)


def _have_data(workspace: Workspace, programs: Programs) -> None:
    """Have the data prepared before the first run, because all read it."""
    data = workspace.data
    if (data / CARD_FILE).exists():
        return
    if workspace.given_data is not None:
        raise RunError(f"{data} is no prepared folder: make it one with `python -m label_service prepare`.", 2)
    processes.run_to_its_end("preparing the data", [*programs.service, "prepare", "--data", str(data)])


def _finished_runs(study: Study, workspace: Workspace, programs: Programs) -> set[tuple[str, int]]:
    """Return arm and seed of the runs that the record has, once all of it is verified.

    Raises:
        RunError: the record is damaged, belongs to another study, or has runs made with other settings than today's.
    """
    if not (workspace.record / records.RECORD_FILE).exists():
        return set()
    results = verify_records.verify_runs(workspace.record, programs.service)
    arms = {arm.name: arm for arm in study.arms}
    if results.title != study.title or any(arm.name not in arms for arm in results.arms):
        raise RunError(f"{workspace.record} is of another study ({results.title}): name another RECORD=.", 2)
    finished = {(arm.name, run.seed) for arm in results.arms for run in arm.runs}
    for name, seed in sorted(finished):
        workspace.refuse_another_configuration(records.folder_of(workspace.record, name, seed), arms[name])
    record_writer.renew(workspace.record)
    return finished


def _take_over(
    study: Study, workspace: Workspace, programs: Programs, finished: Collection[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Take missing runs over from the workspace's source, and return arm and seed of each.

    Raises:
        RunError: the source is no record, or does not verify.
    """
    taken: set[tuple[str, int]] = set()
    if workspace.source is None:
        return taken
    verify_records.verify_runs(workspace.source, programs.service)
    for run in records.recorded_runs(workspace.source):
        for arm in study.arms:
            seed = run.entry["seed"]
            if seed not in arm.seeds or (arm.name, seed) in finished or workspace.differences(run.folder, arm):
                continue
            record_writer.take_over(workspace.record, study, arm, run)
            print(f"[study] {arm.name}, seed {seed}: taken over from {workspace.source}", flush=True)
            taken.add((arm.name, seed))
    return taken


def main(arguments: Sequence[str], programs: Programs | None = None) -> int:
    """Carry a study out; every expected error is one sentence on standard error."""

    def work() -> None:
        options = read_options(StudyOptions, arguments)
        known = studies(options.seeds)
        if options.study not in known:
            raise RunError(f"there is no study {options.study}; choose one of {', '.join(known)}.", 2)
        runs = options.runs or Path("runs") / "studies" / options.study
        record = options.record or _record_folder(runs, options.study)
        workspace = Workspace(options.data, runs, record, options.take_from)
        carry_out(known[options.study], workspace, programs or Programs(), options.jobs)
        print(f"\nThe record is in {record}; `make verify-records` checks it.")

    return processes.exit_code_of("make study", work, "the same command goes on from here.")


def _record_folder(runs: Path, name: str) -> Path:
    """Return records/DATE_NAME, with the date on which the study was begun."""
    begun = runs / "begun.txt"
    if not begun.exists():
        replace_file(begun, f"{datetime.now(UTC):%Y-%m-%d}")
    return Path("records") / f"{begun.read_text(encoding='utf-8')}_{name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
