"""Carry one request to the label service, as often as it takes and never twice with different content.

What is tried again: connections refused, cut or timed out, 429 and 502 to 504, and 409 while the same
Idempotency-Key is still being answered. Every try sends the same bytes under the same key, so a service that
restarts in the middle costs a pause and not a label. Everything else is an error at once. The pauses grow
exponentially with seeded jitter, respect Retry-After, and end when the patience is spent.

It knows nothing of labels, and neither logs nor repeats a token.
"""

from __future__ import annotations

import email.utils
import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

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

logger = logging.getLogger(__name__)

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_KEY_BUSY_CODES = frozenset({"idempotency-key-in-use", "idempotency-key-in-flight"})
_REFUSALS: Mapping[str, type[RequestRefused]] = {
    "label-budget-exhausted": BudgetExhausted,
    "total-budget-exhausted": BudgetExhausted,
    "run-sealed": RunSealed,
    "querying-closed": QueryingClosed,
    "unknown-id": UnknownLabelId,
    "not-your-run": NotAuthorized,
    "guest-closed": NotAuthorized,
}
# The evidence of a long run is the largest answer, some megabytes.
_LONGEST_BODY_BYTES = 64 * 1024 * 1024
# A service that sends a byte now and then never trips httpx's timeout, which counts from byte to byte.
_ATTEMPT_TIMEOUTS = 6


@dataclass(frozen=True)
class RetryPolicy:
    """How long one try may take, how long to go on trying, and how long to pause between tries.

    Attributes:
        timeout_s: Longest wait for a connection, and for the next bytes of an answer.
        patience_s: Time from the first failure to giving up.
        first_pause_s: Pause after the first failure; each further one doubles, with jitter from half to full.
        longest_pause_s: Cap of the pauses; only Retry-After goes beyond.
        tell_after_s: A wait is told to the user once it lasts this long.
    """

    timeout_s: float = 10.0
    patience_s: float = 300.0
    first_pause_s: float = 0.25
    longest_pause_s: float = 15.0
    tell_after_s: float = 2.0


class _TryAgain(Exception):  # noqa: N818 - a signal between the functions of this module, no error
    """The try failed in a way that another one may cure."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Transport:
    """Requests to one label service. Not safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        notify: Callable[[str], None] | None = None,
        seed: int = 0,
    ) -> None:
        """Check the address; no connection is made yet.

        Args:
            base_url: Address of the service, such as http://127.0.0.1:8000, with or without a path.
            policy: Timeouts and pauses.
            clock: Seconds that only grow.
            sleep: Pauses for seconds.
            notify: Told one line when a wait lasts and when it ends; a warning in the log by default.
            seed: Seed of the jitter.

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
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._notify = notify or logger.warning
        self._random = random.Random(seed)  # noqa: S311 - jitter needs no secrecy
        # trust_env=False: the service is on this machine or on the compose network, where a proxy of the environment
        # would only get in the way, and a .netrc must not replace the run's token.
        self._http = httpx.Client(timeout=policy.timeout_s, trust_env=False, follow_redirects=False)

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
        params: Mapping[str, str | int] | None = None,
        idempotency_key: str | None = None,
    ) -> bytes:
        """Send a request until it is answered, and return the body of a 2xx answer.

        Raises:
            ServiceUnavailable: No answer, or only passing failures, until the patience was spent.
            ServiceProtocolError: The answer does not come from a label service.
            RequestRefused: The service refused, as the subclass tells.
        """
        headers = {"Accept": "application/json, application/problem+json"}
        content = None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, separators=(",", ":")).encode()
        request = self._http.build_request(
            method, self.base_url + path, headers=headers, content=content, params=params or None
        )
        name = f"{method} {path}"
        failed_at: float | None = None
        failures, told = 0, False
        while True:
            try:
                answer = self._attempt(request, name)
            except _TryAgain as failure:
                now = self._clock()
                failed_at = now if failed_at is None else failed_at
                failures += 1
                left_s = self._policy.patience_s - (now - failed_at)
                pause_s = self._pause_s(failures, left_s, failure)
                if not told and now - failed_at + pause_s >= self._policy.tell_after_s:
                    told = True
                    self._notify(f"the label service does not answer ({failure}); trying again for {left_s:.0f} s more")
                self._sleep(pause_s)
                continue
            if told and failed_at is not None:
                self._notify(f"the label service answers again, after {self._clock() - failed_at:.0f} s")
            return answer

    def _pause_s(self, failures: int, left_s: float, failure: _TryAgain) -> float:
        """Return the next pause in seconds, or give up."""
        address, patience_s = self.base_url, self._policy.patience_s
        if left_s <= 0:
            raise ServiceUnavailable(
                f"the label service at {address} did not answer for {patience_s:.0f} s ({failure}); "
                "start it and go on with --resume."
            ) from failure
        if failure.retry_after_s > left_s:
            raise ServiceUnavailable(
                f"the label service at {address} wants to be asked again in {failure.retry_after_s:.0f} s ({failure}), "
                f"later than the {left_s:.0f} s that are left to wait; go on with --resume then."
            ) from failure
        # The exponent is capped because 2.0 ** 1024 is an error, and a patient client can come that far.
        grown_s = min(self._policy.first_pause_s * 2.0 ** min(failures - 1, 60), self._policy.longest_pause_s)
        jittered_s = grown_s * self._random.uniform(0.5, 1.0)
        return min(max(jittered_s, failure.retry_after_s), left_s)

    def _attempt(self, request: httpx.Request, name: str) -> bytes:
        """Send once."""
        deadline = self._clock() + _ATTEMPT_TIMEOUTS * self._policy.timeout_s
        try:
            response = self._http.send(request, stream=True)
            try:
                body = self._read(response, deadline, name)
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise _TryAgain(f"no answer within {self._policy.timeout_s:g} s") from error
        except httpx.RemoteProtocolError as error:
            # h11 calls "illegal" what is not HTTP; a connection that was cut has other words and is tried again.
            if "illegal" in str(error).lower():
                raise ServiceProtocolError(
                    f"what answers at {self.base_url} does not speak HTTP; is that the label service's address?"
                ) from error
            raise _TryAgain("the connection was cut before the answer was complete") from error
        except httpx.LocalProtocolError as error:
            # The text of the error may hold the header, and with it the token.
            raise ConfigError("the token or idempotency key cannot be sent as an HTTP header.") from error
        except httpx.DecodingError as error:
            raise ServiceProtocolError(f"the answer to {name} cannot be unpacked; is a proxy in between?") from error
        except httpx.TransportError as error:
            cause = _root_cause(error)
            if isinstance(cause, ssl.SSLError):
                raise ServiceProtocolError(
                    f"no TLS connection to {self.base_url} ({cause.reason}); check https and the certificate."
                ) from error
            raise _TryAgain(_in_words(cause)) from error
        return _accept(response, body, name, self.base_url)

    def _read(self, response: httpx.Response, deadline: float, name: str) -> bytes:
        """Read a body within bounds of time and size."""
        parts: list[bytes] = []
        size = 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > _LONGEST_BODY_BYTES:
                raise ServiceProtocolError(f"the answer to {name} is longer than {_LONGEST_BODY_BYTES} bytes.")
            if self._clock() > deadline:
                raise _TryAgain("the answer came too slowly")
        return b"".join(parts)


def _accept(response: httpx.Response, body: bytes, name: str, base_url: str) -> bytes:
    """Return the body of a 2xx answer; raise what any other answer means."""
    status = response.status_code
    if 200 <= status < 300:
        return body
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        problem = None
    if status in _RETRIED_STATUSES or (problem is not None and problem.code in _KEY_BUSY_CODES):
        reason = f"it says {status}" + (f" {problem.code}: {problem.detail}" if problem else "")
        raise _TryAgain(reason.rstrip(".: "), retry_after_s=_retry_after_s(response))
    if problem is None:
        kind = response.headers.get("content-type", "no content type").split(";")[0]
        raise ServiceProtocolError(
            f"{base_url} answered {name} with {status} and {kind}, which no label service does; check --service."
        )
    refusal = _REFUSALS.get(problem.code, NotAuthorized if status == 401 else RequestRefused)
    message = f"the label service refused {name} ({status} {problem.code}): {problem.detail}"
    raise refusal(message, status=status, code=problem.code, detail=problem.detail)


def _retry_after_s(response: httpx.Response) -> float:
    """Return the seconds that Retry-After asks for (RFC 9110 section 10.2.3), 0 where it is absent or unreadable."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain: httpx wraps httpcore, which wraps the system's."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _in_words(cause: BaseException) -> str:
    """Name a failed connection in the system's words, in lower case."""
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    return words[:1].lower() + words[1:]
