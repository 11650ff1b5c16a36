"""Runs of the tiny profile for integration tests, their outcomes, and their charges in the service's log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.services import RunningService
from trainer.options import RunOptions
from trainer.records.run_records import RunResult, read_queries, read_rounds
from trainer.run.evaluate import PREDICTIONS_FILE
from trainer.run.pipeline import Pipeline


def settings_for(out: Path, data: Path, service: RunningService | str, **more: Any) -> RunOptions:
    """Options of a tiny run on a service, its patience as short as a test's."""
    url = service if isinstance(service, str) else service.base_url
    given = {"profile": "tiny", "device": "cpu", "patience_s": 20.0} | more
    return RunOptions(out=out, data=data / "images", service=url, **given)


def run_to_end(options: RunOptions) -> RunResult:
    """Do what `python -m trainer run` does, but for the report."""
    pipeline = Pipeline(options)
    with pipeline.client() as client:
        ticket = pipeline.finetune(pipeline.pretrain(), client)
    return pipeline.evaluate(ticket)


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
