"""A run that is killed and resumed ends as one that was not: same queries, none charged twice, same predictions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from label_service.settings import Settings as ServiceSettings
from tests.support.services import RunningService, run_service
from tests.support.tiny_trainer import CHECKPOINTS, KILL_AT, TINY
from tests.support.trainer_runs import (
    Arm,
    Outcome,
    after,
    before,
    charges_of,
    outcome_of,
    run_and_die,
    run_to_end,
    settings_for,
)
from trainer.learning import pretrain
from trainer.oracle.client import LabelClient
from trainer.oracle.transport import Transport, _TryAgain
from trainer.records.run_records import QUERIES_FILE, RESULT_FILE, RunResult
from trainer.run import active_loop, evaluate, pipeline
from trainer.run import label_oracle as oracle

pytestmark = pytest.mark.usefixtures("tiny_profiles")


@pytest.fixture(scope="module")
def uninterrupted(shared_service: RunningService, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a run of this seed ends with when nothing happens to it."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    result = run_to_end(settings_for(out, tiny_data, shared_service))
    outcome = outcome_of(out, result)
    assert len(outcome.asked) == TINY.budget == result.queries_in_log
    assert charges_of(shared_service, result.run_id).replayed_batches == 0
    return outcome


def tear_the_last_lines(out: Path, *_: object) -> None:
    """Leave one and a half lines of the batch that was just written."""
    path = out / QUERIES_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-5]) + lines[-5][:40])


MOMENTS = {
    "after the first epoch of pretraining": (after(pretrain, "save_checkpoint"), 0),
    "after the run was opened, before its token was kept": (before(pipeline.session, "replace_file", 2), 0),
    "after a question was written down, before it was asked": (before(LabelClient, "query", 2), 0),
    "after the first question was answered, before the answer was kept": (after(LabelClient, "query", 1), 1),
    "after a later question was answered, before the answer was kept": (after(LabelClient, "query", 2), 1),
    "in the middle of writing the answers": (after(oracle, "append_queries", 2, tear_the_last_lines), 1),
    "after the answers were kept, before the question was crossed out": (after(oracle, "append_queries", 3), 1),
    "after a round was asked, before its line was written": (before(active_loop, "append_round", 2), 0),
    "between two rounds": (after(active_loop, "save_checkpoint", 1), 0),
    "in the middle of a phase": (after(active_loop, "save_checkpoint", 3), 0),
    "between two phases": (after(active_loop, "save_checkpoint", 4), 0),
    "after the last phase": (after(active_loop, "save_checkpoint", CHECKPOINTS), 0),
    "before the last checkpoint of a phase was written": (before(active_loop, "save_checkpoint", 4), 0),
    "before the predictions were frozen": (before(pipeline, "freeze_predictions"), 0),
    "after the predictions were frozen, before the evaluation": (after(pipeline, "freeze_predictions"), 0),
    "after the evaluation, before the run was sealed": (before(LabelClient, "seal"), 0),
    "after the run was sealed, before the counts were compared": (before(LabelClient, "log_summary"), 0),
    "after the counts were compared, before the result was written": (before(evaluate, "write_result"), 0),
}


@pytest.mark.parametrize(("arm", "replays"), MOMENTS.values(), ids=MOMENTS.keys())
def test_killed_run_resumes_to_the_same_end(
    arm: Arm,
    replays: int,
    uninterrupted: Outcome,
    shared_service: RunningService,
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    """Same queries in the same order, none charged twice, at most one batch asked again, same predictions."""
    run_and_die(settings_for(tmp_path / "out", tiny_data, shared_service), arm)
    result = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, resume=True))
    assert outcome_of(tmp_path / "out", result) == uninterrupted
    charges = charges_of(shared_service, result.run_id)
    assert charges.ids == [label_id for _, label_id, _, _ in uninterrupted.asked]
    assert charges.replayed_batches == replays
    assert result.counts_agree


def test_finished_run_resumed_does_nothing_and_says_the_same(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """--resume on a finished folder asks nothing, evaluates nothing, and keeps the result."""
    first = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service))
    entries = len(shared_service.entries(run=first.run_id))
    again = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, resume=True))
    assert (again.evaluation, again.queries_in_log) == (first.evaluation, first.queries_in_log)
    assert len(shared_service.entries(run=first.run_id)) == entries


@pytest.mark.slow
def test_sigkill_of_the_real_program_costs_no_label(
    uninterrupted: Outcome, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """`python -m trainer run`, kill -9, the same with --resume: the end of an uninterrupted run."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.support.tiny_trainer", "run", "--profile", "tiny", "--device", "cpu"]
    command += ["--out", str(out), "--data", str(tiny_data / "images"), "--service", shared_service.base_url]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment | {KILL_AT: "3"}, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / RESULT_FILE).exists()
    resumed = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    result = RunResult.model_validate_json((out / RESULT_FILE).read_text())
    assert outcome_of(out, result) == uninterrupted
    charges = charges_of(shared_service, result.run_id)
    assert (len(charges.ids), len(set(charges.ids)), charges.replayed_batches) == (TINY.budget, TINY.budget, 0)


def before_asking(attempt: Callable[..., Any], go_down: Callable[[], None]) -> Callable[..., Any]:
    """Take the service away before it is asked the second round's labels."""

    def wrapped(self: Transport, request: httpx.Request, name: str) -> Any:
        if _asks_round_1(request) and not gone:
            gone.append(name)
            go_down()
        return attempt(self, request, name)

    gone: list[str] = []
    return wrapped


def before_the_answer_arrives(attempt: Callable[..., Any], go_down: Callable[[], None]) -> Callable[..., Any]:
    """Take the service away once it has charged the second round's labels, and lose its answer on the way."""

    def wrapped(self: Transport, request: httpx.Request, name: str) -> Any:
        answer = attempt(self, request, name)
        if _asks_round_1(request) and not gone:
            gone.append(name)
            go_down()
            raise _TryAgain("the connection was cut before the answer was complete")
        return answer

    gone: list[str] = []
    return wrapped


def _asks_round_1(request: httpx.Request) -> bool:
    return request.headers.get("idempotency-key", "").endswith("-round-1")


class RestartableService:
    """A service that goes down and comes back: the same database, the same port."""

    def __init__(self, settings: Callable[..., ServiceSettings]) -> None:
        self._settings, self._stack = settings, ExitStack()
        self.running = self._stack.enter_context(run_service(settings()))
        self.url = self.running.base_url
        self._starter: threading.Timer | None = None
        self.restarts = 0

    def go_down(self, for_s: float) -> None:
        """Stop answering now; a thread starts it again after some seconds."""
        self._stack.close()
        self._starter = threading.Timer(for_s, self._start)
        self._starter.start()

    def _start(self) -> None:
        self.running = self._stack.enter_context(run_service(self._settings(port=httpx.URL(self.url).port)))
        self.restarts += 1

    def close(self) -> None:
        """Stop for good."""
        if self._starter is not None:
            self._starter.join()
        self._stack.close()


@pytest.mark.parametrize(("moment", "replays"), [(before_asking, 0), (before_the_answer_arrives, 1)])
def test_service_restarted_in_the_middle_costs_a_pause_and_no_label(
    moment: Callable[[Callable[..., Any], Callable[[], None]], Callable[..., Any]],
    replays: int,
    service_settings: Callable[..., ServiceSettings],
    uninterrupted: Outcome,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The service goes down in the second round and comes back on its port: the run goes on by itself."""
    service = RestartableService(service_settings)
    try:
        monkeypatch.setattr(Transport, "_attempt", moment(Transport._attempt, lambda: service.go_down(for_s=0.7)))
        result = run_to_end(settings_for(tmp_path / "out", tiny_data, service.url))
        charges = charges_of(service.running, result.run_id)
    finally:
        service.close()
    assert (service.restarts, charges.replayed_batches) == (1, replays)
    assert outcome_of(tmp_path / "out", result) == uninterrupted
    assert charges.ids == [label_id for _, label_id, _, _ in uninterrupted.asked]
    assert result.queries_in_log == TINY.budget
