"""The teams' tokens, for the operator alone: make, list, revoke."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from label_service.ledger.teams import NewTeamToken, TeamToken
from label_service.web.callers import NO_STORE, Operator, Service
from label_service.web.openapi import problems
from label_service.web.schemas import PathTokenName, TokenRequest, TokensAnswer

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

_OPERATOR = ("invalid-token", "log-not-writable", "operator-only")


@router.post("", status_code=201, responses=problems(*_OPERATOR, "token-name-taken"))
async def create_token(
    body: TokenRequest, request: Request, response: Response, service: Service, _operator: Operator
) -> NewTeamToken:
    """Make a team's token and show it, once. 201 is logged; the errors are not."""
    response.headers.update(NO_STORE)
    return await service.create_token(request.state.request_id, body.name, body.budget, body.evaluations, body.expires)


@router.get("", responses=problems(*_OPERATOR))
async def list_tokens(response: Response, service: Service, _operator: Operator) -> TokensAnswer:
    """List the teams' tokens, oldest first: what each grants and what its runs have used. Nothing is logged."""
    response.headers.update(NO_STORE)
    return TokensAnswer(tokens=await service.tokens())


@router.post("/{name:run_id}:revoke", responses=problems(*_OPERATOR, "unknown-token"))
async def revoke_token(name: PathTokenName, request: Request, service: Service, _operator: Operator) -> TeamToken:
    """End a team's token: its runs get nothing new. Revoking it again logs nothing."""
    return await service.revoke_token(request.state.request_id, name)
