"""Every error of the service, with its stable code and HTTP status.

    LabelServiceError
    ├── SetupError                      the operator sees it: one sentence, exit code 1
    │   ├── DataRefused                 a data folder or file that cannot be used
    │   │   └── DataMissing             there are no label files in it
    │   ├── DatabaseRefused             the database cannot be opened, is in use, or holds other data
    │   ├── BackupRefused               a backup cannot be made, or not be restored like this
    │   ├── PortTaken                   the address cannot be listened on
    │   └── RegistrationTokenRefused    the file of the registration token cannot be used
    ├── LogChanged                      the database does not hold what was signed or committed to: nothing is written
    │   └── FileReplaced                its file was deleted or replaced while it is open
    └── Problem                         a client sees it: RFC 9457 problem details, one class for each code

A `Problem` never carries a label, a token, or the input that caused it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, ClassVar


class LabelServiceError(Exception):
    """Base of every error that this package raises on purpose. Its text is one sentence for the reader."""


class SetupError(LabelServiceError):
    """Raised before or outside serving; the command line prints it and exits with 1."""


class DataRefused(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when a data folder is missing, incomplete, damaged, swapped, or unknown without a flag that says so."""


class DataMissing(DataRefused):
    """Raised when a folder has no label files at all; a database that is already seeded does without them."""


class DatabaseRefused(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when the database cannot be opened, is held by another service, or holds another data set."""


class BackupRefused(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when a backup cannot be made, is damaged, would overwrite something, or would fork the log."""


class PortTaken(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when the service cannot listen on the address it was given."""


class RegistrationTokenRefused(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when the file of the registration token cannot be made or read, or when the token is set twice."""


class LogChanged(LabelServiceError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when signed entries or committed labels have changed in the database; until mended, no label leaves."""


class FileReplaced(LogChanged):
    """Raised when the database's path is not the file that was opened; the open file still has everything."""


class Problem(LabelServiceError):  # noqa: N818 - says what happened, as its siblings do
    """An error that is answered over HTTP as `application/problem+json` (RFC 9457).

    Attributes:
        status: HTTP status code.
        code: stable name of the error; clients branch on this and on nothing else.
        detail: one sentence: what happened, what was expected, what to do.
        extras: further members of the problem document (numbers such as `remaining`), never a label.
        headers: response headers that belong to the error, such as Retry-After.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = ""

    def __init__(
        self, detail: str, *, extras: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extras = dict(extras or {})
        self.headers = dict(headers or {})

    def document(self, root: str = "") -> dict[str, Any]:
        """Return the problem document (RFC 9457 section 3), its type a link to this service's own error page.

        Args:
            root: the path under which a reverse proxy shows the service, such as `/labels`.
        """
        return {
            "type": f"{root}/errors#{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.extras,
        }


class InvalidRequest(Problem):
    """The path, a header or the body is not what the contract says."""

    status, code = 422, "invalid-request"


class InvalidPredictions(Problem):
    """The predictions are not one known class number for each test image."""

    status, code = 422, "invalid-predictions"


class IdempotencyKeyReused(Problem):
    """The Idempotency-Key was used before by this run with another body."""

    status, code = 422, "idempotency-key-reused"


class _Unauthorised(Problem):
    """A 401 always names the scheme that would have been accepted (RFC 9110 section 11.6.1)."""

    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="labelmeter"'})


class InvalidToken(_Unauthorised):
    """The token is unknown or the Authorization header is malformed; it never falls back to the guest run."""

    code = "invalid-token"


class TokenRequired(_Unauthorised):
    """The call belongs to a run and came without that run's token."""

    code = "token-required"


class RegistrationClosed(_Unauthorised):
    """Opening a run needs the operator's registration token."""

    code = "registration-closed"


class OperatorOnly(_Unauthorised):
    """The call is the operator's, and came without the operator's credential."""

    code = "operator-only"


class TokenEnded(Problem):
    """The team's token was revoked or has expired: it gives no new run, label or evaluation."""

    status, code = 403, "token-ended"


class TokenNameTaken(Problem):
    """A token of this log had this name before."""

    status, code = 409, "token-name-taken"


class UnknownToken(Problem):
    """No team's token has this name."""

    status, code = 404, "unknown-token"


class NotYourRun(Problem):
    """The token is good, but belongs to another run than the one in the path."""

    status, code = 403, "not-your-run"


class LabelBudgetExhausted(Problem):
    """The run's budget does not cover the new labels asked for; waiting does not help."""

    status, code = 403, "label-budget-exhausted"


class TotalBudgetExhausted(Problem):
    """The operator's total over all runs does not cover the new labels asked for."""

    status, code = 403, "total-budget-exhausted"


class GuestClosed(Problem):
    """The operator gave the guest run no budget: queries need a token."""

    status, code = 403, "guest-closed"


class GuestHasNoEvaluations(Problem):
    """The guest run cannot be evaluated."""

    status, code = 403, "guest-has-no-evaluations"


class RunBudgetTooLarge(Problem):
    """The budget asked for is above the operator's limit for one run."""

    status, code = 403, "run-budget-too-large"


class TooManyEvaluations(Problem):
    """More evaluations were declared than the operator allows one run."""

    status, code = 403, "too-many-evaluations"


class EvaluationsExhausted(Problem):
    """The run's evaluations, or the operator's total of them, are used up."""

    status, code = 403, "evaluations-exhausted"


class UnknownId(Problem):
    """At least one id names no image of the pool; nothing was charged."""

    status, code = 404, "unknown-id"


class UnknownRun(Problem):
    """No run has this id."""

    status, code = 404, "unknown-run"


class NotSigned(Problem):
    """There is no such proof: fewer entries are signed, or the sizes and the entry's number do not fit together."""

    status, code = 404, "not-signed"


class NotFound(Problem):
    """The service has no such path."""

    status, code = 404, "not-found"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method."""

    status, code = 405, "method-not-allowed"


class QueryingClosed(Problem):
    """The run has seen a test accuracy, so it gets no new label; labels it already has stay free."""

    status, code = 409, "querying-closed"


class EvaluationNotDeclared(Problem):
    """The run declared the budgets of its evaluations, and this one is not among those left."""

    status, code = 409, "evaluation-not-declared"


class RunSealed(Problem):
    """The run was sealed: it takes no queries and no evaluations any more."""

    status, code = 410, "run-sealed"


class CrossSite(Problem):
    """A page of another site made a browser ask; nothing was charged."""

    status, code = 403, "cross-site"


class HostNotAllowed(Problem):
    """The Host header is none of the service's names."""

    status, code = 421, "host-not-allowed"


class RequestTooSlow(Problem):
    """The client took too long to send its request."""

    status, code = 408, "request-too-slow"


class BodyTooLarge(Problem):
    """The body is larger than the service reads."""

    status, code = 413, "body-too-large"


class TooManyRequests(Problem):
    """The operator's rate limit holds the run back; Retry-After says for how long."""

    status, code = 429, "too-many-requests"


class HeadersTooLarge(Problem):
    """The URL and the headers are larger than the service reads."""

    status, code = 431, "headers-too-large"


class TooManyConnections(Problem):
    """The service, or the client's address, has as many connections as it may have; try again later."""

    status, code = 503, "too-many-connections"


class InternalError(Problem):
    """A fault of the service; its log on stderr has the trace under the request id."""

    status, code = 500, "internal-error"


class LogNotWritable(Problem):
    """The entry could not be made durable, so no label left and nothing was charged."""

    status, code = 503, "log-not-writable"


class LogNotReadable(Problem):
    """The database could not be read."""

    status, code = 503, "log-not-readable"


def all_problems() -> Iterator[type[Problem]]:
    """Yield every problem class that has a code, sorted by status, then by code."""
    pending: list[type[Problem]] = [Problem]
    found: list[type[Problem]] = []
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if cls.code:
            found.append(cls)
    yield from sorted(found, key=lambda cls: (cls.status, cls.code))
