"""Playing the entries of a log through its rules, with nothing but the entries: who was charged what, and when.

Each entry must be written in the one canonical way, follow from those before it, and bind the same answer key.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from label_service.log.entries import DONE, ENTRY_VERSION, canonical_json
from label_service.log.merkle import VerificationError

_FIRST_FIELDS = frozenset(
    ("v", "seq", "ts", "log_id", "run", "op", "ids", "outcome", "charged", "spent", "budget", "request_id")
)
# By version of the entry. Entries of version 1 were written before the service committed to the answer key.
_FIELDS = {1: _FIRST_FIELDS, ENTRY_VERSION: _FIRST_FIELDS | {"label_commitment"}}
# What each kind of entry may say was done, and the count that its detail must have.
_OUTCOMES = {
    "run-opened": ("opened",),
    "run-sealed": ("sealed",),
    "budget-changed": ("changed",),
    "query": ("revealed", "replayed"),
    "evaluation": ("evaluated", "replayed"),
}
_DETAIL = {"opened": "evaluations_allowed", "changed": "previous_budget", "evaluated": "evaluation"}


class EntryFails(VerificationError):  # noqa: N818 - says what happened, as the package's other errors
    """An entry does not hold.

    Attributes:
        seq: its number, or the last of several among which it is.
    """

    def __init__(self, seq: int, reason: str, since: int | None = None) -> None:
        """Say which entry, and why.

        Args:
            seq: number of the entry.
            reason: what does not hold, as `it ...`.
            since: the first entry that it may be instead.
        """
        first = seq if since is None else since
        super().__init__(f"entry {first}{f', or one of those up to {seq}' if first < seq else ''}: {reason}")
        self.seq = seq


@dataclass
class RunAccount:
    """What the entries of one run add up to."""

    budget: int
    evaluations_allowed: int
    evaluation_budgets: tuple[int, ...] = ()
    labels: set[int] = field(default_factory=set)
    queries: int = 0
    replays: int = 0
    refusals: int = 0
    evaluated_at: list[int | None] = field(default_factory=list)
    sealed: bool = False

    @property
    def evaluations(self) -> int:
        """Evaluations made."""
        return len(self.evaluated_at)


@dataclass
class Account:
    """What the entries of a log add up to.

    Attributes:
        runs: by run id.
        label_commitment: root of the answer key that the entries bind, base64; None if none does.
        uncommitted: entries before the first that binds it.
    """

    runs: dict[str, RunAccount] = field(default_factory=dict)
    label_commitment: str | None = None
    uncommitted: int = 0


def play(entries: Sequence[bytes], log_id: str) -> Account:
    """Play the entries through the rules of the log.

    Raises:
        EntryFails: the first entry that does not follow from those before it.
    """
    account = Account()
    for seq, data in enumerate(entries):
        entry = _parsed(data, seq)
        _require(entry["log_id"] == log_id, seq, "it is of another log")
        commitment = entry.get("label_commitment")
        first = account.label_commitment is None
        _require(first or commitment == account.label_commitment, seq, "it binds another answer key")
        account.label_commitment = commitment
        account.uncommitted += commitment is None
        try:
            _play(account.runs, entry)
        except _RuleBroken as broken:
            raise EntryFails(seq, str(broken)) from broken
    return account


class _RuleBroken(Exception):  # noqa: N818 - what happened, as the package's other errors
    """An entry does not follow from those before it."""


def _play(runs: dict[str, RunAccount], entry: dict[str, Any]) -> None:
    name, op, outcome, detail = entry["run"], entry["op"], entry["outcome"], entry.get("detail", {})
    if op == "run-opened":
        _rule(name not in runs, f"run {name} is opened a second time")
        points = tuple(detail.get("evaluation_budgets", ()))
        runs[name] = RunAccount(entry["budget"], detail["evaluations_allowed"], points)
    run = runs.get(name)
    _rule(run is not None, f"run {name} was never opened")
    assert run is not None
    if op == "budget-changed":
        _rule(detail["previous_budget"] == run.budget, "the budget it changes is not the run's")
        run.budget = entry["budget"]
    _rule(entry["budget"] == run.budget, f"it says a budget of {entry['budget']}, and the run's is {run.budget}")
    new = set(entry["ids"]) - run.labels if op == "query" and outcome in ("revealed", "replayed") else set()
    _rule(entry["charged"] == len(new), f"it charges {entry['charged']}, and {len(new)} of its ids are new to the run")
    _rule(outcome != "revealed" or bool(new), "it reveals nothing new")
    _rule(not new or not (run.sealed or run.evaluations), "it reveals new labels to a run that had ended querying")
    run.labels |= new
    run.queries += len(new)
    _rule(entry["spent"] == run.queries, f"it says {entry['spent']} spent, and the entries make {run.queries}")
    _rule(not new or run.queries <= run.budget, "it reveals more than the run's budget")
    if outcome == "evaluated":
        point = detail.get("evaluated_budget")
        if run.evaluation_budgets:
            _rule(point in run.evaluation_budgets, f"it evaluates {point} labels, a point that the run never declared")
            _rule(point not in run.evaluated_at, f"it evaluates {point} labels a second time")
        run.evaluated_at.append(point)
        _rule(run.evaluations <= run.evaluations_allowed, "the run had no evaluation left")
        _rule(detail["evaluation"] == run.evaluations, "its evaluation has the wrong number")
    _rule(op != "run-sealed" or not run.sealed, "the run was sealed before")
    run.sealed |= op == "run-sealed"
    run.replays += outcome == "replayed"
    run.refusals += outcome not in DONE


def _rule(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _RuleBroken(otherwise)


def _parsed(data: bytes, seq: int) -> dict[str, Any]:
    """Parse an entry and check that it is written in the one way there is, with every field of the right kind."""
    try:
        entry = json.loads(data)
        canonical = canonical_json(entry)
    except (ValueError, RecursionError) as error:
        raise EntryFails(seq, "it is not JSON") from error
    _require(isinstance(entry, dict), seq, "it is no JSON object")
    version = entry.get("v")
    known = type(version) is int and version in _FIELDS
    _require(known, seq, f"it is of version {version}, and this tool knows up to {ENTRY_VERSION}")
    _require(set(entry) - {"detail"} == _FIELDS[version], seq, "it has not the fields of an entry")
    _require(canonical == data, seq, "it is not written in canonical form")
    texts = sorted(_FIELDS[version] - {"v", "seq", "charged", "spent", "budget", "ids"})
    counts = ("v", "seq", "charged", "spent", "budget")
    _require(all(isinstance(entry[name], str) for name in texts), seq, "a field that must be text is not")
    _require(all(_is_count(entry[name]) for name in counts), seq, "a field that must be a count is not")
    ids = entry["ids"]
    _require(isinstance(ids, list) and all(type(one) is int for one in ids), seq, "its ids are not integers")
    _require(len(set(ids)) == len(ids), seq, "it names an id twice")
    _require(entry["seq"] == seq, seq, f"it is numbered {entry['seq']}")
    _require(entry["op"] in _OUTCOMES, seq, f"it is of an unknown kind, {entry['op']}")
    # A refusal's outcome is the code of an error; only queries and evaluations are refused on the record.
    refused = entry["outcome"] not in DONE and entry["op"] in ("query", "evaluation")
    _require(refused or entry["outcome"] in _OUTCOMES[entry["op"]], seq, "its kind and outcome do not match")
    detail, needed = entry.get("detail", {}), _DETAIL.get(entry["outcome"])
    _require(isinstance(detail, dict), seq, "its detail is no object")
    _require(needed is None or _is_count(detail.get(needed)), seq, f"its detail lacks {needed}")
    points = detail.get("evaluation_budgets", [])
    _require(isinstance(points, list) and all(map(_is_count, points)), seq, "its evaluation budgets are not counts")
    return dict(entry)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _require(holds: bool, seq: int, otherwise: str) -> None:
    if not holds:
        raise EntryFails(seq, otherwise)
