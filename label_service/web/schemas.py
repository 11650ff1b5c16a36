"""Request and response models: the HTTP contract. A request with an unknown field is refused.

Integers are strict: `"5"`, `5.0` and `true` are not ids. An id may be any integer of at most 31 digits, so that a query
for an id outside the data set gets a logged 404; SQLite never sees such an id. Where an answer is a fact of the log,
the ledger or the data, its model stands there, and this module only adds to it.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    model_validator,
)

from label_service.data.seed import DatasetInfo
from label_service.ledger.ledger import Evaluated
from label_service.ledger.runs import Opened
from label_service.ledger.teams import TeamToken
from label_service.log.evidence import OpenedLabel, Receipt
from label_service.log.key_history import KeyRotation
from label_service.log.log_reader import RunInfo
from label_service.settings import MAX_IDS_PER_BATCH

# Longer than any count, short enough that refused ids do not fill the log.
MAX_ID = 10**30
MAX_NAME = 100
# Budgets above the largest 32-bit number are mistakes.
MAX_BUDGET = 2**31 - 1
MAX_SEQ = 2**53 - 1
# The characters of Unicode's property Bidi_Control.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _path_integer(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"-?[0-9]{1,31}", value, flags=re.ASCII):
            raise ValueError("must be an integer of at most 31 digits")
        return int(value)
    return value


def _printable(name: str) -> str:
    # Characters that turn the direction of the text around them could make one name look like another.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS for character in name):
        raise ValueError("must not contain control characters")
    return name


def utc(value: object) -> str:
    """Return a time (RFC 3339) as entries write it; without a time zone it is UTC.

    Raises:
        ValueError: it is no time.
    """
    try:
        time = datetime.fromisoformat(value)  # type: ignore[arg-type]
        aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z") from error
    return aware.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


UtcTime = Annotated[str, BeforeValidator(utc), Field(json_schema_extra={"format": "date-time"})]
LabelId = Annotated[StrictInt, Field(ge=-MAX_ID, le=MAX_ID)]
PathLabelId = Annotated[
    int,
    BeforeValidator(_path_integer),
    Field(ge=-MAX_ID, le=MAX_ID, description="Zero-based row of the image in the training image file."),
]
Budget = Annotated[StrictInt, Field(ge=0, le=MAX_BUDGET)]


_HASH_EXAMPLE = "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0="
_LABEL_EXAMPLE: dict[str, Any] = {
    "id": 42, "label": 2, "label_name": "Pullover", "charged": True,
    "opening": {
        "salt": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", "proof": [_HASH_EXAMPLE],
    },
    "queries": 1, "remaining": 99, "run_id": "guest", "replayed": False,
    "receipt": {
        "entry": '{"charged":1,"ids":[42],"op":"query","run":"guest","seq":1}', "index": 1,
        "inclusion_proof": [_HASH_EXAMPLE],
        "checkpoint": "labelmeter/log-1f0c\n2\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
    },
}  # fmt: skip


def _examples(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelQuery(_Request):
    """Ids to reveal together: all of them or none. Repeats count once."""

    model_config = _examples({"ids": [42, 7, 1999]})
    ids: list[LabelId] = Field(min_length=1, max_length=MAX_IDS_PER_BATCH)


class RunRequest(_Request):
    """A run to open. A learning curve declares its points now; each is one evaluation."""

    model_config = _examples({"name": "seed 0", "budget": 500, "evaluation_budgets": [100, 250, 500]})
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]
    budget: Budget | None = Field(None, description="Labels the run may be charged; default: the operator's.")
    evaluation_budgets: list[Budget] = Field(
        default_factory=list, max_length=1000, description="Budgets to be evaluated, ascending, at most `budget`."
    )

    @model_validator(mode="after")
    def _ascend(self) -> RunRequest:
        points = self.evaluation_budgets
        if any(later <= earlier for earlier, later in pairwise(points)):
            raise ValueError("evaluation_budgets must ascend without repeats")
        return self


TokenName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
PathTokenName = Annotated[str, Field(max_length=100, description="Name of the token.")]


class TokenRequest(_Request):
    """A team's token to make."""

    model_config = _examples({"name": "vision", "budget": 2000, "evaluations": 8, "expires": "2030-01-31T00:00:00Z"})
    name: TokenName
    budget: Budget = Field(description="Labels that all runs opened with it may be charged together.")
    evaluations: Budget | None = Field(None, description="Evaluations that they may make together; null: no own limit.")
    expires: UtcTime | None = Field(
        None, description="Time (RFC 3339; UTC if it names no zone) from which it gives nothing new; null: never."
    )


class EvaluationRequest(_Request):
    """One predicted class number for each test image, in the order of the test image file."""

    model_config = _examples({"predictions": [9, 2, 1], "budget": 500})
    predictions: list[StrictInt]
    budget: Budget | None = Field(None, description="The declared budget this evaluation is for.")


class Label(OpenedLabel):
    """One label, and whether this request was charged for it."""

    label_name: str
    charged: bool


class LabelAnswer(Label):
    """One revealed label, the run's count, and what is left of its budget."""

    model_config = _examples(_LABEL_EXAMPLE)
    queries: int = Field(description="Labels charged to the run so far.")
    remaining: int = Field(description="Labels left of the run's budget.")
    run_id: str
    replayed: bool = Field(description="Nothing was charged: the run had the label already.")
    receipt: Receipt


class LabelsAnswer(BaseModel):
    """Revealed labels in the order asked, each id once."""

    labels: list[Label]
    charged: int = Field(description="Labels charged by this request; under a repeated key, by its first answer.")
    queries: int = Field(description="Labels charged to the run so far.")
    remaining: int = Field(description="Labels left of the run's budget.")
    run_id: str
    replayed: bool = Field(description="Nothing was charged now.")
    receipt: Receipt


class RunsAnswer(BaseModel):
    """All runs, oldest first; the first is the guest run."""

    runs: list[RunInfo]


class TokensAnswer(BaseModel):
    """The teams' tokens, oldest first."""

    tokens: list[TeamToken]


class RunOpenedAnswer(Opened):
    """A fresh run. The token is shown here and never again."""

    dataset: DatasetInfo
    receipt: Receipt


class RunSealedAnswer(RunInfo):
    """A run that has ended."""

    receipt: Receipt


class EvaluationAnswer(Evaluated):
    """A test accuracy. The service never says which predictions were right."""

    receipt: Receipt


class LogPage(BaseModel):
    """Entries in order, exactly as stored, and where to go on."""

    entries: list[dict[str, Any]]
    next: int | None = Field(
        description="Pass as `after` for the next page, or as `before` if the newest come first; null: the last page."
    )


class HealthAnswer(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ProblemAnswer(BaseModel):
    """An error (RFC 9457). Branch on `code`; further members depend on it."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class KeyAnswer(BaseModel):
    """The log's public key, to be pinned."""

    key: str = Field(description="C2SP verifier key: NAME+ID+KEY, where NAME is the log's origin.")
    rotations: list[KeyRotation] = Field(
        description="Each replacement of the key, oldest first: a pinned key leads over them to this one."
    )


class InclusionAnswer(BaseModel):
    """Proof that an entry is under a signed head."""

    index: int
    size: int
    root: str = Field(description="Of the tree of that size, base64.")
    proof: list[str] = Field(description="RFC 6962 hashes from the leaf's sibling up, base64.")


class ConsistencyAnswer(BaseModel):
    """Proof that the log of the second size begins with the log of the first."""

    first: int
    second: int
    first_root: str
    second_root: str
    proof: list[str] = Field(description="RFC 6962 hashes, base64.")
