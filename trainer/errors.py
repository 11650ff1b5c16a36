"""Every error that the trainer shows to a user: one sentence, and the exit code of the command that failed.

The command line catches `TrainerError`, prints the sentence and leaves with `exit_code`; anything else is a defect of
the trainer and keeps its traceback. Nothing here imports torch, so that a typing mistake costs no import of it.
"""

from __future__ import annotations

from typing import ClassVar


class TrainerError(Exception):
    """The base: something that the user can understand and mend, said in one sentence."""

    # Codes 64 to 78 below are those of BSD's sysexits.h; codes from 80 on are refusals of the label service.
    exit_code: ClassVar[int] = 1


class DataError(TrainerError):
    """The image folder is missing, empty, cut short or not IDX, or a file in OUT holds what the trainer never wrote."""

    exit_code = 65


class ConfigError(TrainerError):
    """A setting has no meaning or contradicts another one: a profile that does not exist, a URL that is none."""

    exit_code = 78


class ResumeError(TrainerError):
    """`--resume` points at a folder that was begun with another configuration, seed, service or data set."""

    exit_code = 79


class RecordsUnwritable(TrainerError):  # noqa: N818 - the name is the sentence's verb
    """A file in OUT cannot be written (disk full, read-only): nothing asked is lost, and `--resume` goes on from it."""

    exit_code = 74


class CountsDisagree(TrainerError):  # noqa: N818 - the name is the sentence's verb
    """The trainer's count of queries is not the count in the label service's log, so the result must not be used."""

    exit_code = 86


class ServiceError(TrainerError):
    """The base of all that goes wrong between the trainer and the label service."""


class ServiceUnavailable(ServiceError):  # noqa: N818 - the name is the sentence's verb
    """The label service gave no answer, or only 'try again later', for as long as the client's patience lasted."""

    exit_code = 69


class ServiceProtocolError(ServiceError):
    """Something answered, but not as a label service does: HTML, cut JSON, wrong ids, impossible counts."""

    exit_code = 76


class LogNotProved(ServiceError):  # noqa: N818 - the name is the sentence's verb
    """A receipt, head, key or opened label of the label service's log does not hold, so the answer is not used."""

    exit_code = 87


class RequestRefused(ServiceError):  # noqa: N818 - the name is the sentence's verb
    """The label service understood the request and refused it, and asking again would not change that.

    Attributes:
        status: HTTP status of the refusal.
        code: The service's stable name for the reason, such as `label-budget-exhausted`.
        detail: The service's own sentence about it.
    """

    exit_code = 80

    def __init__(self, message: str, *, status: int, code: str, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail


class NotAuthorized(RequestRefused):
    """The token is missing, wrong or belongs to another run (401, or 403 for a reason other than a budget)."""

    exit_code = 77


class BudgetExhausted(RequestRefused):
    """The run may not be told that many more labels: its budget is spent, or the batch is larger than what is left."""

    exit_code = 81


class RunSealed(RequestRefused):
    """The run was sealed: it answers no more queries and no more evaluations."""

    exit_code = 82


class QueryingClosed(RequestRefused):
    """The run was evaluated already, and after that it may not ask for labels."""

    exit_code = 83


class UnknownLabelId(RequestRefused):
    """An id is not a row of the service's data set, so the trainer's images and the service's labels do not match."""

    exit_code = 84
