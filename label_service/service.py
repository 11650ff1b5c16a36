"""One label service: database, lock, writer, readers and settings, opened and closed together."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import SQLAlchemyError

from label_service import errors
from label_service.data.seed import DatasetInfo, load_info, read_label_files, seed
from label_service.ledger import ledger, runs, teams
from label_service.ledger.append import Rules
from label_service.ledger.pace import Pace
from label_service.ledger.tokens import matches, read_operator_token, read_registration_token, token_hash
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.ledger.writer import Asked, Work, Writer
from label_service.log.answer_key import TREE_PURPOSE, open_answer_key
from label_service.log.authenticated_file import AuthenticatedFile
from label_service.log.entries import Entry
from label_service.log.evidence import EvidencePage
from label_service.log.forerunner import Forerunner
from label_service.log.log_reader import EXPORT_PAGE, LogReader, RunInfo, Summary, describe_run, summarise
from label_service.log.signed_log import SignedLog, open_signed_log
from label_service.log.tree_head import TreeHead
from label_service.metrics import Metrics
from label_service.settings import Settings
from label_service.store.backends import Database, find_database, heads_path, key_path, reason_of
from label_service.store.migrations import migrate

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
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
        registration_token_sha256: hash of the token that opening a run needs, None if it needs none.
        operator_token_sha256: hash of the operator's credential.
        database_version: product and version.
    """

    settings: Settings
    dataset: DatasetInfo
    rules: Rules
    reader: LogReader
    writer: Writer
    log: SignedLog
    metrics: Metrics
    shared: bool
    registration_token_sha256: str | None
    operator_token_sha256: str
    database_version: str
    _token_hashes: dict[str, str] = field(default_factory=dict, init=False)
    _labels_pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        """Begin the operator's own rate limit."""
        per_minute = self.settings.rate_limit_labels_per_minute
        self._labels_pace = Pace(per_minute, 60.0, f"A run may ask for {per_minute} labels a minute here")

    async def reveal(self, request: ledger.Request, ids: Sequence[int]) -> ledger.Revealed:
        """Reveal labels to a run; see `ledger.reveal`.

        Raises:
            Problem: the refusal, after its entry is durable.
        """
        if (hurry := self._labels_pace.refuse(request.run_id, len(ids))) is not None:
            raise hurry
        # A batch is one statement by itself.
        single = len(ids) == 1 and 0 <= ids[0] < self.dataset.pool_size
        answer = await self._write(
            lambda unit: ledger.reveal(unit, self.rules, request, ids), (request.run_id, ids) if single else None
        )
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
            InvalidPredictions: not one known class number for each test image; no entry is made.
            Problem: the refusal, after its entry is durable.
        """
        self._check_predictions(predictions)
        answer = await self._write(lambda unit: ledger.evaluate(unit, self.rules, request, predictions, budget))
        if not answer.replayed:
            self.metrics.evaluations.inc()
        return answer

    async def open_run(
        self,
        request_id: str,
        name: str,
        budget: int | None,
        evaluation_budgets: Sequence[int],
        opened_with: str | None,
        key: str | None,
    ) -> runs.Opened:
        """Open a run; see `runs.open_run`.

        Args:
            request_id: the id of the HTTP request.
            name: what the client calls the run.
            budget: labels the run may be charged; None takes the operator's default.
            evaluation_budgets: ascending.
            opened_with: name of the token that allows it, None if none was needed.
            key: the Idempotency-Key, None if none was sent.

        Raises:
            Problem: the run is not opened; see `runs.refuse_opening`.
        """
        settings = self.settings
        token = None if opened_with is None else self.log.account.tokens.get(opened_with)
        granted_to_all = settings.tokenless_budget if opened_with is None else None if token is None else token.budget
        limits = [settings.max_run_budget, granted_to_all]
        largest = min((limit for limit in limits if limit is not None), default=None)
        default = settings.default_run_budget
        granted = (default if largest is None else min(default, largest)) if budget is None else budget
        refusal = runs.refuse_opening(granted, evaluation_budgets, largest, settings.max_evaluations)
        if refusal is not None:
            raise refusal
        opened = await self._write(
            lambda unit: runs.open_run(
                unit,
                self.rules,
                request_id,
                name=name,
                budget=granted,
                evaluation_budgets=evaluation_budgets,
                opened_with=opened_with,
                key=key,
            )
        )
        self.metrics.runs_opened.inc()
        return opened

    async def seal(self, request: ledger.Request, by_operator: bool = False) -> Entry:
        """End a run; return the entry that ended it."""
        return await self._write(lambda unit: ledger.seal(unit, self.rules, request, by_operator))

    async def create_token(
        self, request_id: str, name: str, budget: int, evaluations: int | None, expires: str | None
    ) -> teams.NewTeamToken:
        """Make a team's token; see `teams.create`.

        Raises:
            TokenNameTaken: the name was used before.
        """
        return await self._write(
            lambda unit: teams.create(unit, self.rules, request_id, name, budget, evaluations, expires)
        )

    async def revoke_token(self, request_id: str, name: str) -> teams.TeamToken:
        """End a team's token; see `teams.revoke`.

        Raises:
            UnknownToken: there is none of this name.
        """
        return await self._write(lambda unit: teams.revoke(unit, self.rules, request_id, name))

    async def tokens(self) -> list[teams.TeamToken]:
        """Return the teams' tokens, oldest first."""
        await self.catch_up()
        return [teams.describe(name, token) for name, token in list(self.log.account.tokens.items())]

    async def is_team_token(self, name: str, token: str) -> bool:
        """Return whether a token is the team's of this name, whether it has ended or not."""
        await self.catch_up()
        account = self.log.account.tokens.get(name)
        if account is None:
            return False
        row = await asyncio.to_thread(self.reader.row, account.seq)
        if row is None:
            return False
        try:
            self.log.mac.require(row)
        except errors.LogChanged as error:
            logger.error("token %s: %s", name, error)
            return False
        return row.bound_sha256 is not None and matches(token, row.bound_sha256)

    def evidence_page(self, head: TreeHead, first: int, limit: int) -> EvidencePage:
        """Return up to `limit` entries under a head from number `first` on, and the earlier heads that end in them."""
        end = min(first + limit, head.size)
        return EvidencePage(
            bundle=1,
            key=self.log.verifier.vkey,
            pool_size=self.dataset.pool_size,
            checkpoint=head.note,
            entries=[entry.decode("ascii") for entry in self.reader.between(first, end)],
            heads=self.reader.heads(first, min(end, head.size - 1)),
            next=end - 1 if end < head.size else None,
        )

    def evidence(self) -> Iterator[str]:
        """Yield the whole log under its newest signed head: the JSON of `Evidence`, in parts of bounded size."""
        head = self.log.head
        firsts = range(0, head.size, EXPORT_PAGE)
        empty = self.evidence_page(head, head.size, 0).model_dump_json(exclude={"entries", "heads", "next"})
        yield empty.removesuffix("}") + ',"entries":['
        for first in firsts:
            page = self.evidence_page(head, first, EXPORT_PAGE).entries
            yield ("," if first else "") + json.dumps(page, separators=(",", ":"))[1:-1]
        yield '],"heads":['
        separator = ""
        for first in firsts:
            heads = self.reader.heads(first, min(first + EXPORT_PAGE, head.size - 1))
            if heads:
                yield separator + ",".join(earlier.model_dump_json() for earlier in heads)
                separator = ","
        yield "]}"

    async def token_hash(self, run_id: str) -> str | None:
        """Return the stored hash of a run's token; None if the run is unknown or has no token."""
        known = self._token_hashes.get(run_id)
        if known is None:
            opening = await asyncio.to_thread(self.reader.opening, run_id)
            if opening is None:
                # An unknown run is not remembered: it may be opened later, and strangers could fill the memory.
                return None
            known = self._read_token_hash(run_id, opening)
            if known is not None:
                self._token_hashes[run_id] = known
        return known

    def _read_token_hash(self, run_id: str, opening: Row[Any]) -> str | None:
        """Return the hash that a run's opening binds. The table of runs, which others may change, is not asked."""
        try:
            self.log.mac.require(opening)
        except errors.LogChanged as error:
            logger.error("run %s: %s", run_id, error)
            return None
        bound: str | None = opening.bound_sha256
        return bound if json.loads(opening.entry)["run"] == run_id else None

    async def run(self, run_id: str) -> RunInfo | None:
        """Return the state of a run by the log, up to what other workers have committed now; None if there is none.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        await self.catch_up()
        run = self.log.account.runs.get(run_id)
        return None if run is None else describe_run(run_id, run)

    def runs(self) -> list[RunInfo]:
        """Return the state of every run by the log, oldest first, up to the last time that it caught up."""
        return [describe_run(run_id, run) for run_id, run in list(self.log.account.runs.items())]

    async def summary(self) -> Summary:
        """Count the log, up to what other workers have committed now.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        await self.catch_up()
        return summarise(self.log.account)

    async def catch_up(self) -> None:
        """Take in and sign what other workers have committed; without other workers, do nothing.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        if self.shared and await asyncio.to_thread(self.reader.size) > self.log.head.size:
            # A transaction without work: the writer takes in new entries before the work.
            await self._write(lambda _unit: None)

    async def head(self) -> TreeHead:
        """Return the newest signed head; with other workers, one over everything that is committed now.

        A client that got a head from one worker and asks another must not be shown an older one.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        await self.catch_up()
        return self.log.head

    async def cover(self, size: int) -> None:
        """Make sure that `size` entries are under a head, if any worker has committed them.

        Raises:
            LogNotWritable: the tree cannot be brought up to date.
        """
        if size > self.log.head.size:
            await self.catch_up()

    async def ready(self) -> bool:
        """Return whether a log entry could be written now, by writing the heartbeat."""
        try:
            await asyncio.wrap_future(self.writer.beat())
        except errors.LogNotWritable:
            return False
        return True

    async def _write(self, work: Work[T | errors.Problem], asks: Asked | None = None) -> T:
        answer = await asyncio.wrap_future(self.writer.submit(work, asks))
        if isinstance(answer, errors.Problem):
            raise answer
        return answer

    def _check_predictions(self, predictions: Sequence[int]) -> None:
        expected, classes = self.dataset.test_size, len(self.dataset.class_names)
        if len(predictions) != expected:
            raise errors.InvalidPredictions(
                f"{len(predictions)} predictions were sent and there are {expected} test images; send one for each."
            )
        if min(predictions) < 0 or max(predictions) >= classes:
            raise errors.InvalidPredictions(
                f"Predictions are class numbers from 0 to {classes - 1}, and at least one is not."
            )


@contextmanager
def open_service(settings: Settings) -> Iterator[LabelService]:
    """Open the database, bring it up to date, seed it if it is empty, and start the writer.

    Raises:
        DatabaseRefused: the database cannot be used, or holds another data set than the folder.
        DataRefused: the database is empty and the data folder cannot fill it.
        RegistrationTokenRefused: the file of the registration token cannot be used.
    """
    token_sha256 = _registration_token_hash(settings)
    database = find_database(settings)
    with ExitStack() as stack:
        stack.enter_context(database.hold())
        engine = database.open_writing_engine()
        stack.callback(engine.dispose)
        stack.callback(database.finish, engine)
        version = database.version()
        try:
            dataset, rules, log = begin_log(engine, settings, database)
        except SQLAlchemyError as error:
            raise errors.DatabaseRefused(
                f"{database.name} cannot be written ({reason_of(error)}); check disk space and permissions."
            ) from error
        operator_sha256 = token_hash(read_operator_token(key_path(settings, database, dataset.log_id).parent))
        # After the writer has ended.
        stack.callback(log.keep_snapshot, stopping=True)
        reading = database.open_reading_engine()
        stack.callback(reading.dispose)
        reader, metrics = LogReader(reading, log.mac), Metrics()
        writer = Writer(engine, log, settings.queue_size, settings.max_group, metrics.observe_commit)
        stack.callback(writer.close)
        metrics.watch(lambda: writer.waiting, reader.size)
        logger.info(
            "%s: %d labels in %s, log %s, key %s, %s",
            *(dataset.name, dataset.pool_size, database.name, dataset.log_id, log.verifier.vkey, version),
        )
        yield LabelService(
            settings,
            dataset,
            rules,
            reader,
            writer,
            log,
            metrics,
            database.shared,
            token_sha256,
            operator_sha256,
            version,
        )


def begin_log(
    engine: Engine, settings: Settings, database: Database, forerunner: Forerunner | None = None
) -> tuple[DatasetInfo, Rules, SignedLog]:
    """Migrate a database, seed it if it is empty, commit to its labels, check its log, and set the guest's budget.

    Args:
        engine: the writing one.
        settings: the operator's.
        database: that the engine writes to.
        forerunner: the log that this one, still without an entry, follows.

    Returns:
        What was seeded, the rules of the log, and the log.

    Raises:
        DatabaseRefused: the database cannot be migrated, holds another data set than the folder, or does not hold what
            this service has written.
        DataRefused: the database is empty and the data folder cannot fill it.
        SQLAlchemyError: the database cannot be written.
    """
    migrate(engine)
    with engine.begin() as connection:
        dataset = _seed(connection, settings)
    keys, heads = (path(settings, database, dataset.log_id) for path in (key_path, heads_path))
    # To read a long log and many labels takes longer than the other workers wait for a lock: read without one.
    reading = database.open_reading_engine() if database.shared else engine
    try:
        log = open_signed_log(engine, keys, heads, dataset.log_id, database.shared, reading)
        kept = AuthenticatedFile(heads.with_suffix(".label-tree"), log.secret(TREE_PURPOSE), "every label is hashed")
        is_committed = False
        # A second time where another worker has committed meanwhile.
        while not is_committed:
            with reading.begin() as connection:
                key = open_answer_key(connection, kept)
            with engine.begin() as connection:
                is_committed = key.commit(connection)
    finally:
        if reading is not engine:
            reading.dispose()
    log.require_answer_key(key)
    if not key.is_kept:
        key.keep(kept)
    rules = Rules(
        dataset.log_id,
        key,
        dataset.pool_size,
        total_budget=settings.total_budget,
        total_evaluations=settings.total_evaluations,
        tokenless_budget=settings.tokenless_budget,
        tokenless_evaluations=settings.tokenless_evaluations,
        uncharged=Pace(
            settings.uncharged_entries_per_hour,
            3600.0,
            f"{settings.uncharged_entries_per_hour} repeats and refusals an hour are logged here for a run, and for "
            "all runs opened without a token together",
        ),
        openings=Pace(
            settings.openings_per_hour,
            3600.0,
            f"{settings.openings_per_hour} runs an hour may be opened here without a token, or with a team's",
        ),
    )
    try:
        with UnitOfWork.begin(engine, log) as unit:
            said = None if forerunner is None else forerunner.model_dump(exclude_none=True)
            runs.set_guest_budget(unit, rules, settings.guest_budget, said)
    except (errors.LogChanged, OSError) as error:
        raise errors.DatabaseRefused(f"The log cannot be begun ({error}).") from error
    return dataset, rules, log


def _registration_token_hash(settings: Settings) -> str | None:
    """Return the hash of the token that opening a run needs, None if it needs none."""
    given, file = settings.registration_token, settings.registration_token_file
    if given is not None and file is not None:
        raise errors.RegistrationTokenRefused("The registration token is set twice, by itself and by a file; set one.")
    if file is not None:
        return token_hash(read_registration_token(file))
    return None if given is None else token_hash(given.get_secret_value())


def _seed(connection: Connection, settings: Settings) -> DatasetInfo:
    """Seed an empty database; check a seeded one against the folder if the folder has labels."""
    existing = load_info(connection)
    try:
        files = read_label_files(settings.data, settings.other_data)
    except errors.DataMissing:
        # A seeded database does not need its label files: the operator may have moved or deleted them.
        if existing is not None:
            return existing
        raise
    return seed(connection, files)
