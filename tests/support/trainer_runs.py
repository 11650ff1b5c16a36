"""Runs of the tiny profiles for integration tests: how they are killed, how they end, what the log charges them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.services import RunningService
from trainer.cli import app
from trainer.options import RunOptions
from trainer.records.run_records import RunResult, read_queries, read_rounds
from trainer.run import pipeline
from trainer.run.evaluate import PREDICTIONS_FILE

Arm = Callable[[pytest.MonkeyPatch], None]


class Killed(BaseException):
    """The process ends here: no code of the trainer catches it."""


def before(owner: Any, name: str, call: int = 1) -> Arm:
    """Die in place of the `call`th call of a function."""
    return _at(owner, name, call, lambda _original, *_args, **_kwargs: None)


def after(owner: Any, name: str, call: int = 1, then: Callable[..., None] = lambda *_: None) -> Arm:
    """Die right after the `call`th call of a function has returned; `then` sees its arguments first."""

    def finish(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        then(*args)

    return _at(owner, name, call, finish)


def _at(owner: Any, name: str, call: int, last_act: Callable[..., None]) -> Arm:
    def arm(patch: pytest.MonkeyPatch) -> None:
        original, calls = getattr(owner, name), 0

        def go_on_or_die(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < call:
                return original(*args, **kwargs)
            last_act(original, *args, **kwargs)
            raise Killed

        patch.setattr(owner, name, go_on_or_die)

    return arm


def run_and_die(options: RunOptions, arm: Arm) -> None:
    """Run until it is killed at a moment."""
    with pytest.MonkeyPatch.context() as patch:
        arm(patch)
        with pytest.raises(Killed):
            run_to_end(options)


def run_command(name: str, out: Path, data: Path, service: RunningService | str, *more: str) -> tuple[int, str, str]:
    """Run a command of the tiny profile in this process; return its exit code, its one error sentence, its output."""
    url = service if isinstance(service, str) else service.base_url
    given = [name, "--out", str(out), "--data", str(data / "images")]
    given += ["--service", url, "--patience-s", "5"] if name in ("run", "finetune", "evaluate") else []
    given += ["--profile", "tiny", "--device", "cpu"] if name in ("run", "finetune", "pretrain") else []
    done = CliRunner().invoke(app, [*given, *more])
    if isinstance(done.exception, Killed):
        raise done.exception
    assert "Traceback" not in done.output + done.stderr, done.exception
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == (done.exit_code != 0), (done.stderr, done.exception)
    return done.exit_code, "".join(sentences), done.stdout + done.stderr


def settings_for(out: Path, data: Path, service: RunningService | str, **more: Any) -> RunOptions:
    """Options of a tiny run on a service, its patience as short as a test's."""
    url = service if isinstance(service, str) else service.base_url
    given = {"profile": "tiny", "device": "cpu", "patience_s": 20.0} | more
    return RunOptions(out=out, data=data / "images", service=url, **given)


def run_to_end(options: RunOptions) -> RunResult:
    """Do what `python -m trainer run` does, but for the report."""
    stages = pipeline.Pipeline(options)
    with stages.client() as client:
        ticket = stages.finetune(stages.pretrain(), client)
    return stages.evaluate(ticket)


@dataclass(frozen=True)
class Outcome:
    """What two runs of one seed must have in common, also if one was interrupted."""

    asked: list[tuple[int, int, int, int | None]]
    rounds: list[tuple[int, int, float | None]]
    predictions: list[int]
    correct: int


def outcome_of(out: Path, result: RunResult) -> Outcome:
    """Read a finished run."""
    assert result.evaluation is not None
    return Outcome(
        asked=[(record.round, record.id, record.label, record.predicted) for record in read_queries(out)],
        rounds=[(record.round, record.labels, record.prequential_accuracy) for record in read_rounds(out)],
        predictions=json.loads((out / PREDICTIONS_FILE).read_text())["predictions"],
        correct=result.evaluation.correct,
    )


@dataclass(frozen=True)
class Charges:
    """A run in the service's log: the ids charged, in order, and the number of batches answered again for free."""

    ids: list[int]
    replayed_batches: int


def charges_of(service: RunningService, run_id: str) -> Charges:
    """Count in the log itself, entry by entry."""
    queries = [entry for entry in service.entries(run=run_id) if entry["op"] == "query"]
    charged = [entry for entry in queries if entry["outcome"] == "revealed"]
    assert all(len(entry["ids"]) == entry["charged"] for entry in charged)
    return Charges(
        ids=[label_id for entry in charged for label_id in entry["ids"]],
        replayed_batches=sum(entry["outcome"] == "replayed" for entry in queries),
    )
