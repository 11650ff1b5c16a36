"""Send one request to the label service; the retry policy is here, and every retry sends the same bytes.

Retried: connections that are refused, cut or timed out, and the statuses 429 and 502 to 504. Every try sends the same
bytes under the same Idempotency-Key, so a service that restarts in the middle costs a pause and not a label. Every
other failure is an error without a second try. tenacity repeats the tries; the pauses grow exponentially with jitter,
respect Retry-After, and end when the patience is spent.

The service is not trusted: an attempt has a deadline as a whole (`connection`), an answer has bounds of size and of
nesting, and an answer that is packed is refused, because its size is not known before it is unpacked.

The transport knows nothing of labels, and neither logs nor repeats a token.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore
import httpx
from pydantic import ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from trainer.errors import (
    BudgetExhausted,
    ConfigError,
    NotAuthorized,
    QueryingClosed,
    RequestRefused,
    RunSealed,
    ServiceProtocolError,
    ServiceUnavailable,
    UnknownLabelId,
)
from trainer.oracle.answers import Problem
from trainer.oracle.connection import DeadlineBackend

logger = logging.getLogger(__name__)

# Longest wait for a connection, and for the next bytes of an answer.
TIMEOUT_S = 10.0
# Limit of a whole attempt, in timeouts. The timeout itself restarts with every byte, so a trickle never exceeds it.
_TIMEOUTS_OF_A_TRY = 6
# Upper bound of the jitter after the first failure; it doubles with each failure up to the second bound.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
# A wait that lasts longer is reported to the user.
SILENT_WAIT_S = 2.0
# The largest answer is that of 1,000 labels with their openings, some megabytes.
_LONGEST_BODY_BYTES = 64 * 1024 * 1024
# An answer has a few arrays and objects for each label, entry or run. Parsed, even an empty one takes 500 bytes.
_MOST_CONTAINERS = 250_000

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_REFUSALS: Mapping[str, type[RequestRefused]] = {
    "label-budget-exhausted": BudgetExhausted,
    "total-budget-exhausted": BudgetExhausted,
    "run-sealed": RunSealed,
    "querying-closed": QueryingClosed,
    "unknown-id": UnknownLabelId,
    "not-your-run": NotAuthorized,
    "guest-closed": NotAuthorized,
}


class _TryAgain(Exception):  # noqa: N818 - a signal between the functions of this module, no error
    """The try failed in a way that another try may not."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Reply:
    """A 2xx answer.

    Attributes:
        body: As it was sent.
        headers: By name, in any case.
    """

    body: bytes
    headers: Mapping[str, str]


class Transport:
    """Requests to one label service. Not safe to share between threads."""

    def __init__(self, base_url: str, *, patience_s: float) -> None:
        """Check the address; no connection is made yet.

        Args:
            base_url: Address of the service, such as http://127.0.0.1:8000, with or without a path.
            patience_s: Time from the first failure of a request to giving up.

        Raises:
            ConfigError: The address is no http or https URL.
        """
        self.base_url = base_url.rstrip("/")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{base_url!r} is no URL ({error}); give one such as http://127.0.0.1:8000.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"{base_url!r} is no http URL; give the service's, such as http://127.0.0.1:8000.")
        try:
            # As the search for the host's address does it, which comes too late for a sentence.
            url.host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"{base_url!r} names no host that can be looked up ({error}).") from error
        self._patience_s = patience_s
        self._failing_since = 0.0
        self._told = False
        self._jitter = wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
        self._retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain), wait=self._pause_s, sleep=time.sleep, reraise=True
        )
        # httpcore, the layer below httpx: it heeds no proxy or .netrc of the environment, follows no redirect, unpacks
        # nothing, and takes a network backend. It refuses a line or a head of an answer longer than 100 KiB.
        self._backend = DeadlineBackend()
        # For less time than the service keeps a connection: one that it closes just then would lose a request.
        self._http = httpcore.ConnectionPool(network_backend=self._backend, keepalive_expiry=2.0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: object = None,
        params: Mapping[str, int] | None = None,
        idempotency_key: str | None = None,
        known_size: int | None = None,
    ) -> Reply:
        """Send a request until it is answered, and return a 2xx answer.

        Args:
            method: Of HTTP.
            path: Below the service's address.
            token: Bearer token.
            body: Sent as JSON.
            params: The query.
            idempotency_key: The same for every try.
            known_size: Size of the newest head that was witnessed: the service proves that its log grew from that.

        Raises:
            ServiceUnavailable: No answer, or only temporary failures, until the patience was spent.
            ServiceProtocolError: The answer does not come from a label service.
            RequestRefused: The service refused; the subclass names the reason.
        """
        headers = {"Accept": "application/json, application/problem+json", "Accept-Encoding": "identity"}
        content = None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if known_size is not None:
            headers["Log-Known-Size"] = str(known_size)
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, separators=(",", ":")).encode()
        url = httpx.URL(self.base_url + path, params=params or None)
        request = httpx.Request(method, url, headers=headers, content=content)
        self._told = False
        answer = self._retrying(self._attempt, request, f"{method} {path}")
        if self._told:
            waited_s = time.monotonic() - self._failing_since
            logger.warning("the label service answers again, after %.0f s", waited_s)
        return answer

    def _pause_s(self, state: RetryCallState) -> float:
        """Return the pause after a failed try, in seconds, or give up; tenacity calls this after each one."""
        failure = state.outcome.exception() if state.outcome else None
        assert isinstance(failure, _TryAgain)
        now = time.monotonic()
        if state.attempt_number == 1:
            self._failing_since = now
        waited_s = now - self._failing_since
        left_s = self._patience_s - waited_s
        if left_s <= 0:
            raise ServiceUnavailable(
                f"the label service at {self.base_url} did not answer for {waited_s:.0f} s ({failure}); "
                "start it and go on with --resume."
            ) from failure
        if failure.retry_after_s > left_s:
            raise ServiceUnavailable(
                f"the label service at {self.base_url} asks to wait {failure.retry_after_s:.0f} s ({failure}), longer "
                f"than the {left_s:.0f} s that are left of the patience; go on later with --resume."
            ) from failure
        pause_s = min(max(self._jitter(state), failure.retry_after_s), left_s)
        if not self._told and waited_s + pause_s >= SILENT_WAIT_S:
            self._told = True
            logger.warning("the label service does not answer (%s); trying again for %.0f s more", failure, left_s)
        return pause_s

    def _attempt(self, request: httpx.Request, name: str) -> Reply:
        """Send once."""
        url = request.url
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.read(),
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)},
        )
        self._backend.begin_attempt(_TIMEOUTS_OF_A_TRY * TIMEOUT_S)
        try:
            with contextlib.closing(self._http.handle_request(sent)) as response:
                body = self._read(response, name)
        except httpcore.TimeoutException as error:
            slow = self._backend.left_s() <= 0
            raise _TryAgain("the answer came too slowly" if slow else f"no answer within {TIMEOUT_S:g} s") from error
        except httpcore.RemoteProtocolError as error:
            if self._backend.peer_closed:
                raise _TryAgain("the connection was cut before the answer was complete") from error
            raise ServiceProtocolError(
                f"what answers at {self.base_url} does not speak HTTP as a label service does; check the address."
            ) from error
        except httpcore.LocalProtocolError as error:
            # The text of the error may hold the header, and with it the token.
            raise ConfigError("the token or idempotency key cannot be sent as an HTTP header.") from error
        except httpcore.NetworkError as error:
            cause = _root_cause(error)
            if isinstance(cause, ssl.SSLError):
                raise ServiceProtocolError(
                    f"no TLS connection to {self.base_url} ({cause.reason}); check https and the certificate."
                ) from error
            raise _TryAgain(_in_words(cause)) from error
        headers = httpx.Headers(response.headers)
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity" and response.status not in _RETRIED_STATUSES:
            raise ServiceProtocolError(
                f"the answer to {name} is packed ({encoding}), though a plain one was asked for; look for a proxy."
            )
        return _accept(response.status, headers, body, name, self.base_url)

    def _read(self, response: httpcore.Response, name: str) -> bytes:
        """Read a body within bounds of size."""
        body = bytearray()
        for part in response.iter_stream():
            body += part
            if len(body) > _LONGEST_BODY_BYTES:
                raise ServiceProtocolError(f"the answer to {name} is longer than {_LONGEST_BODY_BYTES} bytes.")
        if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS:
            raise ServiceProtocolError(
                f"the answer to {name} has more than {_MOST_CONTAINERS} arrays and objects, as no label service's has."
            )
        return bytes(body)


def _accept(status: int, headers: httpx.Headers, body: bytes, name: str, base_url: str) -> Reply:
    """Return a 2xx answer; raise the error of any other answer."""
    if 200 <= status < 300:
        return Reply(body, headers)
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        problem = None
    if status in _RETRIED_STATUSES:
        reason = f"status {status}" + (f" {problem.code}: {problem.detail}" if problem else "")
        raise _TryAgain(reason.rstrip(".: "), retry_after_s=_retry_after_s(headers))
    if problem is None:
        kind = headers.get("content-type", "no content type").split(";")[0]
        raise ServiceProtocolError(
            f"{base_url} answered {name} with {status} and {kind}, which no label service does; check --service."
        )
    refusal = _REFUSALS.get(problem.code, NotAuthorized if status == 401 else RequestRefused)
    message = f"the label service refused {name} ({status} {problem.code}): {problem.detail}"
    raise refusal(message, status=status, code=problem.code, detail=problem.detail)


def _retry_after_s(headers: httpx.Headers) -> float:
    """Return the seconds that Retry-After asks for (RFC 9110 section 10.2.3), 0 where it is absent or unreadable."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain: httpx wraps httpcore's error, which wraps the system's."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _in_words(cause: BaseException) -> str:
    """Name a failed connection in the system's words, in lower case."""
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    return words[:1].lower() + words[1:]
