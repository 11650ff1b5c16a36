"""The teams' tokens: made, revoked and asked by the operator, inside the writer's transaction.

A token stands nowhere but in the log: its entry has the name, the budget and the end, and binds the token's hash. So
whoever writes to the database can make, enlarge or restore none. The account of the log adds up what a team has used.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from label_service.errors import Problem, TokenEnded, TokenNameTaken, UnknownToken
from label_service.ledger.append import Rules, append
from label_service.ledger.limits import GUEST
from label_service.ledger.tokens import new_team_token, token_hash
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.account import TokenAccount
from label_service.log.entries import REGISTRATION, now


class TeamToken(BaseModel, frozen=True):
    """A team's token as the operator sees it: what it grants, and what its runs have used together."""

    name: str
    budget: int = Field(description="Labels that all runs opened with it may be charged together.")
    queries: int = Field(description="Labels charged to them so far.")
    evaluations_allowed: int | None = Field(description="Evaluations that they may make together; null: no own limit.")
    evaluations_used: int
    runs: int = Field(description="Runs opened with it.")
    expires: str | None = Field(description="Time from which it gives nothing new.")
    state: str = Field(description="`valid`, `expired` or `revoked`.")


class NewTeamToken(TeamToken, frozen=True):
    """A fresh token, shown once; the service stores its hash."""

    token: str


def create(
    unit: UnitOfWork, rules: Rules, request_id: str, name: str, budget: int, evaluations: int | None,
    expires: str | None,
) -> NewTeamToken | Problem:  # fmt: skip
    """Make a token and log it; a name is used once in the life of a log. `expires` is a time as entries have it."""
    if name == REGISTRATION or unit.token(name) is not None:
        return TokenNameTaken(f"The name {name} was given to a token before; choose another.")
    token = new_team_token(name)
    detail = {"token": name, "token_budget": budget, "token_evaluations": evaluations, "expires": expires}
    guest = unit.run(GUEST)
    append(unit, rules, guest, request_id, "token-created", "created", detail=detail, bound_sha256=token_hash(token))
    made = unit.token(name)
    assert made is not None, "it was made above"
    return NewTeamToken(**dict(describe(name, made)), token=token)


def revoke(unit: UnitOfWork, rules: Rules, request_id: str, name: str) -> TeamToken | Problem:
    """End a token and log it; a token that was revoked before stays so, without an entry."""
    token = unit.token(name)
    if token is None:
        return UnknownToken("No token has this name; see `label-service token list`.")
    if not token.revoked:
        append(unit, rules, unit.run(GUEST), request_id, "token-revoked", "revoked", detail={"token": name})
    return describe(name, token)


def refuse_ended_token(unit: UnitOfWork, name: str | None) -> TokenEnded | None:
    """Refuse anything new to a run whose team's token was revoked or has expired."""
    token = None if name is None else unit.token(name)
    if token is None or not token.has_ended(max(now(), unit.newest_time)):
        return None
    how = "was revoked" if token.revoked else f"expired at {token.expires}"
    return TokenEnded(f"The token {name} {how}, so it gives no new run, label or evaluation; ask the operator.")


def describe(name: str, token: TokenAccount) -> TeamToken:
    """Return the state of a token now."""
    ended = "revoked" if token.revoked else "expired"
    return TeamToken(
        name=name,
        budget=token.budget,
        queries=token.queries,
        evaluations_allowed=token.evaluations_allowed,
        evaluations_used=token.evaluations,
        runs=token.runs,
        expires=token.expires,
        state=ended if token.has_ended(now()) else "valid",
    )
