"""The one writer: a thread that runs every change of the database, many requests to one transaction.

Requests put their work into a bounded queue. The thread takes everything that waits, runs it inside one
`BEGIN IMMEDIATE … COMMIT`, signs one head of the log for all of it, and only then answers (group commit). No label
leaves before its entry is durable and signed. If anything fails (locked, read-only, disk full, I/O), the whole group is
answered with `LogNotWritable`, which says whether something may have been charged. The next group gets a new
connection, and it compares the whole log with what was signed before it writes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine, update
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import FileReplaced, LogChanged, LogNotWritable
from label_service.ledger.unit_of_work import OutcomeUnknown, UnitOfWork
from label_service.log.entries import now
from label_service.log.signed_log import SignedLog
from label_service.store import tables

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[UnitOfWork], T]
# A run and ids of the data set.
Asked = tuple[str, Sequence[int]]

# Four pages of 4 KiB: more than an entry needs, so a database that takes the heartbeat takes an entry.
HEARTBEAT_FILLER_BYTES = 16 * 1024
_NOTHING_CHARGED = (
    "The log could not be written, so nothing was revealed or charged; try again later, "
    "and tell the operator if it lasts."
)
_UNKNOWN = (
    "The log could not be finished, so nothing was revealed, but labels may have been charged; ask again later: "
    "what was charged costs nothing more."
)


class CommitObserver(Protocol):
    """Called after each transaction; the metrics count here."""

    def __call__(self, requests: int, seconds: float, written: bool) -> None:
        """Record one transaction of `requests` requests, how long it took, and whether it was committed."""


@dataclass
class _Job:
    work: Work[Any]
    future: Future[Any]
    asks: Asked | None
    result: Any = None


class Writer:
    """Runs work on the writing connection, in order, in its own thread."""

    def __init__(
        self,
        engine: Engine,
        log: SignedLog,
        queue_size: int,
        max_group: int,
        observe: CommitObserver | None = None,
    ) -> None:
        """Start the thread.

        Args:
            engine: of the one writing connection.
            log: grows with each commit.
            queue_size: requests that may wait.
            max_group: most requests in one transaction.
            observe: called after each transaction.
        """
        self._engine = engine
        self._log = log
        self._max_group = max_group
        self._queue: queue.Queue[_Job | None] = queue.Queue(maxsize=queue_size)
        self._observe = observe
        # Guards the end: after `_closed` is set, no job may enter the queue.
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="label-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue, approximately."""
        return self._queue.qsize()

    def submit(self, work: Work[T], asks: Asked | None = None) -> Future[T]:
        """Queue work for the next transaction.

        Args:
            work: called with the transaction's unit of work, and called again if another job of the group fails. It
                returns refusals as results: an exception undoes its changes, its entry included.
            asks: the labels that it is going to read, which one statement then reads for the whole transaction.

        Returns:
            A future that has the result after the commit. It raises `LogNotWritable` if the commit failed.

        Raises:
            LogNotWritable: the queue is full, or the service is stopping.
        """
        job = _Job(work, Future(), asks)
        with self._gate:
            if self._closed:
                raise LogNotWritable("The service is stopping and takes no more requests; try again in a moment.")
            try:
                self._queue.put_nowait(job)
            except queue.Full as error:
                raise LogNotWritable(
                    "Too many requests wait for the log, so no label was revealed; try again in a moment.",
                    headers={"Retry-After": "1"},
                ) from error
        return job.future

    def beat(self) -> Future[None]:
        """Write the heartbeat: the future fails with `LogNotWritable` if the log could not be written either."""
        return self.submit(_heartbeat)

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            jobs, stopping = self._take()
            # A future that was cancelled while it waited is dropped here, before anything is charged for it.
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._write(jobs)

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for a job, then take all others that wait. The second result is whether the writer was closed."""
        job = self._queue.get()
        jobs: list[_Job] = []
        while job is not None:
            jobs.append(job)
            if len(jobs) == self._max_group:
                return jobs, False
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _write(self, jobs: list[_Job]) -> None:
        """Commit jobs together. A job that fails by a fault of its own is left out, and the others run again."""
        while jobs:
            started_s, written = time.monotonic(), False
            try:
                with UnitOfWork.begin(self._engine, self._log) as unit:
                    for job in jobs:
                        if job.asks is not None:
                            unit.expect(*job.asks)
                    for job in jobs:
                        _run(job, unit)
                written = True
            except _JobFault as fault:
                # The transaction was rolled back. A savepoint for each job would spare the others their second run, but
                # it would cost every request a quarter of its time, and such faults are rare.
                fault.job.future.set_exception(fault.error)
                jobs = [job for job in jobs if job is not fault.job]
                continue
            except Exception as error:
                self._fail(jobs, error)
            else:
                for job in jobs:
                    job.future.set_result(job.result)
                # After the answers; once in a while.
                self._log.keep_snapshot()
            if self._observe is not None:
                self._observe(len(jobs), time.monotonic() - started_s, written)
            return

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        unknown = isinstance(error, OutcomeUnknown)
        cause = error.__cause__ if unknown and error.__cause__ is not None else error
        reason = getattr(cause, "orig", None) or cause
        logger.error("log not writable, %d request(s) refused: %s: %s", len(jobs), type(reason).__name__, reason)
        # A connection whose write has failed is not used again; the next transaction opens a new one. But a file that
        # was deleted or replaced is kept open: as long as it is, the operator can put it back.
        if not isinstance(cause, FileReplaced):
            self._engine.dispose()
        self._log.recheck()
        detail = _UNKNOWN if unknown else _NOTHING_CHARGED
        for job in jobs:
            job.future.set_exception(LogNotWritable(detail, headers={"Retry-After": "1"}))


class _JobFault(Exception):  # noqa: N818 - a signal between the functions of this module, no error
    """A job raised an exception that concerns no other job."""

    def __init__(self, job: _Job, error: Exception) -> None:
        super().__init__()
        self.job, self.error = job, error


def _run(job: _Job, unit: UnitOfWork) -> None:
    """Run one job. A database error and a changed log concern the whole group; any other fault only the job."""
    try:
        job.result = job.work(unit)
    except (SQLAlchemyError, LogChanged):
        raise
    except Exception as error:
        raise _JobFault(job, error) from error


def _heartbeat(unit: UnitOfWork) -> None:
    beat = update(tables.heartbeat).where(tables.heartbeat.c.singleton == 1)
    unit.connection.execute(beat.values(beat_at=now(), filler=bytes(HEARTBEAT_FILLER_BYTES)))
    unit.connection.execute(beat.values(filler=b""))
