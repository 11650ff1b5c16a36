"""`make study`: many runs against real services, and what they add up to as a record.

A study has arms (a profile and a query strategy each) and every arm has seeds. Each run is what `make run` does: a
fresh database, real HTTP, verified evidence. Pretrained weights are made once for each seed and used by every arm that
wants the same. The record is renewed as each run ends, and says which are finished: the same command goes on with the
others, in a fresh clone too. The folder of runs is for work under way.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts import files, processes
from scripts import run as make_run
from scripts.errors import RunError
from scripts.study import record_writer, records, side_by_side, verify_records
from scripts.study.place import Place, data_of, differences, refuse_another_configuration, weights_folder
from scripts.study.side_by_side import Job
from scripts.study.studies import Arm, Study, studies


@dataclass(frozen=True)
class Planned:
    """A run of the plan: its arm, its seed, and what people call it."""

    arm: Arm
    seed: int
    title: str


def carry_out(study: Study, place: Place, programs: make_run.Programs, jobs: int = 1) -> None:
    """Make all runs that the record does not have yet: the first arm's, then the others' seed by seed.

    So an unfinished study says first what the default reaches, and its comparisons are balanced.

    Args:
        study: which runs.
        place: where.
        programs: how they are made.
        jobs: how many at a time, each on its share of the cores.

    Raises:
        RunError: a run failed, and the same command goes on with it; or the record cannot be gone on with.
    """
    _have_data(place, programs)
    held = _finished_runs(study, place, programs)
    held |= _taken_over(study, place, programs, held)
    seeds = dict.fromkeys(seed for arm in study.arms for seed in arm.seeds)
    whole, *others = study.arms
    plan = [(whole, seed) for seed in whole.seeds]
    plan += [(arm, seed) for seed in seeds for arm in others if seed in arm.seeds]
    if held:
        there = sum((arm.name, seed) in held for arm, seed in plan)
        print(f"[study] {place.record} has {there} of {len(plan)} runs, with evidence that holds", flush=True)
    titled = [
        Planned(arm, seed, f"run {number} of {len(plan)}: {arm.name}, seed {seed}")
        for number, (arm, seed) in enumerate(plan, 1)
    ]
    work = _Work(study, place, programs, [one for one in titled if (one.arm.name, one.seed) not in held])
    side_by_side.work_through(jobs, work.next_job, work.finished)


class _Work:
    """What is left of a study, as jobs. A run can begin when its weights are there; who comes first has them made."""

    def __init__(self, study: Study, place: Place, programs: make_run.Programs, waiting: list[Planned]) -> None:
        self._study, self._place, self._programs = study, place, programs
        self._waiting = waiting
        self._begun: dict[Job, Planned] = {}
        self._ports: set[int] = set()

    def next_job(self, under_way: Collection[Job]) -> Job | None:
        """Return the first job that can begin, None if all that is left waits for weights under way."""
        at_work = {job.folder for job in under_way}
        for planned in self._waiting:
            folder = weights_folder(planned.arm, planned.seed, self._place)
            if folder is None or (folder not in at_work and (folder / "encoder.pt").exists()):
                self._waiting.remove(planned)
                job = self._run(planned, folder)
                self._begun[job] = planned
                return job
            if folder not in at_work:
                return self._pretraining(planned, folder)
        return None

    def finished(self, job: Job) -> None:
        """Put a run into the record."""
        planned = self._begun.pop(job, None)
        if planned is None:
            return
        arm, seed, place = planned.arm, planned.seed, self._place
        refuse_another_configuration(job.folder / "trainer", arm, place)
        cores, weights = side_by_side.cores_of(job.folder), weights_folder(arm, seed, place)
        pretraining_s = 0.0
        if weights is not None:
            pretraining_s = float(sum(files.read_json(weights / "stages.json").values()))
            pretrained_on = side_by_side.cores_of(weights)
            cores = tuple(sorted({*cores, *pretrained_on})) if cores and pretrained_on else ()
        run = record_writer.Finished(
            arm.name, arm.profile, arm.whole_profile.strategy, seed, job.folder, pretraining_s, cores
        )
        record_writer.add(place.record, self._study.title, run, [one.name for one in self._study.arms])

    def _run(self, planned: Planned, weights: Path | None) -> Job:
        arm, place = planned.arm, self._place
        out = place.runs / records.run_name(arm.name, planned.seed)
        command = [*self._programs.run, "--profile", arm.profile, "--seed", str(planned.seed), "--out", str(out)]
        command += ["--port", str(self._port())]
        command += ["--data", str(place.data)] if place.data is not None else []
        command += ["--strategy", arm.strategy] if arm.strategy is not None else []
        command += ["--pretrained", str(weights / "encoder.pt")] if weights is not None else []
        return Job(planned.title, tuple(command), out, out / "trainer" / "result.json")

    def _pretraining(self, planned: Planned, folder: Path) -> Job:
        command = [*self._programs.trainer, "pretrain", "--profile", planned.arm.profile, "--seed", str(planned.seed)]
        command += ["--data", str(data_of(self._place) / "images"), "--out", str(folder), "--resume"]
        return Job(f"pretraining for seed {planned.seed}", tuple(command), folder, folder / "encoder.pt")

    def _port(self) -> int:
        """Choose a free port that no other run was given: two services may look for one at the same moment."""
        while (port := processes.choose_port(0)) in self._ports:
            pass
        self._ports.add(port)
        return port


def _have_data(place: Place, programs: make_run.Programs) -> None:
    """Have the data prepared before the first run, because all read it."""
    data = data_of(place)
    if (data / "dataset.json").exists():
        return
    if place.data is not None:
        raise RunError(f"{data} is no prepared folder: make it one with `python -m label_service prepare`.", 2)
    code = processes.run_to_its_end([*programs.service, "prepare", "--data", str(data)], os.environ)
    if code:
        raise RunError("preparing the data failed; the reason stands above.", code if code > 0 else 1)


def _finished_runs(study: Study, place: Place, programs: make_run.Programs) -> set[tuple[str, int]]:
    """Return the arms' names and seeds of the runs that the record has, once all of it is verified.

    Raises:
        RunError: the record is damaged, of another study, or of runs that would be made otherwise today.
    """
    if not (place.record / records.RECORD_FILE).exists():
        return set()
    numbers = verify_records.verify_runs(place.record, programs.service)
    arms = {arm.name: arm for arm in study.arms}
    strangers = [arm.name for arm in numbers.arms if arm.name not in arms]
    if numbers.title != study.title or strangers:
        raise RunError(f"{place.record} is of another study ({numbers.title}): name another RECORD=.", 2)
    held = {(arm.name, run.seed) for arm in numbers.arms for run in arm.runs}
    for name, seed in sorted(held):
        refuse_another_configuration(records.folder_of(place.record, name, seed), arms[name], place)
    record_writer.renew(place.record)
    return held


def _taken_over(
    study: Study, place: Place, programs: make_run.Programs, held: Collection[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Take over what the place's source has of the missing runs, and return their arms' names and seeds.

    Raises:
        RunError: the source is no record, or does not verify.
    """
    taken: set[tuple[str, int]] = set()
    if place.source is None:
        return taken
    verify_records.verify_runs(place.source, programs.service)
    for run in records.held_runs(place.source):
        for arm in study.arms:
            seed = run.entry["seed"]
            if seed not in arm.seeds or (arm.name, seed) in held or differences(run.folder, arm, place):
                continue
            record_writer.take_over(place.record, study.title, arm.name, run, [one.name for one in study.arms])
            print(f"[study] {arm.name}, seed {seed}: taken over from {place.source}", flush=True)
            taken.add((arm.name, seed))
    return taken


def main(arguments: Sequence[str] | None = None, programs: make_run.Programs | None = None) -> int:
    """Carry a study out; every expected error is one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="make study", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("name", choices=sorted(studies((1,))), help="which study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5")
    parser.add_argument("--data", type=Path, help="prepared folder of data; default: Fashion-MNIST")
    parser.add_argument("--runs", type=Path, help="folder of its runs; default: runs/studies/NAME")
    parser.add_argument(
        "--record", type=Path, help="folder of its record, which may have some of the runs; default: records/TODAY_NAME"
    )
    parser.add_argument(
        "--take-from", type=Path, help="another record: runs of it that are the same to the last setting are taken over"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores; default 1")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    runs = given.runs or Path("runs") / "studies" / given.name
    place = Place(given.data, runs, given.record or _record_folder(runs, given.name), given.take_from)
    processes.interrupt_on_sigterm()
    try:
        carry_out(studies(given.seeds)[given.name], place, programs or make_run.Programs(), given.jobs)
    except RunError as error:
        print(f"make study: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nmake study: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"\nThe record is in {place.record}; `make verify-records` checks it.")
    return 0


def _record_folder(runs: Path, name: str) -> Path:
    """Return records/DATE_NAME, with the date on which the study was begun."""
    runs.mkdir(parents=True, exist_ok=True)
    begun = runs / "begun.txt"
    if not begun.exists():
        files.write_atomically(begun, f"{datetime.now(UTC):%Y-%m-%d}".encode())
    return Path("records") / f"{begun.read_text(encoding='utf-8')}_{name}"


if __name__ == "__main__":
    sys.exit(main())
