"""Jobs side by side: each has its own share of the cores, and all are stopped together.

One at a time has all cores and the console. Of several, each writes into `output.log` of its own folder, and the
console gets a line when one begins and when it ends. `cores.json` beside it says on how many cores it was worked at.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from scripts import files, processes
from scripts.counts import format_seconds
from scripts.errors import RunError
from trainer.learning.parallel import available_cores

OUTPUT_FILE, CORES_FILE = "output.log", "cores.json"
POLL_S = 0.1
# A run that is told to stop waits for its trainer first, and then for its service.
STOP_TIMEOUT_S = processes.FAREWELL_S + 2 * processes.STOP_TIMEOUT_S


@dataclass(frozen=True)
class Job:
    """A program to run to its end.

    Attributes:
        title: for people.
        command: its command line.
        folder: where it works, and nobody else.
        result: the file that is there when its work is done.
    """

    title: str
    command: tuple[str, ...]
    folder: Path
    result: Path


@dataclass(frozen=True)
class _UnderWay:
    job: Job
    share: frozenset[int] | None
    process: subprocess.Popen[bytes]
    begun_s: float


def work_through(
    count: int, next_job: Callable[[Collection[Job]], Job | None], finished: Callable[[Job], None]
) -> None:
    """Work until nothing is left.

    Args:
        count: jobs at a time, at least 1.
        next_job: asked whenever there is room, with the jobs under way; None when none can begin now.
        finished: told of each job that ended well.

    Raises:
        RunError: a job failed, or cores cannot be parted so; jobs under way are stopped.
    """
    free, under_way = shares(count), list[_UnderWay]()
    try:
        while True:
            while free and (job := next_job([one.job for one in under_way])) is not None:
                under_way.append(_start(job, free.pop(0)))
            if not under_way:
                return
            ended = next((one for one in under_way if one.process.poll() is not None), None)
            if ended is None:
                time.sleep(POLL_S)
                continue
            under_way.remove(ended)
            free.append(ended.share)
            _must_have_ended_well(ended)
            finished(ended.job)
    finally:
        _stop([one.process for one in under_way])


def shares(count: int) -> list[frozenset[int] | None]:
    """Part the cores that this process may use; one alone is not limited.

    Raises:
        RunError: there are fewer cores than shares, or the system cannot hold a program to its share.
    """
    if count == 1:
        return [None]
    if not hasattr(os, "sched_setaffinity"):
        raise RunError("Only Linux can give each run its share of the cores: leave JOBS= out here.", 2)
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise RunError(f"JOBS={count} is more than the cores here ({len(cores)}): a run needs one of its own.", 2)
    bounds = [len(cores) * number // count for number in range(count + 1)]
    return [frozenset(cores[begin:end]) for begin, end in itertools.pairwise(bounds)]


def cores_of(folder: Path) -> tuple[int, ...]:
    """Return on how many cores the work in a folder was done: ascending, several if it went on with others, or none.

    None means that it is not known.
    """
    return tuple(files.read_json(folder / CORES_FILE).get("cores", ()))


def _start(job: Job, share: frozenset[int] | None) -> _UnderWay:
    number = len(share) if share is not None else available_cores()
    _note_cores(job, number)
    words, log = f"{number} core{'s' if number > 1 else ''}", None
    if share is not None:
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / OUTPUT_FILE
        words += f", its output: {log}"
    _say(f"begin  {job.title} ({words})")
    return _UnderWay(job, share, processes.start(job.command, log, share), time.monotonic())


def _note_cores(job: Job, number: int) -> None:
    """Note on how many cores work is done, unless none is left to do, or some was done on nobody knows how many."""
    begun = job.folder.is_dir() and any(job.folder.iterdir())
    if job.result.exists() or (begun and not (job.folder / CORES_FILE).exists()):
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    cores = sorted({*cores_of(job.folder), number})
    files.write_atomically(job.folder / CORES_FILE, json.dumps({"cores": cores}).encode())


def _must_have_ended_well(ended: _UnderWay) -> None:
    code, took = ended.process.returncode, format_seconds(time.monotonic() - ended.begun_s)
    if code == 0 and ended.job.result.exists():
        _say(f"end    {ended.job.title} (after {took})")
        return
    _say(f"FAILED {ended.job.title} (after {took})")
    log = ended.job.folder / OUTPUT_FILE
    reason = "the reason stands above" if ended.share is None else f"its last words:\n{processes.last_lines(log)}"
    raise RunError(
        f"{ended.job.title} did not end well; the same command goes on with it; {reason}", code if code > 0 else 1
    )


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End programs: all are told before one is waited for."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline_s - time.monotonic()))
        processes.stop(process)


def _say(what: str) -> None:
    print(f"[study] {time.strftime('%H:%M:%S')}  {what}", flush=True)
