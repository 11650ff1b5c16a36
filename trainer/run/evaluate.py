"""Freeze predictions of the test images, and let the label service compare them with its test labels.

The predictions are written to OUT before they are submitted, and what is submitted is that file: an accuracy can never
flow back into them. A learning curve freezes its predictions at each of its budgets, before the next label is asked,
and submits all of them after its last query.

    OUT/predictions.json, beliefs.npz                      of the run's end
    OUT/predictions-at-LABELS.json, beliefs-at-LABELS.npz  of an earlier point of a learning curve

The beliefs are class probabilities, float16: `pool` [N, C] and `test` [M, C].
"""

import json
import logging
import platform
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from trainer import __version__
from trainer.errors import CountsDisagree, DataError, RecordsUnwritable
from trainer.learning.device import arithmetic_on
from trainer.oracle.answers import Evaluation
from trainer.oracle.client import LabelClient
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.records.files import read_lines, replace_file
from trainer.records.progress import StageClock
from trainer.records.run_records import EvaluationResult, PointResult, RunResult, read_queries, write_result
from trainer.run.active_loop import LearnedState
from trainer.run.session import RunConfig, RunTicket

PREDICTIONS_FILE = "predictions.json"

log = logging.getLogger(__name__)


class FrozenPredictions(BaseModel):
    """Test predictions as they were frozen.

    Attributes:
        predictions: a class number for each test image, in order.
        labels: paid for when they were frozen.
        stage_seconds: wall time by stage until then, in seconds.
        estimate: the accuracy on the pool that the run expected then, None if it had no estimate.
        estimate_error: its standard error.
        arithmetic: what the networks computed in then, `bfloat16` or `float32`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    predictions: list[int]
    labels: int
    stage_seconds: dict[str, float]
    estimate: float | None = None
    estimate_error: float | None = None
    arithmetic: str = ""


def predictions_path(out: Path, labels: int | None = None) -> Path:
    """Return where the predictions after so many labels are kept; None is the run's end."""
    return out / (PREDICTIONS_FILE if labels is None else f"predictions-at-{labels}.json")


def freeze_predictions(out: Path, learned: LearnedState, test: Tensor, clock: StageClock) -> None:
    """Predict the test images, on which nothing was trained, and write predictions and beliefs to OUT.

    Args:
        out: the run's folder.
        learned: from the labels paid for so far.
        test: uint8 [M, H, W].
        clock: wall time by stage.

    Raises:
        RecordsUnwritable: they cannot be written.
    """
    guessed = learned.model.predict(test, learned.beliefs)
    path = out / ("beliefs.npz" if learned.is_end else f"beliefs-at-{learned.labels}.npz")
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, pool=_half(learned.beliefs), test=_half(guessed))
    except OSError as error:
        raise RecordsUnwritable(f"{path} cannot be written ({error.strerror}); --resume goes on") from error
    seconds = {name: round(value, 1) for name, value in clock.seconds.items()}
    frozen = FrozenPredictions(
        predictions=guessed.argmax(1).tolist(),
        labels=learned.labels,
        stage_seconds=seconds,
        estimate=None if learned.estimate is None else learned.estimate.accuracy,
        estimate_error=None if learned.estimate is None else learned.estimate.standard_error,
        arithmetic=arithmetic_on(test.device),
    )
    # Written last: where this file is, the point is done.
    replace_file(predictions_path(out, None if learned.is_end else learned.labels), frozen.model_dump_json() + "\n")


def _half(probabilities: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return probabilities.to(torch.float16).cpu().numpy()


def read_predictions(path: Path) -> FrozenPredictions:
    """Read frozen predictions.

    Raises:
        DataError: there are none yet, or the file is damaged.
    """
    try:
        return FrozenPredictions.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} holds no predictions yet ({path.name}); run `python -m trainer finetune` to its end first"
        ) from error
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is damaged; remove it and run `python -m trainer finetune --resume` again") from error


def submit(out: Path, client: LabelClient, ticket: RunTicket, config: RunConfig, clock: StageClock) -> RunResult:
    """Submit all frozen predictions, seal the run, and compare the trainer's count with the log's.

    Args:
        out: the run's folder.
        client: carries the run's token.
        ticket: the run.
        config: what the run was begun with.
        clock: wall time by stage.

    Returns:
        The result, which is also OUT/result.json.

    Raises:
        CountsDisagree: the log counts other queries than the trainer.
        DataError: predictions are missing or damaged.
        ServiceError: the service refuses or is lost.
    """
    profile = config.profile
    # All are read before the first is submitted: after it no label is answered that could mend one.
    earlier = [read_predictions(predictions_path(out, labels)) for labels in profile.evaluation_budgets[:-1]]
    frozen = [*earlier, read_predictions(predictions_path(out))]
    with clock.stage("evaluate"):
        sealed = client.run_state(ticket.run_id).sealed
        evaluations = [_evaluate(out, client, ticket, config, one, sealed=sealed) for one in frozen]
        if not sealed:
            client.seal(ticket.run_id)
        summary = client.log_summary()
    counted = sum(record.charged for record in read_queries(out))
    in_log = summary.run(ticket.run_id)
    result = RunResult(
        run_id=ticket.run_id,
        seed=config.seed,
        profile=profile.name,
        budget=profile.budget,
        queries_counted_by_trainer=counted,
        queries_in_log=in_log.queries if in_log else 0,
        distinct_labels_in_log=in_log.distinct_labels if in_log else 0,
        distinct_labels_revealed_to_anybody=summary.distinct_labels_revealed_to_anybody,
        evaluation=evaluations[-1],
        points=tuple(
            PointResult(evaluation=evaluation, **one.model_dump(exclude={"predictions"}))
            for one, evaluation in zip(frozen, evaluations, strict=True)
        ),
        stage_seconds={name: round(seconds, 1) for name, seconds in clock.seconds.items()},
        dataset=_as_json(ticket),
        versions={"labelmeter": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
    )
    write_result(out, result)
    if not result.counts_agree:
        raise CountsDisagree(
            f"the trainer counted {counted} queries, the log {result.queries_in_log} "
            f"({result.distinct_labels_in_log} distinct labels); this result must not be used"
        )
    return result


def _evaluate(
    out: Path, client: LabelClient, ticket: RunTicket, config: RunConfig, frozen: FrozenPredictions, *, sealed: bool
) -> EvaluationResult:
    """Have one point's predictions evaluated, once."""
    budget = frozen.labels if config.profile.evaluation_budgets else None
    key = f"{ticket.run_id}-evaluation" if budget is None else f"{ticket.run_id}-evaluation-{budget}"
    # A sealed run answers nothing any more, not even a repeat; its answer was on the disk before it was sealed.
    evaluation = _kept_evaluation(out, key) if sealed else None
    if evaluation is None:
        evaluation = client.evaluate(ticket.run_id, frozen.predictions, budget=budget, idempotency_key=key)
    return EvaluationResult.from_counts(evaluation.correct, evaluation.total)


def _kept_evaluation(out: Path, key: str) -> Evaluation | None:
    """Return the answer to an evaluation that the receipts hold, None if they hold none.

    Raises:
        DataError: the receipts are damaged.
    """
    path = out / RECEIPTS_FILE
    try:
        receipts = [json.loads(line) for line in read_lines(path)]
        mine = [kept["answer"] for kept in receipts if kept["request"].get("idempotency_key") == key]
        return Evaluation.model_validate(mine[-1]) if mine else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged, and with it the run's accuracy; restore it from a copy") from error


def _as_json(ticket: RunTicket) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = json.loads(ticket.dataset.model_dump_json())
    return data
