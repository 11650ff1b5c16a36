"""A Hypothesis machine plays runs against the real ledger on real SQLite, beside a model made of dicts and sets."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Connection, func, select

from label_service.errors import Problem
from label_service.ledger import ledger, runs
from label_service.ledger.limits import GUEST
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.entries import canonical_json
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database
from tests.support.datasets import make_idx_dataset, read_pool_labels, read_test_labels

POOL, TEST, CLASSES = 12, 6, 3
TOTAL_BUDGET = 20
GUEST_BUDGET = 3

ids = st.lists(st.integers(-1, POOL), min_size=1, max_size=6)
keys = st.none() | st.sampled_from(["k1", "k2"])


class LedgerMachine(RuleBasedStateMachine):
    """Opens runs, asks, repeats, evaluates and seals; after each step the database must say what the model says."""

    opened = Bundle("opened")

    @initialize(target=opened)
    def fresh_log(self) -> str:
        """Begin with a seeded database and its guest run."""
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-"))
        data = make_idx_dataset(self.folder / "data", pool=POOL, test=TEST, classes=CLASSES, side=4)
        self.pool_labels, self.test_labels = read_pool_labels(data), read_test_labels(data)
        url = f"sqlite:///{self.folder / 'service' / 'labels.sqlite3'}"
        (self.folder / "service").mkdir()
        settings = Settings(
            data=data, other_data=True, database_url=url, guest_budget=GUEST_BUDGET, total_budget=TOTAL_BUDGET
        )
        database = find_database(settings)
        self.engine = database.open_writing_engine()
        _, self.rules, self.log = begin_log(self.engine, settings, database)
        self.budget = {GUEST: GUEST_BUDGET}
        self.has: dict[str, set[int]] = {GUEST: set()}
        self.evaluated: dict[str, int] = {GUEST: 0}
        self.sealed: set[str] = set()
        self.answers: dict[tuple[str, str], tuple[object, ledger.Revealed | ledger.Evaluated]] = {}
        self.entries = 1
        return GUEST

    def teardown(self) -> None:
        """Remove the database."""
        if hasattr(self, "engine"):
            self.engine.dispose()
            shutil.rmtree(self.folder)

    @rule(target=opened, budget=st.integers(0, 8))
    def open_run(self, budget: int) -> str:
        """A fresh run has nothing."""
        with UnitOfWork.begin(self.engine, self.log) as unit:
            run = runs.open_run(unit, self.rules, "req", name="r", budget=budget).run_id
        self.budget[run], self.has[run], self.evaluated[run] = budget, set(), 0
        self.entries += 1
        return run

    @rule(run=opened, asked=ids, key=keys)
    def ask(self, run: str, asked: list[int], key: str | None) -> None:
        """Reveal, replay or refuse, as the rules say; never anything in between."""
        request = ledger.Request(run, "req", key)
        with UnitOfWork.begin(self.engine, self.log) as unit:
            answer = ledger.reveal(unit, self.rules, request, asked)
        distinct = list(dict.fromkeys(asked))
        kept = self.answers.get((run, key)) if key else None
        if kept is not None and kept[0] != distinct:
            assert isinstance(answer, Problem) and answer.code == "idempotency-key-reused"
            return
        self.entries += 1
        new = [label_id for label_id in distinct if label_id not in self.has[run]]
        total = sum(len(has) for has in self.has.values())
        expected = None
        if run in self.sealed:
            expected = "run-sealed"
        elif any(not 0 <= label_id < POOL for label_id in distinct):
            expected = "unknown-id"
        elif new and self.evaluated[run]:
            expected = "querying-closed"
        elif len(self.has[run]) + len(new) > self.budget[run]:
            expected = "label-budget-exhausted"
        elif new and total + len(new) > TOTAL_BUDGET:
            expected = "total-budget-exhausted"
        if expected is not None:
            assert isinstance(answer, Problem) and answer.code == expected
            return
        assert isinstance(answer, ledger.Revealed)
        assert [(item.id, item.label) for item in answer.labels] == [(i, self.pool_labels[i]) for i in distinct]
        assert answer.replayed == (not new)
        self.has[run] |= set(new)
        if kept is not None:
            first = kept[1]
            assert isinstance(first, ledger.Revealed)
            assert (answer.labels, answer.charged, answer.queries) == (first.labels, first.charged, first.queries)
            return
        assert {item.id for item in answer.labels if item.charged} == set(new)
        assert (answer.charged, answer.queries) == (len(new), len(self.has[run]))
        if key:
            self.answers[run, key] = (distinct, answer)

    @rule(run=opened, guess=st.integers(0, CLASSES - 1), key=keys)
    def evaluate(self, run: str, guess: int, key: str | None) -> None:
        """One evaluation a run, none for the guest, the same answer under the same key."""
        request = ledger.Request(run, "req", key)
        with UnitOfWork.begin(self.engine, self.log) as unit:
            answer = ledger.evaluate(unit, self.rules, request, [guess] * TEST, None)
        kept = self.answers.get((run, key)) if key else None
        if kept is not None and kept[0] != guess:
            assert isinstance(answer, Problem) and answer.code == "idempotency-key-reused"
            return
        self.entries += 1
        if run in self.sealed:
            assert isinstance(answer, Problem) and answer.code == "run-sealed"
            return
        if kept is None and (run == GUEST or self.evaluated[run]):
            assert isinstance(answer, Problem)
            assert answer.code == ("guest-has-no-evaluations" if run == GUEST else "evaluations-exhausted")
            return
        assert isinstance(answer, ledger.Evaluated)
        assert (answer.correct, answer.total) == (self.test_labels.count(guess), TEST)
        assert answer.replayed == (kept is not None)
        self.evaluated[run] = 1
        if key and kept is None:
            self.answers[run, key] = (guess, answer)

    @rule(run=opened)
    def seal(self, run: str) -> None:
        """A seal is logged once."""
        if run == GUEST:  # the routes refuse this before the ledger is asked
            return
        with UnitOfWork.begin(self.engine, self.log) as unit:
            entry = ledger.seal(unit, self.rules, ledger.Request(run, "req"))
        assert (json.loads(entry.data)["run"], json.loads(entry.data)["op"]) == (run, "run-sealed")
        assert (entry.seq == self.entries) == (run not in self.sealed)
        self.entries += run not in self.sealed
        self.sealed.add(run)

    @invariant()
    def database_says_what_the_model_says(self) -> None:
        """Three independent counts of the charges agree, and the log is whole and canonical."""
        if not hasattr(self, "has"):
            return
        with self.engine.begin() as connection:
            for run, has in self.has.items():
                assert _counts(connection, run) == (len(has),) * 3
                assert len(has) <= self.budget[run]
            stored = connection.execute(select(tables.entries.c.entry).order_by(tables.entries.c.seq)).scalars().all()
        log = [json.loads(entry) for entry in stored]
        assert [entry["seq"] for entry in log] == list(range(self.entries))
        assert [canonical_json(entry) for entry in log] == stored
        assert sum(len(has) for has in self.has.values()) <= TOTAL_BUDGET


def _counts(connection: Connection, run: str) -> tuple[int, int, int]:
    """Count a run's charges by its counter, by its reveals, and by the log."""
    spent = connection.execute(select(tables.runs.c.spent).where(tables.runs.c.run_id == run)).scalar_one()
    reveals = select(func.count()).select_from(tables.reveals).where(tables.reveals.c.run_id == run)
    charged = select(func.sum(tables.entries.c.charged)).where(tables.entries.c.run_id == run)
    return spent, connection.execute(reveals).scalar_one(), connection.execute(charged).scalar_one()


# Each step commits to a real file, so a few long games cost less than many short ones.
LedgerMachine.TestCase.settings = hypothesis.settings(
    max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLedger = LedgerMachine.TestCase
