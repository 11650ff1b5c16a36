"""Predict the test images, freeze the predictions, and let the label service compare them with its test labels.

The predictions are written to OUT/predictions.json before they are submitted, and what is submitted is that file: an
accuracy can never flow back into them.
"""

import json
import logging
import platform
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from trainer import __version__
from trainer.active_loop import LearnedState
from trainer.errors import CountsDisagree, DataError
from trainer.exchange import RECEIPTS_FILE
from trainer.jsonl import read_lines, replace_file
from trainer.label_client import LabelClient
from trainer.progress import StageClock
from trainer.records import EvaluationResult, RunResult, read_queries, write_result
from trainer.service_answers import Evaluation
from trainer.session import RunConfig, RunTicket

PREDICTIONS_FILE = "predictions.json"

log = logging.getLogger(__name__)


def predict_test(learned: LearnedState, test: Tensor) -> Tensor:
    """Predict the classes of test images, which nothing was trained on.

    Args:
        learned: the end of active fine-tuning.
        test: uint8 [M, H, W].

    Returns:
        int64 [M].
    """
    return learned.knowledge.predict(test, learned.beliefs).argmax(1)


def freeze_predictions(out: Path, predictions: Tensor) -> None:
    """Write OUT/predictions.json.

    Raises:
        RecordsUnwritable: it cannot be written.
    """
    replace_file(out / PREDICTIONS_FILE, json.dumps({"predictions": predictions.tolist()}) + "\n")


def read_predictions(out: Path) -> list[int]:
    """Read the frozen predictions.

    Raises:
        DataError: there are none yet, or the file is damaged.
    """
    path = out / PREDICTIONS_FILE
    try:
        predictions = json.loads(path.read_bytes())["predictions"]
    except FileNotFoundError as error:
        raise DataError(f"{out} holds no predictions yet; run `python -m trainer finetune` to its end first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; remove it and run `python -m trainer finetune --resume` again") from error
    if not isinstance(predictions, list) or not all(type(label) is int for label in predictions):
        raise DataError(f"{path} does not hold a list of class numbers; remove it and fine-tune again with --resume")
    return predictions


def submit(out: Path, client: LabelClient, ticket: RunTicket, config: RunConfig, clock: StageClock) -> RunResult:
    """Submit the frozen predictions, seal the run, and compare the trainer's count with the log's.

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
        DataError: there are no predictions.
        ServiceError: the service refuses or is lost.
    """
    predictions = read_predictions(out)
    key = f"{ticket.run_id}-evaluation"
    with clock.stage("evaluate"):
        # A sealed run answers nothing any more, not even a repeat; its answer was on the disk before it was sealed.
        evaluation = _kept_evaluation(out, key) if client.run_state(ticket.run_id).sealed else None
        if evaluation is None:
            evaluation = client.evaluate(ticket.run_id, predictions, idempotency_key=key)
            client.seal(ticket.run_id)
        summary = client.log_summary()
    counted = sum(record.charged for record in read_queries(out))
    in_log = summary.run(ticket.run_id)
    result = RunResult(
        run_id=ticket.run_id,
        seed=config.seed,
        profile=config.profile.name,
        budget=config.profile.budget,
        queries_counted_by_trainer=counted,
        queries_in_log=in_log.queries if in_log else 0,
        distinct_labels_in_log=in_log.distinct_labels if in_log else 0,
        distinct_labels_revealed_to_anybody=summary.distinct_labels_revealed_to_anybody,
        evaluation=EvaluationResult.from_counts(evaluation.correct, evaluation.total),
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
