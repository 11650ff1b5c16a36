"""A Hypothesis machine plays runs against a real service on real SQLite, beside a model made of dicts and sets.

It also restarts the service, and tampers with its database while it is closed.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from label_service.errors import DatabaseRefused, Problem
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.limits import GUEST
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer, KeptLabel
from label_service.log.verify import verify
from label_service.service import LabelService, open_service
from label_service.settings import Settings
from label_service.store import tables
from tests.support.datasets import make_idx_dataset, read_pool_labels, read_test_labels

POOL, TEST, CLASSES = 12, 6, 3
TOTAL_BUDGET, GUEST_BUDGET = 10, 3
# Changes that the triggers refuse; the owner of the file can drop the triggers.
TAMPERINGS = {
    "edit": ("entries_no_update", "UPDATE entries SET entry = replace(entry, 'query', 'QUERY') || x'20' WHERE seq = 0"),
    "delete": ("entries_no_delete", "DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)"),
    "label": ("pool_labels_no_update", "UPDATE pool_labels SET label = (label + 1) % 3 WHERE id = 4"),
}

ids = st.lists(st.integers(0, POOL - 1), min_size=1, max_size=3) | st.sampled_from([[0, POOL], [-1]])
keys = st.none() | st.sampled_from(["k1", "k2"])


class ServiceMachine(RuleBasedStateMachine):
    """Opens runs, asks, repeats, evaluates and seals; counts, receipts and evidence must say what the model says."""

    opened = Bundle("opened")

    @initialize(target=opened)
    def begin(self) -> str:
        """Start a service on a fresh database, with its guest run."""
        self.folder = Path(tempfile.mkdtemp(prefix="service-machine-"))
        self.database = self.folder / "service" / "labels.sqlite3"
        data = make_idx_dataset(self.folder / "data", pool=POOL, test=TEST, classes=CLASSES, side=4)
        self.pool_labels, self.test_labels = read_pool_labels(data), read_test_labels(data)
        url = f"sqlite:///{self.database}"
        limits = {"guest_budget": GUEST_BUDGET, "total_budget": TOTAL_BUDGET}
        self.settings = Settings(data=data, other_data=True, database_url=url, **limits)
        self.budget = {GUEST: GUEST_BUDGET}
        self.has: dict[str, set[int]] = {GUEST: set()}
        self.evaluated: dict[str, int] = {GUEST: 0}
        self.sealed: set[str] = set()
        self.answers: dict[tuple[str, str], tuple[object, ledger.Revealed | ledger.Evaluated]] = {}
        self.kept: list[KeptAnswer] = []
        self.entries, self.backed_up = 1, 0
        self.older_snapshot = b""
        self._open()
        return GUEST

    def _open(self) -> None:
        self.stack = ExitStack()
        self.service: LabelService = self.stack.enter_context(open_service(self.settings))

    def _do(self, work: Callable[[UnitOfWork, Rules], Any]) -> Any:
        return self.service.writer.submit(lambda unit: work(unit, self.service.rules)).result()

    def teardown(self) -> None:
        """Close and remove the service."""
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.folder)

    @rule(target=opened, budget=st.integers(3, 8))
    def open_run(self, budget: int) -> str:
        """A fresh run has nothing."""
        run = self._do(lambda unit, rules: runs.open_run(unit, rules, "req", name="r", budget=budget)).run_id
        self.budget[run], self.has[run], self.evaluated[run] = budget, set(), 0
        self.entries += 1
        return run

    @rule(run=opened, requests=st.lists(st.tuples(ids, keys), min_size=1, max_size=4))
    def ask(self, run: str, requests: list[tuple[list[int], str | None]]) -> None:
        """Ask some times in a row."""
        for asked, key in requests:
            self._ask(run, asked, key)

    def _ask(self, run: str, asked: list[int], key: str | None) -> None:
        """Reveal, replay or refuse, as the rules say; never anything in between."""
        answer = self._do(lambda unit, rules: ledger.reveal(unit, rules, ledger.Request(run, "req", key), asked))
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
        opening = self.service.rules.answer_key.open
        labels = [KeptLabel(**vars(item), opening=opening(item.id)) for item in answer.labels]
        told = vars(answer) | {
            "labels": labels,
            "receipt": self.service.log.receipt(answer.entry, self.service.log.head),
        }
        self.kept.append(KeptAnswer.model_validate(told))
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
        answer = self._do(lambda unit, rules: ledger.evaluate(unit, rules, request, [guess] * TEST, None))
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

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A request that was answered under a key is sent again."""
        run, key = data.draw(st.sampled_from(sorted(self.answers)))
        asked = self.answers[run, key][0]
        again = self._ask if isinstance(asked, list) else self.evaluate
        again(run, asked, key)

    @rule(run=opened)
    def seal(self, run: str) -> None:
        """A seal is logged once."""
        if run == GUEST:  # the routes refuse this before the ledger is asked
            return
        entry = self._do(lambda unit, rules: ledger.seal(unit, rules, ledger.Request(run, "req")))
        assert (json.loads(entry.data)["run"], json.loads(entry.data)["op"]) == (run, "run-sealed")
        assert (entry.seq == self.entries) == (run not in self.sealed)
        self.entries += run not in self.sealed
        self.sealed.add(run)

    @rule(
        change=st.sampled_from([None, "old backup", *TAMPERINGS]), snapshot=st.sampled_from(["newest", "older", None])
    )
    def restart(self, change: str | None, snapshot: str | None) -> None:
        """A restart changes nothing, but a changed or older database is refused at the start; the good one goes on."""
        account = self.service.log.account
        self.stack.close()
        (file,) = self.folder.glob("*/*.snapshot")
        self.older_snapshot = self.older_snapshot or file.read_bytes()
        if snapshot == "older":
            file.write_bytes(self.older_snapshot)
        elif snapshot is None:
            file.unlink()
        good = shutil.copy(self.database, self.folder / "good")
        if change in TAMPERINGS:
            trigger, statement = TAMPERINGS[change]
            with closing(sqlite3.connect(self.database)) as connection:
                connection.execute(f"DROP TRIGGER {trigger}")
                connection.execute(statement)
                connection.commit()
        elif change is not None and 0 < self.backed_up < self.entries:
            shutil.copy(self.folder / "backup", self.database)
        else:
            shutil.copy(self.database, self.folder / "backup")
            self.backed_up, change = self.entries, None
        if change is not None:
            with pytest.raises(DatabaseRefused), open_service(self.settings):
                pass
            shutil.copy(good, self.database)
        self._open()
        assert self.service.log.account == account

    @invariant()
    def evidence_says_what_the_model_says(self) -> None:
        """The bundle verifies with every answer ever kept, and its accounts are the model's."""
        evidence = Evidence.model_validate_json("".join(self.service.evidence()))
        verdict = verify(evidence, self.service.log.verifier, self.kept)
        assert {run: account.labels for run, account in verdict.runs.items()} == self.has
        assert (verdict.entries, verdict.receipts) == (self.entries, len(self.kept))
        log = [json.loads(entry) for entry in evidence.entries]
        assert [entry["seq"] for entry in log] == list(range(self.entries))
        assert [canonical_json(entry).decode() for entry in log] == evidence.entries

    @invariant()
    def counts_say_what_the_model_says(self) -> None:
        """Three independent counts of the charges agree: the run's counter, its reveals, and the log."""
        expected = {run: len(has) for run, has in self.has.items()}
        assert all(count <= self.budget[run] for run, count in expected.items())
        assert sum(expected.values()) <= TOTAL_BUDGET
        by_run = [
            select(tables.runs.c.run_id, tables.runs.c.spent),
            select(tables.reveals.c.run_id, func.count()).group_by(tables.reveals.c.run_id),
            select(tables.entries.c.run_id, func.sum(tables.entries.c.charged)).group_by(tables.entries.c.run_id),
        ]
        with self.service.reader._engine.connect() as connection:
            for query in by_run:
                counted = {run: count for run, count in connection.execute(query) if count}
                assert counted == {run: count for run, count in expected.items() if count}


TestService = ServiceMachine.TestCase
TestService.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
