"""One label service: database, lock, writer, readers and settings, opened and closed together. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from label_service.data.seed import DatasetInfo, load_info, read_label_files, seed
from label_service.errors import (
    DatabaseRefused,
    DataMissing,
    IdempotencyKeyInUse,
    LogNotWritable,
    Problem,
    TooManyRequests,
)
from label_service.ledger import ledger, runs
from label_service.ledger.limits import TokenBucket
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.ledger.writer import Work, Writer
from label_service.log.answer_key import AnswerKey, open_answer_key
from label_service.log.entries import Entry
from label_service.log.log_reader import LogReader
from label_service.log.signed_log import SignedHead, SignedLog, open_signed_log
from label_service.metrics import Metrics
from label_service.settings import Settings
from label_service.store.backends import find_database, heads_path, key_path
from label_service.store.sqlite import migrate, reason_of
from label_service.web.schemas import EarlierHead, Evidence

T = TypeVar("T")

logger = logging.getLogger(__name__)


class LabelService:
    """What the routes talk to. Make it with `open_service`.

    Attributes:
        settings: the operator's.
        dataset: what was seeded.
        rules: that hold for every run.
        reader: the log and the runs, read-only.
        writer: the one writer.
        log: the signed log.
        metrics: this service's counters.
        shared: other workers write to the same database.
        database_version: product and version.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: DatasetInfo,
        rules: ledger.Rules,
        reader: LogReader,
        writer: Writer,
        log: SignedLog,
        metrics: Metrics,
        shared: bool,
        database_version: str,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.reader = reader
        self.log = log
        self.writer = writer
        self.metrics = metrics
        self.shared = shared
        self.database_version = database_version
        self.rules = rules
        self._token_hashes: dict[str, str] = {}
        self._buckets: dict[str, TokenBucket] = {}
        # Keys whose first request is still being answered. Touched by the event loop's thread only.
        self._keys_in_use: set[tuple[str, str]] = set()

    async def reveal(self, request: ledger.Request, ids: Sequence[int]) -> ledger.Revealed:
        """Reveal labels to a run; see `ledger.reveal`.

        Raises:
            Problem: the refusal, after its entry is durable.
        """
        self._pace(request.run_id, len(ids))
        with self._key(request):
            answer = await self._write(lambda unit: ledger.reveal(unit, self.rules, request, ids))
        if answer.replayed:
            self.metrics.replayed.inc(len(answer.labels))
        else:
            self.metrics.charged.inc(answer.charged)
            self.metrics.replayed.inc(len(answer.labels) - answer.charged)
        return answer

    async def evaluate(
        self, request: ledger.Request, predictions: Sequence[int], budget: int | None
    ) -> ledger.Evaluated:
        """Evaluate a run's test predictions; see `ledger.evaluate`.

        Raises:
            Problem: the refusal, after its entry is durable.
        """
        with self._key(request):
            answer = await self._write(lambda unit: ledger.evaluate(unit, self.rules, request, predictions, budget))
        if not answer.replayed:
            self.metrics.evaluations.inc()
        return answer

    async def open_run(self, opening: runs.Opening, request_id: str) -> runs.Opened:
        """Open a run.

        Raises:
            Problem: the operator's limits do not allow it.
        """
        refusal = runs.refuse_opening(opening, self.settings.max_run_budget, self.settings.max_evaluations)
        if refusal is not None:
            raise refusal
        opened = await self._write(lambda unit: runs.open_run(unit, self.rules, opening, request_id))
        self.metrics.runs_opened.inc()
        return opened

    async def seal(self, request: ledger.Request) -> Entry:
        """End a run; return the entry that ended it."""
        return await self._write(lambda unit: ledger.seal(unit, self.rules, request))

    def evidence(self) -> Evidence:
        """Return the whole log under its newest signed head."""
        head = self.log.head
        size = head.checkpoint.size
        return Evidence(
            key=self.log.verifier.vkey,
            pool_size=self.dataset.pool_size,
            checkpoint=head.note,
            entries=[entry.decode("ascii") for entry in self.reader.export(size)],
            heads=[EarlierHead(size=one, signature=signature) for one, signature in self.reader.heads(size)],
        )

    async def token_hash(self, run_id: str) -> str | None:
        """Return the stored hash of a run's token; None if the run is unknown or has no token."""
        known = self._token_hashes.get(run_id)
        if known is None:
            known = await run_in_threadpool(self.reader.token_hash, run_id)
            if known is not None:
                # An unknown run is not remembered: it may be opened later, and strangers could fill the memory.
                self._token_hashes[run_id] = known
        return known

    async def catch_up(self) -> None:
        """Take in and sign what other workers have committed; where there are none, there is nothing to do.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        if self.shared and await asyncio.to_thread(self.reader.size) > self.log.head.checkpoint.size:
            # A transaction of no work: the writer takes in what is new before it would begin.
            await self._write(_do_nothing)

    async def head(self) -> SignedHead:
        """Return the newest signed head; with other workers, one over everything that is committed now.

        A client that got a head from one worker and asks another must not be shown an older one.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        await self.catch_up()
        return self.log.head

    async def cover(self, size: int) -> None:
        """Make sure that `size` entries are under a head, if they are committed, by whichever worker.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        if size > self.log.head.checkpoint.size:
            await self.catch_up()

    async def ready(self) -> bool:
        """Return whether a log entry could be written now, by writing the heartbeat."""
        try:
            await asyncio.wrap_future(self.writer.beat())
        except LogNotWritable:
            return False
        return True

    async def _write(self, work: Work[T | Problem]) -> T:
        answer = await asyncio.wrap_future(self.writer.submit(work))
        if isinstance(answer, Problem):
            raise answer
        return answer

    def _pace(self, run_id: str, ids: int) -> None:
        per_minute = self.settings.rate_limit_labels_per_minute
        if per_minute is None:
            return
        now_s = time.monotonic()
        bucket = self._buckets.get(run_id) or TokenBucket(per_minute, float(per_minute), now_s)
        self._buckets[run_id], wait_s = bucket.take(ids, now_s)
        if wait_s:
            raise TooManyRequests(
                f"A run may ask for {per_minute} labels a minute here; try again in {wait_s:.0f} s.",
                headers={"Retry-After": f"{wait_s:.0f}"},
            )

    @contextmanager
    def _key(self, request: ledger.Request) -> Iterator[None]:
        """Hold the request's Idempotency-Key while its answer is on the way."""
        if request.key is None:
            yield
            return
        key = (request.run_id, request.key)
        if key in self._keys_in_use:
            raise IdempotencyKeyInUse(
                "A request with this Idempotency-Key is still being answered; wait for it or try again in a moment.",
                headers={"Retry-After": "1"},
            )
        self._keys_in_use.add(key)
        try:
            yield
        finally:
            self._keys_in_use.discard(key)


@contextmanager
def open_service(settings: Settings) -> Iterator[LabelService]:
    """Open the database, bring it up to date, seed it if it is empty, and start the writer.

    Raises:
        DatabaseRefused: the database cannot be used, or holds another data set than the folder.
        DataRefused: the database is empty and the data folder cannot fill it.
    """
    database = find_database(settings)
    with ExitStack() as stack:
        stack.enter_context(database.hold())
        engine = database.open_writing_engine()
        stack.callback(engine.dispose)
        version = database.version()
        migrate(engine)
        try:
            with UnitOfWork.begin(engine) as unit:
                dataset = _seed(unit.connection, settings)
                rules = _rules(settings, dataset, open_answer_key(unit.connection))
                runs.set_guest_budget(unit, rules, settings.guest_budget)
        except SQLAlchemyError as error:
            raise DatabaseRefused(
                f"{database.name} cannot be written ({reason_of(error)}); check disk space and permissions."
            ) from error
        reading = database.open_reading_engine()
        stack.callback(reading.dispose)
        reader, metrics = LogReader(reading), Metrics()
        log = open_signed_log(
            engine,
            key_path(settings, database, dataset.log_id),
            heads_path(settings, database, dataset.log_id),
            dataset.log_id,
            database.shared,
        )
        writer = Writer(engine, log, settings.queue_size, settings.max_group, metrics.observe_commit)
        stack.callback(writer.close)
        metrics.watch(lambda: writer.waiting, reader.entries_count)
        logger.info(
            "%s: %d labels in %s, log %s, key %s, %s",
            dataset.name,
            dataset.pool_size,
            database.name,
            dataset.log_id,
            log.verifier.vkey,
            version,
        )
        yield LabelService(settings, dataset, rules, reader, writer, log, metrics, database.shared, version)


def _seed(connection: Connection, settings: Settings) -> DatasetInfo:
    """Seed an empty database; check a seeded one against the folder if the folder has labels."""
    existing = load_info(connection)
    try:
        files = read_label_files(settings.data, settings.other_data)
    except DataMissing:
        # A seeded database needs its label files no more; they may be gone or kept elsewhere.
        if existing is not None:
            return existing
        raise
    return seed(connection, files)


def _do_nothing(_unit: UnitOfWork) -> None:
    pass


def _rules(settings: Settings, dataset: DatasetInfo, key: AnswerKey) -> ledger.Rules:
    return ledger.Rules(dataset.log_id, key, dataset.pool_size, settings.total_budget, settings.total_evaluations)
