"""What the label service may answer: strict models, so that a wrong answer stops the run instead of training on it.

No type is converted (a label "3" is not the label 3). Fields that the trainer does not know are ignored, so the
service may say more than this.
"""

from __future__ import annotations

from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from trainer.errors import ServiceProtocolError

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class DatasetInfo(Answer):
    """The service's data set, without any label.

    Attributes:
        name: Its name, such as `fashion-mnist`.
        official: Whether it is the published split; False for a re-drawn one or other data.
        pool_size: Images whose labels may be asked; ids run from 0 to `pool_size - 1`.
        test_size: Test images that an evaluation predicts.
        class_names: Names of the classes, by class number.
        fingerprint: Identifies the images, so that the trainer can tell whether it holds the same ones; None
            when the service was not told them.
        redraw_seed: Seed of a re-drawn split, None for other data.
    """

    name: Name
    official: bool
    pool_size: Annotated[int, Field(ge=1)]
    test_size: Count
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    fingerprint: Name | None
    redraw_seed: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


class OpenedRun(Answer):
    """A new run; `token` is shown this once and stays out of `repr`."""

    run_id: Name
    token: Annotated[str, Field(min_length=1, repr=False)]
    budget: Count
    dataset: DatasetInfo
    receipt: JsonValue = None


class RevealedLabel(Answer):
    """One label: class number, name, whether this answer charged it, and what opens it for `receipts`."""

    id: Count
    label: Count
    label_name: str
    charged: bool
    opening: JsonValue = None


class QueryAnswer(Answer):
    """The labels asked for, in the order asked.

    Attributes:
        labels: One for each distinct id.
        charged: Labels charged by this query.
        queries: Labels charged to the run so far.
        remaining: Labels that the run may still be charged.
        run_id: The run that paid.
        replayed: Whether the service had answered this very request before.
        receipt: The log's proof, for the witness to check.
    """

    labels: tuple[RevealedLabel, ...]
    charged: Count
    queries: Count
    remaining: Count
    run_id: Name
    replayed: bool = False
    receipt: JsonValue = None

    @model_validator(mode="after")
    def _counts_are_possible(self) -> Self:
        flagged = sum(label.charged for label in self.labels)
        if self.charged != flagged:
            raise ValueError(f"it says {self.charged} labels were charged and marks {flagged}")
        if self.charged > self.queries:
            raise ValueError(f"it charged {self.charged} labels, yet counts {self.queries} in the whole run")
        return self


class RunState(Answer):
    """A run as the service sees it; `queries` counts the labels charged to it."""

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
    """The end of a run; what evidence the service adds is kept in `model_extra`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    run_id: Name
    sealed_at: Name


class Evaluation(Answer):
    """Accuracy on the test images; which of the predictions were right stays with the service."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    correct: Count
    total: Annotated[int, Field(ge=1)]
    replayed: bool = False
    receipt: JsonValue = None

    @model_validator(mode="after")
    def _accuracy_is_the_quotient(self) -> Self:
        # A service may round to four places for people; more than that is a contradiction.
        if self.correct > self.total or abs(self.accuracy - self.correct / self.total) > 5e-5:
            raise ValueError(f"accuracy {self.accuracy} is not {self.correct} of {self.total}")
        return self


class LogEntry(Answer):
    """One entry of the query log. Entries hold no label; what else they say is kept in `model_extra`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    seq: Count
    op: Name
    run: str | None = None


class LogPage(Answer):
    """One page of the log; `next` is the cursor after it, None at the end."""

    entries: tuple[LogEntry, ...]
    next: Count | None


class RunCounts(Answer):
    """What the log counts of one run: labels charged, distinct labels revealed, evaluations, entries."""

    run_id: Name
    queries: Count
    distinct_labels: Count
    evaluations: Count
    entries: Count


class LogSummary(Answer):
    """What the log counts in all; `distinct_labels_revealed_to_anybody` is the union over the runs."""

    runs: tuple[RunCounts, ...]
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


class LogKeyAnswer(Answer):
    """The log's public key, one line."""

    key: Name


class ConsistencyAnswer(Answer):
    """Hashes, base64, that lead from one size of the log to another. Roots it may name are not believed: not read."""

    proof: tuple[str, ...]


class Problem(Answer):
    """An error of the service (RFC 9457) with its stable code."""

    code: Name
    detail: str = ""


A = TypeVar("A", bound=Answer)


def parse_answer(model: type[A], raw: bytes, name: str) -> A:
    """Check an answer against its model; the message never repeats the answer, which may hold a token.

    Args:
        model: What is expected.
        raw: The body.
        name: The call, for the message.

    Raises:
        ServiceProtocolError: The answer is something else.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ServiceProtocolError(
            f"the answer to {name} is not what a label service says ({place + ': ' if place else ''}{first['msg']}); "
            "check the address, and that service and trainer are of one version."
        ) from None
