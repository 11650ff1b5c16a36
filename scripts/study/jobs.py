"""Programs run side by side: each task has its own share of the cores, and all are stopped together.

A single task has all cores and the console. With several at a time, each program writes to `output.log` in its own
folder, and the console shows a line when a program begins and when it ends. `cores.json` there has the number of cores.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scripts import files, processes
from scripts.errors import RunError
from trainer.learning.device import available_cores
from trainer.records.files import replace_file
from trainer.records.progress import duration

OUTPUT_FILE, CORES_FILE = "output.log", "cores.json"
# A run that has to stop waits for its trainer first, and then for its service.
STOP_TIMEOUT_S = processes.INTERRUPTED_TIMEOUT_S + 2 * processes.STOP_TIMEOUT_S

Cores = frozenset[int]
Task = TypeVar("Task")


@dataclass(frozen=True)
class Job:
    """A program to run to its end.

    Attributes:
        title: for people.
        command: its command line.
        folder: where it works, and no other job.
        result: the file that is there when its work is done.
    """

    title: str
    command: tuple[str, ...]
    folder: Path
    result: Path


RunJob = Callable[[Job], None]


def work_through(
    count: int, tasks: Sequence[Task], work: Callable[[Task, RunJob], None], finished: Callable[[Task], None]
) -> None:
    """Work through tasks in threads, and begin them in their order.

    Args:
        count: tasks at a time, at least 1.
        tasks: what there is to do.
        work: does a task in a thread of its own. It is given a function that runs a job on the task's cores.
        finished: called in this thread for each task that ended well.

    Raises:
        RunError: a job failed, or the cores cannot be shared so; the other jobs are stopped.
    """
    free: queue.SimpleQueue[Cores | None] = queue.SimpleQueue()
    for share in shares(count):
        free.put(share)
    running = _RunningJobs()

    def work_on(task: Task) -> Task:
        share = free.get()
        try:
            work(task, lambda job: running.run(job, share))
        finally:
            free.put(share)
        return task

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work_on, task) for task in tasks]
        try:
            for future in as_completed(futures):
                finished(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()


def shares(count: int) -> list[Cores | None]:
    """Split the cores that this process may use into shares; a single share is None, which means all cores.

    Raises:
        RunError: there are fewer cores than shares, or the system cannot keep a program to its share.
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
    """Return the numbers of cores that the work in a folder was done on, ascending; empty if not known."""
    return tuple(files.read_json(folder / CORES_FILE).get("cores", ()))


class _RunningJobs:
    """The jobs that run at the moment, for several threads. After a failure or a stop, none begins any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._refusal: RunError | None = None

    def run(self, job: Job, share: Cores | None) -> None:
        """Run a job to its end.

        Raises:
            RunError: it did not end well, or another one did not.
        """
        begun_s = time.monotonic()
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            process = _start(job, share)
            self._processes.add(process)
        code = process.wait()
        took = duration(time.monotonic() - begun_s)
        with self._lock:
            self._processes.remove(process)
            if code == 0 and job.result.exists():
                _announce(f"end    {job.title} (after {took})")
            elif self._refusal is None:
                _announce(f"FAILED {job.title} (after {took})")
                self._refusal = _failure(job, share, code)
            if self._refusal is not None:
                raise self._refusal

    def stop(self) -> None:
        """Stop all jobs: signal each of them, then wait for them."""
        with self._lock:
            self._refusal = self._refusal or RunError("stopped before it began.")
            running = list(self._processes)
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
            processes.stop(process)


def _start(job: Job, share: Cores | None) -> subprocess.Popen[bytes]:
    number = len(share) if share is not None else available_cores()
    _note_cores(job, number)
    words, log = f"{number} core{'s' if number > 1 else ''}", None
    if share is not None:
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / OUTPUT_FILE
        words += f", its output: {log}"
    _announce(f"begin  {job.title} ({words})")
    return processes.start(job.command, log, processes.environment_without("TRAINER_"), share)


def _note_cores(job: Job, number: int) -> None:
    """Note the number of cores, unless no work is left, or earlier work was done on an unknown number."""
    is_begun = job.folder.is_dir() and any(job.folder.iterdir())
    if job.result.exists() or (is_begun and not (job.folder / CORES_FILE).exists()):
        return
    cores = sorted({*cores_of(job.folder), number})
    replace_file(job.folder / CORES_FILE, json.dumps({"cores": cores}))


def _failure(job: Job, share: Cores | None, code: int) -> RunError:
    end = processes.last_lines(job.folder / OUTPUT_FILE)
    reason = "the reason stands above" if share is None else f"its last words:\n{end}"
    return RunError(
        f"{job.title} did not end well; the same command goes on with it; {reason}", code if code > 0 else 1
    )


def _announce(what: str) -> None:
    # One write a line, so that the lines of two threads do not mix.
    print(f"[study] {time.strftime('%H:%M:%S')}  {what}\n", end="", flush=True)
