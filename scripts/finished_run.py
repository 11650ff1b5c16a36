"""The check of a finished results folder: what the closing table shows is what the log's signed entries say.

The evidence is verified under the pinned key in a process of its own. Every number of the run is then counted from its
entries, and the files beside it must agree: the exported log, the service's summary, the trainer's result, queries and
frozen predictions, and its receipts, which must have answered every label. `docs/verifying.md` lists what is not
checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import counts, evidence
from scripts.counts import LogCounts
from scripts.errors import RunError
from trainer.errors import DataError, ServiceProtocolError, printable
from trainer.oracle.answers import LogSummary, parse_answer
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.records.run_records import (
    QUERIES_FILE,
    RESULT_FILE,
    EvaluationResult,
    PointResult,
    RunResult,
    read_queries,
    read_result,
)

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class CheckedRun:
    """What a finished folder proves.

    Attributes:
        result: the trainer's result, which agrees with the log.
        log: labels counted from the signed entries.
        evaluation: the last one, from its signed entry.
        verdict: of `label_service verify`, for people.
    """

    result: RunResult
    log: LogCounts
    evaluation: EvaluationResult
    verdict: str


def check_finished_run(service: Sequence[str], out: Path) -> CheckedRun:
    """Check a finished results folder.

    Args:
        service: how the label service's command line is started.
        out: the results folder.

    Raises:
        RunError: a file is missing, or does not agree with the signed entries; the message names it.
    """
    trainer = out / "trainer"
    needed = [out / name for name in (evidence.KEY_FILE, evidence.BUNDLE_FILE, evidence.LOG_FILE)]
    needed += [trainer / name for name in (RESULT_FILE, QUERIES_FILE, RECEIPTS_FILE)]
    for path in needed:
        if not path.is_file():
            raise RunError(f"{path} is missing, without which a finished run proves nothing. Restore it from a copy.")
    verdict = evidence.verify_run(service, out)
    entries = evidence.read_entries(out)
    try:
        result, queries = read_result(trainer), read_queries(trainer)
    except DataError as error:
        # The rest of the sentence advises on a run that goes on.
        raise _distrust(str(error).partition(";")[0]) from error
    assert result is not None, "it is one of the needed files"
    log = counts.count_log(entries, result.run_id)
    own = [entry for entry in entries if entry["run"] == result.run_id]
    _check_opening(own, result, trainer / RESULT_FILE)
    disagreements = counts.find_disagreements(result, queries, log)
    if disagreements:
        raise _distrust(f"the counts do not agree: {'; '.join(disagreements)}")
    points = [entry["detail"] for entry in own if entry["outcome"] == "evaluated"]
    _check_points(points, result, log, trainer)
    _check_receipts({query.id: query.label for query in queries}, result.run_id, trainer)
    _check_summary(out / evidence.SUMMARY_FILE, result.run_id, log, len(entries))
    return CheckedRun(result, log, _evaluation_of(points[-1]), verdict)


def _check_opening(own: Sequence[Entry], result: RunResult, path: Path) -> None:
    """Compare profile, seed and budget with the entry that opened the run."""
    if not own:
        raise _distrust(f"{path} names the run {result.run_id}, which the log does not have")
    opened = (own[0].get("detail", {}).get("name"), own[0]["budget"])
    claimed = (f"{result.profile} seed {result.seed}", result.budget)
    if opened != claimed:
        raise _distrust(
            f"{path} is of {claimed[0]} with budget {claimed[1]}, and the log of {opened[0]} with {opened[1]}"
        )


def _check_points(points: Sequence[Entry], result: RunResult, log: LogCounts, trainer: Path) -> None:
    """Compare the frozen predictions and the result with the signed evaluations: `points`, their details in order."""
    path = trainer / RESULT_FILE
    if len(points) != len(result.points) or not points:
        raise _distrust(f"{path} has {len(result.points)} evaluations, and the log {len(points)}")
    for number, (signed, point) in enumerate(zip(points, result.points, strict=True), start=1):
        budget = signed["evaluated_budget"]
        frozen = trainer / ("predictions.json" if number == len(points) else f"predictions-at-{budget}.json")
        made = _expected_point(frozen, signed)
        if made.labels != (log.queries if budget is None else budget):
            raise _distrust(f"{frozen} was frozen at {made.labels} labels, and evaluated as of another number")
        # Computed from the signed accuracy and the beliefs after the evaluation, so the predictions do not hold it.
        if point.model_copy(update={"balanced_estimate": made.balanced_estimate}) != made:
            raise _distrust(f"{path} has another evaluation at {made.labels} labels than the log and {frozen}")
    if result.evaluation != result.points[-1].evaluation:
        raise _distrust(f"{path} has another accuracy than the log: {counts.format_accuracy(result.evaluation)}")


def _expected_point(frozen: Path, signed: Entry) -> PointResult:
    """Make the point of a result out of frozen predictions and their signed evaluation."""
    if not frozen.is_file():
        raise RunError(f"{frozen} is missing, which the log has an evaluation of. Restore it from a copy.")
    try:
        content = json.loads(frozen.read_bytes())
        predictions = json.dumps(content.pop("predictions"), separators=(",", ":"), allow_nan=False)
        point = PointResult.model_validate({**content, "evaluation": _evaluation_of(signed)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _distrust(f"{frozen} does not hold frozen predictions") from error
    if hashlib.sha256(predictions.encode()).hexdigest() != signed["predictions_sha256"]:
        raise _distrust(f"{frozen} has other predictions than were evaluated: the log has another SHA-256")
    return point


def _evaluation_of(signed: Entry) -> EvaluationResult:
    return EvaluationResult.from_counts(signed["correct"], signed["total"])


def _check_receipts(labels: Mapping[int, int], run_id: str, trainer: Path) -> None:
    """Check that receipts answered every label of queries.jsonl; `verify` has checked each receipt by itself."""
    path = trainer / RECEIPTS_FILE
    answered: dict[int, int] = {}
    try:
        for line in counts.read_lines(path):
            answer = line["answer"]
            receipt = answer.get("receipt")
            if receipt is not None and json.loads(receipt["entry"])["run"] == run_id:
                answered |= {label["id"]: label["label"] for label in answer.get("labels", ())}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _distrust(f"{path} has a line that is no answer of the service") from error
    uncovered = sorted(labels.keys() - answered.keys())
    if uncovered:
        raise _distrust(
            f"{path} has receipts for {len(labels) - len(uncovered):,} of the {len(labels):,} labels in "
            f"{QUERIES_FILE}, and none for image {uncovered[0]}"
        )
    wrong = sorted(label_id for label_id, label in labels.items() if answered[label_id] != label)
    if wrong:
        raise _distrust(
            f"{trainer / QUERIES_FILE} gives image {wrong[0]} the class {labels[wrong[0]]}, and its receipt "
            f"{answered[wrong[0]]}"
        )


def _check_summary(path: Path, run_id: str, log: LogCounts, entries: int) -> None:
    """Compare the service's own counts with those of its entries."""
    try:
        summary = parse_answer(LogSummary, path.read_bytes(), "GET /v1/log/summary")
    except (OSError, ServiceProtocolError) as error:
        raise _distrust(f"{path} is damaged") from error
    run = summary.run(run_id)
    found = run and (run.queries, run.distinct_labels, summary.distinct_labels_revealed_to_anybody, summary.entries)
    if found != (log.queries, len(log.labels), log.anybody, entries):
        raise _distrust(f"{path} has other counts than the log")


def _distrust(what: str) -> RunError:
    return RunError(printable(f"{what.rstrip('.')}. Do not trust this run."))
