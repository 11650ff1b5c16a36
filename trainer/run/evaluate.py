"""Freeze predictions of the test images, and let the label service compare them with its test labels.

The predictions are written to OUT first, and that file is submitted, so no accuracy can influence them. A learning
curve freezes its predictions at each of its budgets, before the next label is asked, and submits all of them after its
last query.

    OUT/predictions.json, beliefs.npz                      at the run's end
    OUT/predictions-at-LABELS.json, beliefs-at-LABELS.npz  at an earlier point of a learning curve

The beliefs are class probabilities, float16: `pool` [N, C] and `test` [M, C].
"""

import io
import json
import platform
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer import __version__
from trainer.errors import CountsDisagree, DataError
from trainer.learning.device import arithmetic_on
from trainer.oracle.answers import Evaluation
from trainer.oracle.client import LabelClient
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.records.files import read_file, read_lines, replace_file
from trainer.records.progress import StageClock
from trainer.records.run_records import (
    EvaluationResult,
    FrozenPoint,
    PointResult,
    RunResult,
    read_queries,
    write_result,
)
from trainer.run.accuracy_estimate import balanced_accuracy
from trainer.run.active_loop import LearnedState
from trainer.run.session import RunConfig, RunTicket

PREDICTIONS_FILE = "predictions.json"


class FrozenPredictions(FrozenPoint, strict=True):
    """Frozen test predictions.

    Attributes:
        predictions: A class number for each test image, in order.
    """

    predictions: list[int]


def predictions_path(out: Path, labels: int | None = None) -> Path:
    """Return the file of the predictions after so many labels; None is the run's end."""
    return out / (PREDICTIONS_FILE if labels is None else f"predictions-at-{labels}.json")


def _beliefs_path(out: Path, labels: int | None) -> Path:
    return out / ("beliefs.npz" if labels is None else f"beliefs-at-{labels}.npz")


def freeze_predictions(
    out: Path, learned: LearnedState, test: Tensor, clock: StageClock, own: Tensor | None = None
) -> None:
    """Predict the test images, which are never trained on; write predictions and beliefs to OUT.

    Test images are uint8 [M, H, W] or [M, H, W, 3]; their own features, where the pool has such, float32 [M, E].

    Raises:
        RecordsUnwritable: They cannot be written.
    """
    guessed = learned.model.predict(test, learned.beliefs, own)
    beliefs = io.BytesIO()
    np.savez_compressed(beliefs, pool=_half(learned.beliefs), test=_half(guessed))
    replace_file(_beliefs_path(out, None if learned.is_end else learned.labels), beliefs.getvalue())
    frozen = FrozenPredictions(
        predictions=guessed.argmax(1).tolist(),
        labels=learned.labels,
        stage_seconds=_rounded(clock.seconds),
        estimate=None if learned.estimate is None else learned.estimate.accuracy,
        estimate_error=None if learned.estimate is None else learned.estimate.standard_error,
        largest_class=learned.class_shares.largest,
        constant_guess=learned.class_shares.constant_guess,
        largest_among_labels=learned.class_shares.largest_among_labels,
        arithmetic=arithmetic_on(test.device),
    )
    # Written last: where this file is, the point is done.
    replace_file(predictions_path(out, None if learned.is_end else learned.labels), frozen.model_dump_json() + "\n")


def _half(probabilities: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return probabilities.to(torch.float16).cpu().numpy()


def _rounded(stage_seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 1) for name, seconds in stage_seconds.items()}


def read_predictions(path: Path) -> FrozenPredictions:
    """Read frozen predictions.

    Raises:
        DataError: There are none yet, or the file is damaged.
    """
    damage = "is damaged; remove it and run `python -m trainer finetune --resume` again"
    frozen = read_file(path, FrozenPredictions.model_validate_json, damage)
    if frozen is None:
        raise DataError(
            f"{path.parent} holds no predictions yet ({path.name}); run `python -m trainer finetune` to its end first"
        )
    return frozen


def _read_test_beliefs(path: Path) -> Tensor:
    """Read the class probabilities of the test images, float16 [M, C].

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as beliefs:
            return torch.from_numpy(beliefs["test"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is missing or damaged; restore it from a copy") from error


def submit(out: Path, client: LabelClient, ticket: RunTicket, config: RunConfig, clock: StageClock) -> RunResult:
    """Submit all frozen predictions, seal the run, compare the trainer's count with the log's; write result.json.

    Raises:
        CountsDisagree: Log and trainer counted different queries.
        DataError: Predictions are missing or damaged.
        ServiceError: The service refuses or does not answer.
    """
    profile = config.profile
    # All are read before the first is submitted: afterwards no label is answered, and none could be made again.
    points = (*profile.evaluation_budgets[:-1], None)
    frozen = [read_predictions(predictions_path(out, labels)) for labels in points]
    beliefs = [_read_test_beliefs(_beliefs_path(out, labels)) for labels in points]
    with clock.stage("evaluate"):
        sealed = client.run_state(ticket.run_id).sealed
        evaluations = [_evaluate(out, client, ticket, config, point, sealed=sealed) for point in frozen]
        # Also where the service says that it is sealed: only the receipt proves that, and with how many labels.
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
            PointResult(
                evaluation=evaluation,
                balanced_estimate=balanced_accuracy(guessed, evaluation.accuracy, point.labels),
                **point.model_dump(exclude={"predictions"}),
            )
            for point, evaluation, guessed in zip(frozen, evaluations, beliefs, strict=True)
        ),
        stage_seconds=_rounded(clock.seconds),
        class_prior=config.class_prior_for(ticket.dataset),
        own_features=config.own_features,
        dataset=ticket.dataset.model_dump(mode="json"),
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
    # A sealed run refuses even a repeat, but its first answer was on the disk before the run was sealed.
    evaluation = _kept_evaluation(out, key) if sealed else None
    if evaluation is None:
        evaluation = client.evaluate(ticket.run_id, frozen.predictions, budget=budget, idempotency_key=key)
    return EvaluationResult.from_counts(evaluation.correct, evaluation.total)


def _kept_evaluation(out: Path, key: str) -> Evaluation | None:
    """Return the answer to an evaluation from the receipts, None if they hold none.

    Raises:
        DataError: The receipts are damaged.
    """
    path = out / RECEIPTS_FILE
    try:
        receipts = [json.loads(line) for line in read_lines(path)]
        answers = [receipt["answer"] for receipt in receipts if receipt["request"].get("idempotency_key") == key]
        return Evaluation.model_validate(answers[-1]) if answers else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged, and with it the run's accuracy; restore it from a copy") from error
