"""Every error that the trainer shows to a user: one sentence, and the exit code of the command that failed.

The command line catches `TrainerError`, prints its sentence and exits with `exit_code`. Any other exception is a defect
of the trainer and keeps its traceback. Nothing here imports PyTorch, so that a mistyped command fails fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


# A sentence of the trainer is shorter; the detail of a service's refusal may not be.
_LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    r"""Return a text as it may stand in one line of a terminal or a log: a service may send any character.

    Whatever is no visible character or space (escape sequences, line breaks, direction marks) is written as Python
    would, such as `\x1b`. A text of more than 2,000 characters is cut.
    """
    shown = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


class TrainerError(Exception):
    """Base of all errors that a user can understand and correct; the message is one sentence."""

    # Codes 64 to 78 are those of BSD's sysexits.h; the trainer's own begin at 79.
    exit_code: ClassVar[int] = 1
    # Whether the same command goes on later without a change of options or files: only what the world around may mend.
    can_be_repeated: ClassVar[bool] = False

    def __str__(self) -> str:
        """Return the message in one printable line: a part of it may come from the label service."""
        return printable(super().__str__())


class DataError(TrainerError):
    """The image folder is missing, empty, cut short or not IDX, or a file in OUT is damaged."""

    exit_code = 65


class ConfigError(TrainerError):
    """A setting is invalid or contradicts another one: a profile that does not exist, a malformed URL."""

    exit_code = 78


class ResumeError(TrainerError):
    """The folder was begun with another configuration, seed, log key or data set, so the run cannot resume."""

    exit_code = 79


class RecordsUnwritable(TrainerError):  # noqa: N818 - the name reads as a statement
    """A file in OUT cannot be written (disk full, read-only). No label is lost: `--resume` continues from here."""

    exit_code = 74
    can_be_repeated = True


class StrategyFailed(TrainerError):  # noqa: N818 - the name reads as a statement
    """The query strategy cannot be loaded, raised an error, or did not return the images that it must."""

    exit_code = 88


class RankLost(TrainerError):  # noqa: N818 - the name reads as a statement
    """Of the processes that train together, one ended or stopped answering; `--resume` goes on, also with fewer."""

    exit_code = 89
    can_be_repeated = True


class CountsDisagree(TrainerError):  # noqa: N818 - the name reads as a statement
    """The trainer's count of queries is not the count in the label service's log, so the result must not be used."""

    exit_code = 86


class ServiceError(TrainerError):
    """Base of the errors between the trainer and the label service."""


class ServiceUnavailable(ServiceError):  # noqa: N818 - the name reads as a statement
    """The label service gave no answer, or only 'try again later', until the client's patience was spent."""

    exit_code = 69
    can_be_repeated = True


class ServiceProtocolError(ServiceError):
    """The answer is not one that a label service sends: HTML, cut JSON, wrong ids, impossible counts."""

    exit_code = 76


class LogNotProved(ServiceError):  # noqa: N818 - the name reads as a statement
    """The log does not prove an answer (receipt, tree head, key or opened label), so the answer is not used."""

    exit_code = 87


class RequestRefused(ServiceError):  # noqa: N818 - the name reads as a statement
    """The label service refused the request, and a repeat would be refused too.

    Attributes:
        status: HTTP status of the refusal.
        code: Stable name of the reason, such as `label-budget-exhausted`.
        detail: The service's own sentence.
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
    """The budget of the run or of the service does not cover the query."""

    exit_code = 81


class RunSealed(RequestRefused):
    """The run is sealed: it allows no more queries or evaluations."""

    exit_code = 82


class QueryingClosed(RequestRefused):
    """The run has been evaluated, and may query no label after that."""

    exit_code = 83


class UnknownLabelId(RequestRefused):
    """An id is not a row of the service's data set, so images and labels do not match."""

    exit_code = 84


# Exit codes after which the same command goes on later, without a change of options or files.
REPEATABLE = frozenset(
    error.exit_code
    for error in (*TrainerError.__subclasses__(), *ServiceError.__subclasses__())
    if error.can_be_repeated
)


def first_mistake(error: ValidationError) -> str:
    """Name the first wrong field and what is wrong with it, without its value, which may be secret."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
