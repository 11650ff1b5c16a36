"""The run's own records in OUT: queries, metrics, rounds, and the result.

    queries.jsonl   one line per queried image, in order          QueryRecord
    metrics.jsonl   training metrics                              MetricRecord
    rounds.jsonl    one line per round of active learning         RoundRecord
    result.json     the end of a run                              RunResult

A value that is not finite (a diverged loss) is written as null, so every line is strict JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from trainer.errors import DataError, first_mistake, printable
from trainer.records.files import append_lines, read_file, read_lines, replace_file

QUERIES_FILE = "queries.jsonl"
METRICS_FILE = "metrics.jsonl"
ROUNDS_FILE = "rounds.jsonl"
RESULT_FILE = "result.json"

# The 97.5% point of the standard normal distribution: a two-sided 95% interval.
_Z_95 = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    Raises:
        ValueError: The counts are impossible.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"a proportion needs 0 <= correct <= total and total >= 1, got {correct} of {total}")
    z, share = _Z_95, correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class QueryRecord(Record):
    """One queried image.

    Attributes:
        order: Position among the run's queries, from 0.
        round: Round of active learning, from 0 (the cold start).
        id: Row of the image in the pool.
        strategy: Name of the acquisition strategy that chose it.
        reason: Short phrase that explains the choice to a reader.
        predicted: Class guessed before asking; None in the cold start.
        confidence: Probability of that guess.
        label: Class answered by the label service.
        charged: Whether the service charged it; False when it was paid for before.
        asked_at: Time of the query, with its offset from UTC.
    """

    order: Count
    round: Count
    id: Count
    strategy: str
    reason: str
    predicted: Count | None = None
    confidence: Share | None = None
    label: Count
    charged: bool
    asked_at: datetime

    @property
    def is_right(self) -> bool | None:
        """Whether the guess before asking was right; None without a guess."""
        return None if self.predicted is None else self.predicted == self.label


class MetricRecord(Record):
    """Metrics of one step: `wall_s` is seconds of work since the run began, over all resumes."""

    stage: str
    step: Count
    epoch: Annotated[float, Field(ge=0)]
    wall_s: Annotated[float, Field(ge=0)]
    values: dict[str, float | None]


class RoundRecord(Record):
    """One round of active learning.

    Attributes:
        round: Round, from 0 (the cold start).
        labels: Labels paid for after the round.
        prequential_accuracy: Share of this round's queries whose guess before asking was right; None without guesses.
        estimated_accuracy: The run's own estimate after training on the round, made without test labels; None while
            no label had been guessed before it was asked for.
        estimate_error: Its standard error.
    """

    round: Count
    labels: Count
    prequential_accuracy: Share | None = None
    estimated_accuracy: Share | None = None
    estimate_error: Share | None = None


class EvaluationResult(Record):
    """Accuracy on the test images as the label service computed it, with a 95% Wilson interval."""

    accuracy: Share
    correct: Count
    total: Annotated[int, Field(ge=1)]
    ci95: tuple[Share, Share]

    @classmethod
    def from_counts(cls, correct: int, total: int) -> Self:
        """Compute accuracy and interval from counts."""
        return cls(accuracy=correct / total, correct=correct, total=total, ci95=wilson_interval(correct, total))


class FrozenPoint(Record):
    """What was known when test predictions were frozen, before the next label was asked.

    Attributes:
        labels: Labels paid for.
        stage_seconds: Wall time by stage until then, in seconds, over all resumes.
        estimate: The run's own estimate, made without test labels, of the accuracy on the pool; None without one.
        estimate_error: Its standard error.
        largest_class: Name of the most frequent class as far as the run knows; empty in records that did not note it.
        constant_guess: Its share of the pool, as declared or estimated from the labels paid for: the accuracy to expect
            of always guessing that class; None in records that did not note it.
        largest_among_labels: Largest share of one class among the labels paid for; None likewise.
        arithmetic: Number format of the networks, `bfloat16` or `float32`; empty in records that did not note it.
    """

    labels: Count
    stage_seconds: dict[str, float]
    estimate: Share | None = None
    estimate_error: Share | None = None
    largest_class: str = ""
    constant_guess: Share | None = None
    largest_among_labels: Share | None = None
    arithmetic: str = ""


class PointResult(FrozenPoint):
    """One point of a learning curve: its frozen predictions, evaluated.

    Attributes:
        evaluation: Of those predictions.
        balanced_estimate: Balanced accuracy of those predictions (the mean of the classes' recalls), as the run
            estimates it from its beliefs and the accuracy answered; None in records that did not note it.
    """

    evaluation: EvaluationResult
    balanced_estimate: Share | None = None

    @property
    def beats_constant_guess(self) -> bool | None:
        """Whether the accuracy, by its 95% interval, is above that of always guessing the most frequent class.

        None where the share of that class is not known.
        """
        return None if self.constant_guess is None else self.evaluation.ci95[0] > self.constant_guess


def arithmetic_in_words(arithmetics: Iterable[str]) -> str:
    """Name the number formats of a run's points; the text is empty when none was noted."""
    return " and ".join(sorted(set(arithmetics) - {""}))


class RunResult(Record):
    """The end of a run, as `result.json` keeps it.

    Attributes:
        evaluation: At the run's end.
        points: The learning curve, ascending in labels; the last point is the end.
        queries_counted_by_trainer: Charged answers that the trainer received.
        queries_in_log: Charged reveals of this run in the service's log.
        distinct_labels_in_log: Distinct ids among them.
        distinct_labels_revealed_to_anybody: Distinct ids that the log revealed to any run, the guest included.
        stage_seconds: Wall time by stage, in seconds, over all resumes.
        class_prior: `balanced` if the classes were taken to be equally frequent, `estimated` if their shares were
            estimated from the labels paid for; empty in records that did not note it.
        own_features: SHA-256 of the user's own features; None without.
    """

    run_id: str
    seed: int
    profile: str
    budget: Count
    queries_counted_by_trainer: Count
    queries_in_log: Count
    distinct_labels_in_log: Count
    distinct_labels_revealed_to_anybody: Count
    evaluation: EvaluationResult
    points: tuple[PointResult, ...] = ()
    stage_seconds: dict[str, float]
    class_prior: Literal["balanced", "estimated", ""] = ""
    own_features: str | None = None
    dataset: dict[str, JsonValue]
    versions: dict[str, str]

    @property
    def arithmetic(self) -> str:
        """Number formats of the networks at the points, in words."""
        return arithmetic_in_words(point.arithmetic for point in self.points)

    @property
    def beats_constant_guess(self) -> bool | None:
        """Whether the end is better than always guessing the most frequent class; None where that is not known."""
        return self.points[-1].beats_constant_guess if self.points else None

    @property
    def counts_agree(self) -> bool:
        """Whether trainer and log counted the same queries, and no label twice."""
        return self.queries_counted_by_trainer == self.queries_in_log == self.distinct_labels_in_log


def describe_classes(result: RunResult) -> list[tuple[str, str]]:
    """Say in names and values what the classes' sizes make of the accuracy; none in records that did not note them."""
    if not result.points:
        return []
    end = result.points[-1]
    if end.constant_guess is None or end.largest_among_labels is None:
        return []
    known = "as the data set declares" if result.class_prior == "balanced" else "estimated"
    rows = []
    if end.balanced_estimate is not None:
        rows.append(("balanced accuracy, estimated", f"{end.balanced_estimate:.1%}"))
    shares = f"{end.constant_guess:.1%} of the pool ({known}), {end.largest_among_labels:.1%} of the labels paid for"
    rows.append(("largest class", shares))
    if not end.beats_constant_guess:
        guess = printable(end.largest_class)
        rows.append(("better than a constant guess", f"NO: always guessing {guess} is as good, do not use this model"))
    return rows


R = TypeVar("R", bound=Record)


def append_queries(out_dir: Path, records: Sequence[QueryRecord]) -> list[QueryRecord]:
    """Append the queries that the file does not have yet, and return them.

    A kill may leave a batch partly written. After a resume the batch is asked again under its old key, and the lines
    already there are recognised by order, id and label, so no query is recorded twice.

    Raises:
        DataError: A record contradicts the line with its order, or leaves a gap.
        RecordsUnwritable: The file cannot be written.
    """
    kept = read_queries(out_dir)
    new: list[QueryRecord] = []
    for record in sorted(records, key=lambda record: record.order):
        if record.order < len(kept):
            former = kept[record.order]
            if (former.id, former.label) != (record.id, record.label):
                raise DataError(
                    f"{out_dir / QUERIES_FILE} has image {former.id} as query {record.order}, but image {record.id} "
                    "was answered in its place; the folder belongs to another run, so choose another --out."
                )
        elif record.order == len(kept) + len(new):
            new.append(record)
        else:
            raise DataError(f"query {record.order} does not follow query {len(kept) + len(new) - 1}: one is missing.")
    if new:
        append_lines(out_dir / QUERIES_FILE, [record.model_dump_json() for record in new])
    return new


def read_queries(out_dir: Path) -> list[QueryRecord]:
    """Read all queries in order, without a torn last line.

    Raises:
        DataError: A line is damaged, or the orders are not 0, 1, 2, …
    """
    records = _read_records(out_dir / QUERIES_FILE, QueryRecord)
    for expected, record in enumerate(records):
        if record.order != expected:
            raise DataError(
                f"{out_dir / QUERIES_FILE} has order {record.order} in line {expected + 1} where {expected} belongs; "
                "it was edited or mixed with another run's."
            )
    return records


def append_metric(out_dir: Path, record: MetricRecord) -> None:
    """Append one line of metrics without waiting for the disk: a lost line costs one point of a curve."""
    append_lines(out_dir / METRICS_FILE, [record.model_dump_json()], durable=False)


def read_metrics(out_dir: Path) -> list[MetricRecord]:
    """Read the metrics. A resumed run may have repeated a step."""
    return _read_records(out_dir / METRICS_FILE, MetricRecord)


def append_round(out_dir: Path, record: RoundRecord) -> None:
    """Append one round."""
    append_lines(out_dir / ROUNDS_FILE, [record.model_dump_json()])


def read_rounds(out_dir: Path) -> list[RoundRecord]:
    """Read the rounds in order. A resumed run may repeat a round; the later line counts."""
    by_round = {record.round: record for record in _read_records(out_dir / ROUNDS_FILE, RoundRecord)}
    return [by_round[number] for number in sorted(by_round)]


def write_result(out_dir: Path, result: RunResult) -> Path:
    """Write result.json whole and return its path."""
    path = out_dir / RESULT_FILE
    replace_file(path, result.model_dump_json(indent=2) + "\n")
    return path


def read_result(out_dir: Path) -> RunResult | None:
    """Read result.json; None before the run has ended.

    Raises:
        DataError: The file is damaged.
    """
    damage = "is damaged; remove it and resume the run"
    return read_file(out_dir / RESULT_FILE, RunResult.model_validate_json, damage)


def _read_records(path: Path, model: type[R]) -> list[R]:
    """Read and check every line of a file."""
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(model.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"line {number} of {path} is damaged ({first_mistake(error)}); restore or remove it."
            ) from error
    return records
