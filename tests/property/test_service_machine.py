"""A Hypothesis machine plays a whole service, restarts it, and tampers with its database while it is closed."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from label_service.errors import DatabaseRefused, LabelBudgetExhausted, Problem, QueryingClosed, RunSealed
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.evidence import KeptAnswer, OpenedLabel
from label_service.log.verify import verify
from label_service.service import LabelService, open_service
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset

POOL, TEST, CLASSES, BUDGET = 12, 6, 3, 5
# Changes that the triggers refuse; the owner of the file can drop the triggers.
TAMPERINGS = {
    "edit": ("entries_no_update", "UPDATE entries SET entry = replace(entry, 'query', 'QUERY') || x'20' WHERE seq = 0"),
    "delete": ("entries_no_delete", "DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)"),
    "label": ("pool_labels_no_update", "UPDATE pool_labels SET label = (label + 1) % 3 WHERE id = 4"),
}


class ServiceMachine(RuleBasedStateMachine):
    """Counts, receipts and evidence agree with a model made of dicts, whatever happens."""

    opened = Bundle("opened")

    @initialize()
    def begin(self) -> None:
        """Start a service on a fresh database."""
        self.folder = Path(tempfile.mkdtemp(prefix="service-machine-"))
        self.database = self.folder / "service" / "labels.sqlite3"
        self.has: dict[str, set[int]] = {}
        self.ended: dict[str, type[Problem]] = {}
        self.kept: list[KeptAnswer] = []
        self.keys: dict[tuple[str, str], list[int]] = {}
        self.settings = Settings(
            data=make_idx_dataset(self.folder / "data", pool=POOL, test=TEST, classes=CLASSES, side=4),
            other_data=True,
            database_url=f"sqlite:///{self.database}",
        )
        self.backup: Path | None = None
        self._open()

    def _open(self) -> None:
        self.stack = ExitStack()
        self.service: LabelService = self.stack.enter_context(open_service(self.settings))

    def _do(self, work: Callable[[UnitOfWork, Rules], object]) -> object:
        return self.service.writer.submit(lambda unit: work(unit, self.service.rules)).result()

    def teardown(self) -> None:
        """Close and remove it."""
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.folder)

    @rule(target=opened)
    def open_run(self) -> str:
        """A run of five labels."""
        run = self._do(lambda c, rules: runs.open_run(c, rules, "req", name="r", budget=BUDGET))
        assert isinstance(run, runs.Opened)
        self.has[run.run_id] = set()
        return run.run_id

    @rule(
        run=opened, ids=st.sets(st.integers(0, POOL - 1), min_size=1, max_size=4), key=st.sampled_from(["", "a", "b"])
    )
    def reveal(self, run: str, ids: set[int], key: str) -> None:
        """New labels are charged, old ones replayed, too many refused, and a key is answered as the first time."""
        asked = self.keys.get((run, key), sorted(ids))
        request = ledger.Request(run, "req", key or None)
        answer = self._do(lambda c, rules: ledger.reveal(c, rules, request, asked))
        new = set(asked) - self.has[run]
        if self.ended.get(run) is RunSealed or (new and run in self.ended):
            assert isinstance(answer, self.ended[run])
        elif len(self.has[run] | new) > BUDGET:
            assert isinstance(answer, LabelBudgetExhausted)
        else:
            assert isinstance(answer, ledger.Revealed)
            assert answer.replayed == (not new)
            self.has[run] |= new
            if key:
                self.keys[run, key] = asked
            self._keep(answer)

    def _keep(self, answer: ledger.Revealed) -> None:
        opened = [
            OpenedLabel(id=label.id, label=label.label, opening=self.service.rules.answer_key.open(label.id))
            for label in answer.labels
        ]
        self.kept.append(KeptAnswer(receipt=self.service.log.receipt(answer.entry), labels=opened))

    @rule(run=opened)
    def evaluate(self, run: str) -> None:
        """The first evaluation closes querying."""
        request = ledger.Request(run, "req")
        answer = self._do(lambda c, rules: ledger.evaluate(c, rules, request, [0] * TEST, None))
        assert isinstance(answer, ledger.Evaluated) == (run not in self.ended)
        self.ended.setdefault(run, QueryingClosed)

    @rule(run=opened)
    def seal(self, run: str) -> None:
        """A sealed run answers nothing."""
        self._do(lambda c, rules: ledger.seal(c, rules, ledger.Request(run, "req")))
        self.ended[run] = RunSealed

    @rule()
    def restart(self) -> None:
        """Nothing changes over a restart."""
        self.stack.close()
        self._open()

    @rule()
    def back_up(self) -> None:
        """Copy the database while it is closed."""
        self.stack.close()
        self.backup = Path(shutil.copy(self.database, self.folder / "backup"))
        self.backed_up = self._stored()
        self._open()

    def _stored(self) -> int:
        with closing(sqlite3.connect(self.database)) as connection:
            return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    @rule(kind=st.sampled_from([*TAMPERINGS, "old backup"]))
    def tamper(self, kind: str) -> None:
        """A changed or older database is refused at the start; the good one goes on."""
        self.stack.close()
        good = shutil.copy(self.database, self.folder / "good")
        if kind == "old backup":
            if self.backup is not None and self.backed_up < self._stored():
                shutil.copy(self.backup, self.database)
                self._expect_refusal()
        else:
            trigger, statement = TAMPERINGS[kind]
            with closing(sqlite3.connect(self.database)) as connection:
                connection.execute(f"DROP TRIGGER {trigger}")
                connection.execute(statement)
                connection.commit()
            self._expect_refusal()
        shutil.copy(good, self.database)
        self._open()

    def _expect_refusal(self) -> None:
        with pytest.raises(DatabaseRefused), open_service(self.settings):
            pass

    @invariant()
    def evidence_says_what_the_model_says(self) -> None:
        """The bundle verifies with every answer ever kept, and its accounts are the model's."""
        verdict = verify(self.service.evidence(), self.service.log.verifier, self.kept)
        assert {run: account.labels for run, account in verdict.runs.items() if run != "guest"} == self.has
        assert verdict.receipts == len(self.kept)


TestService = ServiceMachine.TestCase
TestService.settings = settings(
    max_examples=20,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
