"""The run's own records in OUT: what was asked and why, metrics, rounds, and the result.

    queries.jsonl   one line per queried image, in order          QueryRecord
    metrics.jsonl   training metrics                              MetricRecord
    rounds.jsonl    one line per round of active learning         RoundRecord
    result.json     written last; absent while a run goes on      RunResult

Values that are not finite (a diverged loss) are written as null, so every line is strict JSON that jq reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from trainer.errors import DataError
from trainer.records.files import append_lines, read_lines, replace_file

QUERIES_FILE = "queries.jsonl"
METRICS_FILE = "metrics.jsonl"
ROUNDS_FILE = "rounds.jsonl"
RESULT_FILE = "result.json"

# The 97.5% point of the standard normal distribution: a two-sided 95% interval.
_Z_95 = 1.959963984540054


def wilson_interval(correct: int, total: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    Args:
        correct: Successes, 0 to `total`.
        total: Trials, at least 1.
        z: Half width in standard deviations; the default gives 95%.

    Raises:
        ValueError: The counts are impossible.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"a proportion needs 0 <= correct <= total and total >= 1, got {correct} of {total}")
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _finite_or_none(value: object) -> object:
    """Turn NaN and infinities into None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error rather than lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class QueryRecord(Record):
    """One queried image.

    Attributes:
        order: Position among the run's queries, from 0.
        round: Round of active learning, from 0 (the cold start).
        id: Row of the image in the pool.
        strategy: Name of the acquisition strategy that chose it.
        reason: Short phrase that tells a reader why.
        score: The strategy's score, larger is more wanted.
        predicted: Class guessed before asking; None in the cold start.
        confidence: Probability of that guess.
        label: Class answered by the label service.
        charged: Whether the service charged it (False: it was paid for before).
        asked_at: Time of asking, with its offset from UTC.
    """

    order: Count
    round: Count
    id: Count
    strategy: str
    reason: str
    score: Measured = None
    predicted: Count | None = None
    confidence: Share | None = None
    label: Count
    charged: bool
    asked_at: datetime


class MetricRecord(Record):
    """Metrics of one step: `wall_s` is seconds of work since the run began, over all resumes."""

    stage: str
    step: Count
    epoch: Annotated[float, Field(ge=0)]
    wall_s: Annotated[float, Field(ge=0)]
    values: dict[str, Measured]


class RoundRecord(Record):
    """One round of active learning; further fields are allowed when they are numbers.

    Attributes:
        round: Round, from 0 (the cold start).
        labels: Labels paid for after the round.
        prequential_accuracy: Share of this round's queries whose guess before asking was right; None without guesses.
        cross_validated_accuracy: Accuracy of the graph on paid labels that were held out of it in turn.
        estimated_accuracy: What the run expected after training on the round; None where no target was set.
        estimate_error: Its standard error.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Measured]

    round: Count
    labels: Count
    prequential_accuracy: Share | None = None
    cross_validated_accuracy: Share | None = None
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


class PointResult(Record):
    """One point of a learning curve: what was submitted was frozen before the next label was asked.

    Attributes:
        labels: Paid for when the predictions were frozen.
        evaluation: Of those predictions.
        stage_seconds: Wall time by stage until then, in seconds, over all resumes.
        estimate: The accuracy on the pool that the run itself expected then, from no test label; None if it had none.
        estimate_error: Its standard error.
        arithmetic: What the networks computed in then, `bfloat16` or `float32`; empty where it was not noted yet.
    """

    labels: Count
    evaluation: EvaluationResult
    stage_seconds: dict[str, float]
    estimate: Share | None = None
    estimate_error: Share | None = None
    arithmetic: str = ""


def arithmetic_in_words(noted: Iterable[str]) -> str:
    """Name what a run's points were computed in, as noted at each: one type, several, or none where none was noted."""
    return " and ".join(sorted(set(noted) - {""}))


class RunResult(Record):
    """The end of a run, as `result.json` keeps it.

    Attributes:
        evaluation: Of the run's end.
        points: Of the learning curve, ascending in labels; the last is the end.
        queries_counted_by_trainer: Charged answers that the trainer received.
        queries_in_log: Charged reveals of this run in the service's log.
        distinct_labels_in_log: Distinct ids among them.
        distinct_labels_revealed_to_anybody: Distinct ids that the log revealed to any run, the guest included.
        stage_seconds: Wall time by stage, in seconds, over all resumes.
    """

    run_id: str
    seed: int
    profile: str
    budget: Count
    queries_counted_by_trainer: Count
    queries_in_log: Count
    distinct_labels_in_log: Count
    distinct_labels_revealed_to_anybody: Count
    evaluation: EvaluationResult | None
    points: tuple[PointResult, ...] = ()
    stage_seconds: dict[str, float]
    dataset: dict[str, JsonValue]
    versions: dict[str, str]

    @property
    def arithmetic(self) -> str:
        """What the networks computed in at the points, in words."""
        return arithmetic_in_words(point.arithmetic for point in self.points)

    @property
    def counts_agree(self) -> bool:
        """Whether the trainer counted what the log counted, and no label twice."""
        return self.queries_counted_by_trainer == self.queries_in_log == self.distinct_labels_in_log


R = TypeVar("R", bound=Record)


def append_queries(out_dir: Path, records: Sequence[QueryRecord]) -> list[QueryRecord]:
    """Append the queries that the file does not have yet, and return those that were new.

    A batch that was answered but only partly written before a kill is asked again under its old key after a resume;
    the lines already there are recognised by order, id and label, so no query is recorded twice.

    Raises:
        DataError: A record contradicts the line with its order, or leaves a gap.
        RecordsUnwritable: The file cannot be written.
    """
    kept = read_queries(out_dir)
    new: list[QueryRecord] = []
    for record in sorted(records, key=lambda record: record.order):
        if record.order < len(kept):
            there = kept[record.order]
            if (there.id, there.label) != (record.id, record.label):
                raise DataError(
                    f"{out_dir / QUERIES_FILE} has image {there.id} as query {record.order}, but image {record.id} "
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
    """Append one line of metrics, without waiting for the disk: a lost one costs a point in a curve."""
    append_lines(out_dir / METRICS_FILE, [record.model_dump_json()], durable=False)


def read_metrics(out_dir: Path) -> list[MetricRecord]:
    """Read the metrics; of two lines for one stage and step the later one counts, as a resumed run repeats steps."""
    records = _read_records(out_dir / METRICS_FILE, MetricRecord)
    return _last_of_each(records, lambda record: (record.stage, record.step))


def append_round(out_dir: Path, record: RoundRecord) -> None:
    """Append one round."""
    append_lines(out_dir / ROUNDS_FILE, [record.model_dump_json()])


def read_rounds(out_dir: Path) -> list[RoundRecord]:
    """Read the rounds in order; of two lines for one round the later one counts."""
    records = _last_of_each(_read_records(out_dir / ROUNDS_FILE, RoundRecord), lambda record: record.round)
    return sorted(records, key=lambda record: record.round)


def write_result(out_dir: Path, result: RunResult) -> Path:
    """Write result.json whole and return its path."""
    path = out_dir / RESULT_FILE
    replace_file(path, result.model_dump_json(indent=2) + "\n")
    return path


def read_result(out_dir: Path) -> RunResult | None:
    """Read result.json; None when the run has not ended.

    Raises:
        DataError: The file is damaged.
    """
    path = out_dir / RESULT_FILE
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} cannot be used ({_reason(error)}); remove it and resume the run.") from error


def _last_of_each(records: Sequence[R], key: Callable[[R], object]) -> list[R]:
    """Keep the last record of each key, in the order in which the keys came first."""
    return list({key(record): record for record in records}.values())


def _read_records(path: Path, model: type[R]) -> list[R]:
    """Read and check every line of a file."""
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(model.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"line {number} of {path} is damaged ({_reason(error)}); restore or remove it.") from error
    return records


def _reason(error: OSError | ValidationError) -> str:
    """Return the first thing that is wrong, in a few words."""
    if isinstance(error, OSError):
        return str(error.strerror)
    first = error.errors(include_input=False, include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
