"""What routes share: the service, the run behind a token, and the headers of an answer about labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from label_service import errors
from label_service.ledger import ledger
from label_service.ledger.limits import GUEST
from label_service.ledger.tokens import matches, run_of, team_of
from label_service.log.entries import REGISTRATION, Entry
from label_service.log.evidence import Receipt
from label_service.log.log_reader import RunInfo
from label_service.log.merkle import encode_base64
from label_service.service import LabelService

# RFC 6750 section 2.1 names the characters a bearer token may have.
BEARER = re.compile(r"Bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
LOG_SIZE = re.compile(r"[1-9][0-9]{0,14}")
NO_STORE = {"Cache-Control": "no-store"}


# async, because FastAPI runs a plain function in a thread, which costs more than this function.
async def service_of(request: Request) -> LabelService:
    """Return the service behind the app."""
    return cast(LabelService, request.app.state.service)


Service = Annotated[LabelService, Depends(service_of)]


def bearer_token(request: Request) -> str | None:
    """Return the bearer token sent, or None if there is no Authorization header.

    Raises:
        InvalidToken: there is one that is not `Bearer TOKEN`.
    """
    sent = request.headers.getlist("authorization")
    if not sent:
        return None
    found = BEARER.fullmatch(sent[0].strip()) if len(sent) == 1 else None
    if found is None:
        raise errors.InvalidToken(
            "The Authorization header is not `Bearer TOKEN`; send the run's token, or none at all."
        )
    return found.group(1)


# async for the same reason as above.
async def admit(request: Request) -> None:
    """Refuse a request that was sent to another name, or has a query parameter that the path does not take.

    A page that a browser took from the service's own address under a foreign name (DNS rebinding) sends that name.

    Raises:
        HostNotAllowed: the Host header is none of the service's names.
        InvalidRequest: a query parameter is unknown, or sent twice.
    """
    settings = cast(LabelService, request.app.state.service).settings
    host = request.headers.get("host", "localhost" if request.scope["http_version"] == "1.0" else "")
    if not is_own_name(host, settings.host, settings.allowed_hosts or ""):
        raise errors.HostNotAllowed(
            "The service does not go by the name in the Host header; the operator can allow it with "
            "LABEL_SERVICE_ALLOWED_HOSTS."
        )
    if request.scope["query_string"]:
        known = set(_query_names(request.scope["route"].dependant))
        sent = [name for name, _ in request.query_params.multi_items()]
        if not known.issuperset(sent) or len(set(sent)) < len(sent):
            takes = f"each of these once: {', '.join(sorted(known))}" if known else "none"
            raise errors.InvalidRequest(f"Of query parameters this path takes {takes}.")


def _query_names(dependant: Dependant) -> Iterator[str]:
    """Yield the names of the query parameters that a route and what it depends on take."""
    yield from (field.alias for field in dependant.query_params)
    for part in dependant.dependencies:
        yield from _query_names(part)


@lru_cache(maxsize=256)
def is_own_name(host: str, listens_on: str, allowed_hosts: str) -> bool:
    """Return whether a Host header names the service: localhost, its address, or a name that the operator allows."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    names = {"localhost", listens_on, *(allowed.strip() for allowed in allowed_hosts.split(",") if allowed.strip())}
    if name.lower() in {known.lower() for known in names}:
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    # A service on all addresses does not know which of them it has; foreign names are no addresses.
    return address.is_loopback or listens_on in ("0.0.0.0", "::")  # noqa: S104 - a comparison


def refuse_cross_site(request: Request) -> None:
    """Refuse what a page of another site makes a browser ask, which would be charged to the guest.

    Raises:
        CrossSite: the browser says so (Fetch Metadata, https://www.w3.org/TR/fetch-metadata/).
    """
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise errors.CrossSite("Another site's page sent this request; open the address itself, or use a program.")


# async, because only the first request of a run needs a thread, to read its token from the database.
async def caller(request: Request, service: Service) -> str:
    """Return the run id of the caller: the token's run, or `guest` if no token was sent.

    Raises:
        InvalidToken: the token is unknown; never a fall-back to guest.
        CrossSite: another site's page made a browser ask.
    """
    refuse_cross_site(request)
    token = bearer_token(request)
    if token is None:
        request.state.run_id = GUEST
        return GUEST
    run_id = run_of(token)
    stored = await service.token_hash(run_id)
    if stored is None or not matches(token, stored):
        raise errors.InvalidToken(
            "No run has this token; send the one you got when the run was opened, or none at all."
        )
    request.state.run_id = run_id
    return run_id


Caller = Annotated[str, Depends(caller)]


async def find_run(service: LabelService, run_id: str) -> RunInfo:
    """Return a run's state by the log.

    Raises:
        UnknownRun: no run has this id.
    """
    run = await service.run(run_id)
    if run is None:
        raise errors.UnknownRun("No run has this id; open one with POST /v1/runs.")
    return run


async def own_run(service: Service, run_id: str, caller_id: Caller) -> str:
    """Return the run in the path, after checking that the caller sent the token of this run.

    Raises:
        UnknownRun: no run has this id.
        TokenRequired: no token was sent and the run is not the guest's.
        NotYourRun: the token is another run's.
    """
    if run_id == caller_id:
        return run_id
    await find_run(service, run_id)
    if caller_id == GUEST:
        raise errors.TokenRequired(f"This call belongs to run {run_id}; send its token.")
    raise errors.NotYourRun(f"The token belongs to another run than {run_id}; send the token of that run.")


async def registration(request: Request, service: Service) -> str | None:
    """Let a caller open a run: a team with its token, and anybody unless the operator set a registration token.

    Returns:
        The name of the token that allows it, None if none was needed.

    Raises:
        InvalidToken: a team's token was sent that the operator never made.
        RegistrationClosed: the operator's registration token is missing or wrong.
        CrossSite: another site's page made a browser ask.
    """
    refuse_cross_site(request)
    expected = service.registration_token_sha256
    token = bearer_token(request) if expected is not None or "authorization" in request.headers else None
    if token is not None and (team := team_of(token)) is not None:
        if await service.is_team_token(team, token):
            return team
        raise errors.InvalidToken("No team has this token; send the one that the operator made.")
    if expected is None:
        return None
    if token is None or not matches(token, expected):
        raise errors.RegistrationClosed(
            "Opening a run needs the operator's registration token, or a team's, as the bearer token here."
        )
    return REGISTRATION


# async for the same reason as above.
async def operator(request: Request, service: Service) -> None:
    """Let only the operator call.

    Raises:
        OperatorOnly: the operator's credential is missing or wrong.
    """
    token = bearer_token(request)
    if token is None or not matches(token, service.operator_token_sha256):
        raise errors.OperatorOnly("This call is the operator's; use `label-service token` beside the service.")


def ledger_request(request: Request, run_id: str) -> ledger.Request:
    """Return the ledger's view of a request.

    Raises:
        InvalidRequest: the Idempotency-Key is empty, too long, or not printable ASCII.
    """
    return ledger.Request(run_id, request.state.request_id, idempotency_key(request))


def idempotency_key(request: Request, shortest: int = 1) -> str | None:
    """Return the Idempotency-Key that was sent, if any.

    Raises:
        InvalidRequest: the Idempotency-Key is too short, too long, or not printable ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not (IDEMPOTENCY_KEY.fullmatch(key) and len(key) >= shortest):
        raise errors.InvalidRequest(
            f"The Idempotency-Key must be {shortest} to 255 printable ASCII characters without spaces."
        )
    return key


def known_log_size(request: Request) -> int | None:
    """Return the size of the signed head that the client says it knows, if it says so.

    Raises:
        InvalidRequest: the header is not a size.
    """
    size = request.headers.get("log-known-size")
    if size is None:
        return None
    if not LOG_SIZE.fullmatch(size):
        raise errors.InvalidRequest("Log-Known-Size must be the size of a signed head, a number from 1 up.")
    return int(size)


def prove(service: LabelService, entry: Entry, known_size: int | None) -> tuple[Receipt, dict[str, str]]:
    """Return the receipt of an entry, and the headers that prove that its head grew from the one the client knows.

    The proof is that of `GET /v1/log/proof/consistency`: here it spares the client a request for each answer.
    """
    head = service.log.head
    receipt = service.log.receipt(entry, head)
    # A log shorter than the client knows has no such proof, and the receipt's head shows that.
    if known_size is None or known_size > head.size:
        return receipt, {}
    proof = service.log.consistency_proof(known_size, head.size)
    return receipt, {"Log-Consistency": ", ".join(encode_base64(node) for node in proof)}


def label_headers(budget: int, remaining: int) -> dict[str, str]:
    """Return the headers of every answer about labels: no caching, the run's budget, and what is left of it.

    The two fields are those of draft-ietf-httpapi-ratelimit-headers. The budget has no window, so they name none.
    """
    return {**NO_STORE, "RateLimit-Policy": f'"labels";q={budget}', "RateLimit": f'"labels";r={remaining}'}


def problem_headers(problem: errors.Problem) -> dict[str, str]:
    """Return an error's headers. An error about a run's budget says what is left of it."""
    headers = {**NO_STORE, **problem.headers}
    if isinstance(problem, errors.LabelBudgetExhausted):
        headers |= label_headers(problem.extras["budget"], problem.extras["remaining"])
    return headers


Registration = Annotated[str | None, Depends(registration)]
Operator = Annotated[None, Depends(operator)]
OwnRun = Annotated[str, Depends(own_run)]
