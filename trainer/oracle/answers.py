"""The answers of the label service as strict models, and the check of each answer against its question.

A wrong label would train a wrong network without any other sign, so an answer that does not fit stops the run. No type
is converted (a label "3" is not the label 3). Unknown fields are ignored: the service may send more than this. Whether
the log proves an answer is another question, see `receipts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue, ValidationError, model_validator

from trainer.errors import ServiceProtocolError, first_mistake

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
T = TypeVar("T")
# The first wrong item is enough: a kilobyte for each of a million would take the memory.
Items = Annotated[tuple[T, ...], FailFast()]


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class DatasetInfo(Answer):
    """The service's data set, without any label.

    Attributes:
        name: Its name, such as `fashion-mnist`.
        official: Whether it is the published split; False for a re-drawn one or other data.
        pool_size: Images whose labels may be queried; ids run from 0 to `pool_size - 1`.
        test_size: Test images that an evaluation predicts.
        class_names: Names of the classes, by class number.
        fingerprint: Identifies the images, so that the trainer can compare them with its own; None when the service
            has label files alone.
        redraw_seed: Seed of a re-drawn split, None for other data.
        balanced: Whether the data set declares that its classes are equally frequent; None from an older service.
    """

    name: Name
    official: bool
    pool_size: Annotated[int, Field(ge=1)]
    test_size: Count
    class_names: Annotated[Items[str], Field(min_length=2)]
    fingerprint: Name | None
    redraw_seed: int | None = None
    balanced: bool | None = None

    @property
    def declares_balance(self) -> bool:
        """Whether the classes are declared to be equally frequent; an older service declared Fashion-MNIST alone."""
        return self.official if self.balanced is None else self.balanced

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


class OpenedRun(Answer):
    """A new run. `token` is sent only once and stays out of `repr`."""

    run_id: Name
    token: Annotated[str, Field(min_length=1, repr=False)]
    budget: Count
    dataset: DatasetInfo
    receipt: JsonValue = None


class RevealedLabel(Answer):
    """One label: class number, name, whether this answer charged it, and its opening (`receipts.LabelOpening`)."""

    id: Count
    label: Count
    label_name: str
    charged: bool
    opening: JsonValue = None


class QueryAnswer(Answer):
    """The labels of one query.

    Attributes:
        labels: One for each distinct id.
        charged: Labels charged by this query.
        queries: Labels charged to the run so far.
        remaining: Labels that the run may still be charged.
        run_id: The run that paid.
        replayed: Whether the service had answered the same request before.
        receipt: The log's proof, for the witness (`receipts.Receipt`).
    """

    labels: Items[RevealedLabel]
    charged: Count
    queries: Count
    remaining: Count
    run_id: Name
    replayed: bool = False
    receipt: JsonValue = None


class RunState(Answer):
    """The state of a run; `queries` counts the labels charged to it."""

    run_id: Name
    name: str
    budget: Count
    queries: Count
    remaining: Count
    querying_closed: bool
    sealed_at: str | None

    @property
    def sealed(self) -> bool:
        """Whether the run has ended."""
        return self.sealed_at is not None


class SealedRun(Answer):
    """The end of a run. Its answer does not grow with the log."""

    run_id: Name
    sealed_at: Name
    receipt: JsonValue = None


class Evaluation(Answer):
    """Accuracy on the test images. Which predictions were right stays with the service."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    correct: Count
    total: Annotated[int, Field(ge=1)]
    replayed: bool = False
    receipt: JsonValue = None

    @model_validator(mode="after")
    def _accuracy_is_the_quotient(self) -> Self:
        # A service may round to four places for people; a larger difference is a contradiction.
        if self.correct > self.total or abs(self.accuracy - self.correct / self.total) > 5e-5:
            raise ValueError(f"accuracy {self.accuracy} is not {self.correct} of {self.total}")
        return self


class RunCounts(Answer):
    """The log's counts of one run: labels charged, distinct labels revealed, evaluations, entries."""

    run_id: Name
    queries: Count
    distinct_labels: Count
    evaluations: Count
    entries: Count


class LogSummary(Answer):
    """The log's counts of all runs; `distinct_labels_revealed_to_anybody` is the union over the runs."""

    runs: Items[RunCounts]
    queries: Count
    distinct_labels_revealed_to_anybody: Count
    evaluations: Count
    entries: Count

    @model_validator(mode="after")
    def _union_fits_the_runs(self) -> Self:
        union = self.distinct_labels_revealed_to_anybody
        largest = max((run.distinct_labels for run in self.runs), default=0)
        if not largest <= union <= sum(run.distinct_labels for run in self.runs):
            raise ValueError(f"{union} labels in all do not fit the counts of the runs")
        return self

    def run(self, run_id: str) -> RunCounts | None:
        """Return one run's counts, None if the log has no such run."""
        return next((run for run in self.runs if run.run_id == run_id), None)


class KeyRotation(Answer):
    """The replacement of the log's key by another: both, and a note by the old one that says so."""

    old_key: Name
    new_key: Name
    statement: Name


class LogKeyAnswer(Answer):
    """The log's public key, one line, and how it replaced those before it, oldest first."""

    key: Name
    rotations: Items[KeyRotation] = ()


class ConsistencyAnswer(Answer):
    """The consistency proof between two sizes of the log, as base64 hashes. Roots in the answer are ignored."""

    proof: Items[str]


class Problem(Answer):
    """An error of the service (RFC 9457) with its stable code."""

    code: Name
    detail: str = ""


A = TypeVar("A", bound=Answer)


def parse_answer(model: type[A], raw: bytes, name: str) -> A:
    """Read the answer to a call, named for the error, which never repeats the answer: it may hold a token.

    Raises:
        ServiceProtocolError: The body is something else.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise ServiceProtocolError(
            f"the answer to {name} is not what a label service says ({first_mistake(error)}); check the address, and "
            "that service and trainer have the same version."
        ) from None


def check_query(
    answer: QueryAnswer, asked: Sequence[int], dataset: DatasetInfo, run_id: str | None, queries_before: int
) -> None:
    """Check the ids, the classes, the run and all counts of an answer against its query of distinct ids.

    The run is None when no answer has named it yet; `queries_before` is the highest count of it so far.

    Raises:
        ServiceProtocolError: It does not fit.
    """
    ids = {label.id for label in answer.labels}
    if len(answer.labels) != len(asked) or ids != set(asked):
        strange = sorted(ids ^ set(asked))[:3]
        raise ServiceProtocolError(f"a query asked for {len(asked)} ids, and the answer has others, such as {strange}.")
    for label in answer.labels:
        if label.label >= dataset.num_classes or label.label_name != dataset.class_names[label.label]:
            raise ServiceProtocolError(
                f"image {label.id} was answered class {label.label} ({label.label_name!r}), which is none of the "
                f"{dataset.num_classes} classes of {dataset.name}."
            )
    marked = sum(label.charged for label in answer.labels)
    if answer.charged != marked:
        raise ServiceProtocolError(f"the answer to a query charges {answer.charged} labels and marks {marked}.")
    if answer.charged > answer.queries:
        raise ServiceProtocolError(
            f"the answer to a query charges {answer.charged} labels and counts {answer.queries} in the whole run."
        )
    if run_id not in (None, answer.run_id):
        raise ServiceProtocolError(f"a query was charged to run {answer.run_id} instead of {run_id}.")
    # A repeated request gets the counts of its first answer, so they may be lower.
    if not answer.replayed and answer.queries < queries_before:
        raise ServiceProtocolError(
            f"the label service counts {answer.queries} queries in this run and counted {queries_before} before; "
            "its database was replaced, so the log no longer proves the run's labels."
        )
