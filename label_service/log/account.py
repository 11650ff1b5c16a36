"""Auditing the entries of a log: what each run was charged, computed from nothing but the entries.

`audit` reads the entries in order. Each must be written in canonical form, must follow from the entries before it under
the rules of the log (a label is charged to a run once, no run spends more than its budget, and so on), and must name
the same answer key.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from label_service.log.entries import DONE, ENTRY_VERSION, GUEST, REGISTRATION, canonical_json
from label_service.log.forerunner import Forerunner
from label_service.log.key_history import KeyHistory, KeyRotation
from label_service.log.merkle import HASH_BYTES, VerificationError
from label_service.log.signed_note import decode_base64
from label_service.log.tree_head import ORIGIN_PREFIX

_COUNT_FIELDS = frozenset(("v", "seq", "charged", "spent", "budget"))
_TEXT_FIELDS = frozenset(("ts", "log_id", "run", "op", "outcome", "request_id"))
# The text fields of each version. Entries of version 1 are older than the commitment to the answer key.
_TEXT_FIELDS_OF_VERSION = {1: _TEXT_FIELDS, ENTRY_VERSION: _TEXT_FIELDS | {"label_commitment"}}
_SHA256 = re.compile("[0-9a-f]{64}")
# The outcomes that each kind of entry may have, and the count that the detail of some outcomes must have.
_OUTCOMES = {
    "run-opened": ("opened",),
    "run-sealed": ("sealed",),
    "budget-changed": ("changed",),
    "token-created": ("created",),
    "token-revoked": ("revoked",),
    "key-rotated": ("rotated",),
    "query": ("revealed", "replayed"),
    "evaluation": ("evaluated", "replayed"),
}
OPERATIONS = tuple(_OUTCOMES)
_DETAIL_COUNT = {
    "opened": "evaluations_allowed",
    "changed": "previous_budget",
    "created": "token_budget",
    "evaluated": "evaluation",
}


class EntryError(VerificationError):
    """An entry that was changed, is missing, or breaks a rule of the log.

    Attributes:
        seq: its number; if only a range is known, the last number of the range.
    """

    def __init__(self, seq: int, reason: str, since: int | None = None) -> None:
        """Name the entry and the reason.

        Args:
            seq: number of the entry.
            reason: what does not hold, as `it ...`.
            since: the smallest number that the entry can have, if its number is not known exactly.
        """
        first = seq if since is None else since
        super().__init__(f"entry {first}{f', or one of those up to {seq}' if first < seq else ''}: {reason}")
        self.seq = seq


@dataclass
class RunAccount:
    """What the entries of one run add up to.

    Attributes:
        name: what its client called it.
        budget: labels that the run may be charged.
        evaluations_allowed: evaluations that it may make.
        evaluation_budgets: points of its learning curve, declared when it was opened.
        labels: ids of the labels revealed to it.
        replays: entries that charged nothing because the run had the labels already.
        refusals: entries that refused something.
        results: the detail of each evaluation made.
        opened_at: time of the entry that opened it.
        sealed_at: time of the entry that ended it, None if it has not ended.
        opened_with: name of the token that allowed to open it, None if it was opened without one.
        entries: number of its entries.
    """

    name: object
    budget: int
    evaluations_allowed: int
    evaluation_budgets: tuple[int, ...] = ()
    labels: set[int] = field(default_factory=set)
    replays: int = 0
    refusals: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    opened_at: str = ""
    sealed_at: str | None = None
    opened_with: str | None = None
    entries: int = 0

    @property
    def sealed(self) -> bool:
        """Whether the run has ended."""
        return self.sealed_at is not None

    @property
    def queries(self) -> int:
        """Number of labels charged to it."""
        return len(self.labels)

    @property
    def evaluations(self) -> int:
        """Number of evaluations made."""
        return len(self.results)

    @property
    def evaluated_at(self) -> list[int | None]:
        """The point of each evaluation made, None without declared points."""
        return [result.get("evaluated_budget") for result in self.results]


@dataclass
class TokenAccount:
    """What the entries say of a team's token, and what the runs opened with it add up to.

    Attributes:
        budget: labels that its runs may be charged together.
        evaluations_allowed: evaluations that its runs may make together, None for no limit of its own.
        expires: time from which it gives nothing new, None if it does not expire.
        seq: number of the entry that made it, which binds its hash.
        revoked: the operator has ended it.
        runs: number of runs opened with it.
        queries: labels charged to them together.
        evaluations: made by them together.
    """

    budget: int
    evaluations_allowed: int | None
    expires: str | None
    seq: int
    revoked: bool = False
    runs: int = 0
    queries: int = 0
    evaluations: int = 0

    def has_ended(self, time: str) -> bool:
        """Return whether it gives nothing new at a time."""
        return self.revoked or (self.expires is not None and time >= self.expires)


@dataclass
class Account:
    """What the entries of a log add up to.

    Attributes:
        runs: by run id.
        tokens: the teams' tokens, by name.
        log_id: the id of the log.
        label_commitment: root of the answer key that the entries name, base64; None if no entry does.
        pool_size: number of labels in the answer key that the openings name; None if no opening does.
        uncommitted: number of entries before the first that names it.
        test_commitment: commitment to the test labels and the names of the classes that every opening names, base64;
            None in a log that was begun before there was one.
        newest_time: time of the last entry.
        clock_set_back: numbers of the entries at which the service's clock stood behind the entry before.
        entries: number of entries.
        forerunner: what the first entry says of the log before this one, None if there was none.
        rotations: what the entries say that replaced the log's key, in order.
        labels: ids of the labels revealed to anybody.
        queries: labels charged to all runs together.
        evaluations: of all runs together.
        tokenless_queries: labels charged to all runs that were opened without a token.
        tokenless_evaluations: of all runs that were opened without a token.
    """

    log_id: str
    runs: dict[str, RunAccount] = field(default_factory=dict)
    tokens: dict[str, TokenAccount] = field(default_factory=dict)
    label_commitment: str | None = None
    pool_size: int | None = None
    uncommitted: int = 0
    test_commitment: str | None = None
    newest_time: str = ""
    clock_set_back: list[int] = field(default_factory=list)
    entries: int = 0
    forerunner: Forerunner | None = None
    rotations: list[KeyRotation] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    queries: int = 0
    evaluations: int = 0
    tokenless_queries: int = 0
    tokenless_evaluations: int = 0

    def add(self, entry: dict[str, Any]) -> set[int]:
        """Check the next entry by the rules of the log and add it up.

        Args:
            entry: parsed, with the fields of its version.

        Returns:
            The ids of the labels that it reveals to its run for the first time.

        Raises:
            EntryError: it does not follow from those before it.
        """
        try:
            if entry["seq"] != self.entries:
                raise _Invalid(f"it is numbered {entry['seq']}")
            _require(entry["log_id"] == self.log_id, "it is of another log")
            commitment, known = entry.get("label_commitment"), self.label_commitment
            _require(known is None or commitment == known, "it binds another answer key")
            _require(known is not None or commitment is None or _is_root(commitment), "its commitment is no hash")
            if entry["op"] == "run-opened":
                named = entry["detail"].get("test_commitment")
                _require(not self.runs or named == self.test_commitment, "it binds other test labels or class names")
                self.test_commitment = named
                pool_size = entry["detail"].get("pool_size", self.pool_size)
                _require(self.pool_size in (None, pool_size), "it names another size of the pool")
                self.pool_size = pool_size
                if "forerunner" in entry["detail"]:
                    _require(not self.entries, "it names a forerunner, and only the first entry of a log may")
                    self.forerunner = _read_forerunner(entry["detail"]["forerunner"])
            older = entry["ts"] < self.newest_time
            # A log that commits to the test labels promises this too; older logs wrote the clock as it was.
            _require(not older or self.test_commitment is None, "it is older than the entry before it")
            detail = entry.get("detail", {})
            if "clock" in detail:
                # What the clock said is of any entry; the rules below are about the rest.
                _require(isinstance(detail["clock"], str), "what its clock said is no text")
                entry = {**entry, "detail": {name: detail[name] for name in detail if name != "clock"}}
            # Before the run: an entry that breaks a rule of the tokens must not count.
            self._require_token(entry)
            rotations = self.rotations if entry["op"] != "key-rotated" else self._read_rotation(entry)
            new = _add(self.runs, entry)
        except _Invalid as invalid:
            raise EntryError(self.entries, str(invalid)) from invalid
        if older or "clock" in detail:
            self.clock_set_back.append(self.entries)
        self.newest_time = entry["ts"]
        self.rotations = rotations
        self.label_commitment = commitment
        self.uncommitted += commitment is None
        self.entries += 1
        self.labels |= new
        evaluated = entry["outcome"] == "evaluated"
        self.queries += entry["charged"]
        self.evaluations += evaluated
        opened_with = self.runs[entry["run"]].opened_with
        if entry["run"] != GUEST and opened_with is None:
            self.tokenless_queries += entry["charged"]
            self.tokenless_evaluations += evaluated
        add_to_token(self.tokens, entry, opened_with)
        return new

    def _require_token(self, entry: dict[str, Any]) -> None:
        """Check an entry by the rules of the teams' tokens."""
        op, detail = entry["op"], entry.get("detail", {})
        if op in ("token-created", "token-revoked"):
            _require(entry["run"] == GUEST, "it makes or ends a token under a run")
            token = self.tokens.get(detail["token"])
            if op == "token-created":
                _require(token is None and detail["token"] != REGISTRATION, "it makes a token whose name was used")
            else:
                _require(token is not None and not token.revoked, "it revokes a token that does not stand")
            return
        opened = op == "run-opened"
        name = detail.get("opened_with") if opened else getattr(self.runs.get(entry["run"]), "opened_with", None)
        evaluated = entry["outcome"] == "evaluated"
        if name in (None, REGISTRATION) or not (opened or entry["charged"] or evaluated):
            return
        token = self.tokens.get(name)
        if token is None:
            raise _Invalid(f"its run is opened with the token {name}, which was never made")
        # The service decides after the entry before this one, and the time of this one is taken later.
        _require(not token.has_ended(self.newest_time), f"the token {name} had ended")
        _require(token.queries + entry["charged"] <= token.budget, f"it reveals more than the token {name} grants")
        allowed = token.evaluations_allowed
        within = not evaluated or allowed is None or token.evaluations < allowed
        _require(within, f"it evaluates more often than the token {name} grants")

    def _read_rotation(self, entry: dict[str, Any]) -> list[KeyRotation]:
        """Return all replacements of the key, up to this entry's."""
        _require(entry["run"] == GUEST, "it replaces the log's key under a run")
        try:
            rotation = KeyRotation.read(entry.get("detail"))
            history = KeyHistory.of([*self.rotations, rotation])
        except VerificationError as error:
            raise _Invalid(str(error)) from error
        _require(rotation.seq == self.entries, f"it replaces the log's key as entry {rotation.seq}")
        _require(history.name == ORIGIN_PREFIX + self.log_id, "it replaces the key of another log")
        return [*self.rotations, rotation]


def add_to_token(tokens: dict[str, TokenAccount], entry: Mapping[str, Any], opened_with: str | None) -> None:
    """Add an entry that keeps the rules to the teams' tokens.

    Args:
        tokens: by name; changed.
        entry: it needs only `op`, `seq`, `charged`, `outcome` and, where it makes or ends a token, `detail`.
        opened_with: name of the token that its run was opened with, None without one.
    """
    op, detail = entry["op"], entry.get("detail", {})
    if op == "token-created":
        tokens[detail["token"]] = TokenAccount(
            detail["token_budget"], detail["token_evaluations"], detail["expires"], entry["seq"]
        )
    elif op == "token-revoked":
        tokens[detail["token"]].revoked = True
    elif opened_with in tokens:
        token = tokens[opened_with]
        token.runs += op == "run-opened"
        token.queries += entry["charged"]
        token.evaluations += entry["outcome"] == "evaluated"


def find_rotations(entries: Sequence[bytes]) -> list[KeyRotation]:
    """Find what the entries of a log say of its keys, before they are checked by `audit`.

    Raises:
        EntryError: an entry replaces the log's key, and the key before has not signed that.
    """
    rotations: list[KeyRotation] = []
    for seq, data in enumerate(entries):
        if b'"op":"key-rotated"' not in data:
            continue
        try:
            entry = _parse(data)
            if entry["op"] != "key-rotated":
                continue
            said = {name: value for name, value in entry.get("detail", {}).items() if name != "clock"}
            rotations.append(KeyRotation.read(said))
            KeyHistory.of(rotations)
        except (_Invalid, VerificationError) as error:
            raise EntryError(seq, str(error)) from error
    return rotations


def audit(entries: Sequence[bytes], log_id: str) -> Account:
    """Check the entries of a log by its rules and add them up.

    Args:
        entries: their exact bytes, in order.
        log_id: the id of the log.

    Raises:
        EntryError: the first entry that does not follow from those before it.
    """
    account = Account(log_id)
    for seq, data in enumerate(entries):
        try:
            entry = _parse(data)
        except _Invalid as invalid:
            raise EntryError(seq, str(invalid)) from invalid
        account.add(entry)
    return account


class _Invalid(Exception):  # noqa: N818 - becomes an EntryError as soon as the entry's number is known
    """An entry breaks a rule; the text says which, as `it ...`."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Invalid(otherwise)


def _parse(data: bytes) -> dict[str, Any]:
    """Parse an entry and check that it is canonical and has exactly the fields of its version, each of its type."""
    try:
        entry = json.loads(data)
        canonical = canonical_json(entry)
    except (ValueError, RecursionError) as error:
        raise _Invalid("it is not JSON") from error
    _require(isinstance(entry, dict), "it is no JSON object")
    version = entry.get("v")
    known = type(version) is int and version in _TEXT_FIELDS_OF_VERSION
    _require(known, f"it is of version {version}, and this tool knows up to {ENTRY_VERSION}")
    texts = _TEXT_FIELDS_OF_VERSION[version]
    _require(set(entry) - {"detail"} == texts | _COUNT_FIELDS | {"ids"}, "its fields are not those of an entry")
    _require(canonical == data, "it is not written in canonical form")
    _require(all(isinstance(entry[name], str) for name in texts), "a field that must be text is not")
    _require(all(_is_count(entry[name]) for name in _COUNT_FIELDS), "a field that must be a count is not")
    ids = entry["ids"]
    _require(isinstance(ids, list) and all(type(label_id) is int for label_id in ids), "its ids are not integers")
    _require(len(set(ids)) == len(ids), "it names an id twice")
    _require(entry["op"] in _OUTCOMES, f"it is of an unknown kind, {entry['op']}")
    # A refusal's outcome is the code of an error; only queries and evaluations have entries for refusals.
    refused = entry["outcome"] not in DONE and entry["op"] in ("query", "evaluation")
    _require(refused or entry["outcome"] in _OUTCOMES[entry["op"]], "its kind and outcome do not match")
    _check_detail(entry, refused=refused)
    return dict(entry)


def _check_detail(entry: dict[str, Any], *, refused: bool) -> None:
    detail, needed = entry.get("detail", {}), _DETAIL_COUNT.get(entry["outcome"])
    _require(isinstance(detail, dict), "its detail is no object")
    _require(needed is None or _is_count(detail.get(needed)), f"its detail lacks {needed}")
    named = detail.get("test_commitment")
    _require(named is None or isinstance(named, str), "its commitment to the test labels is no text")
    if entry["op"] in ("token-created", "token-revoked"):
        _require(isinstance(detail.get("token"), str), "it names no token")
    if entry["op"] == "token-created":
        _require("expires" in detail and isinstance(detail["expires"], str | None), "its token's end is no time")
        allowed = detail.get("token_evaluations", -1)
        _require(allowed is None or _is_count(allowed), "its token's evaluations are not a count")
    named = detail.get("opened_with")
    _require(named is None or isinstance(named, str), "the name of the token that it was opened with is no text")
    points = detail.get("evaluation_budgets", [])
    _require(isinstance(points, list) and all(map(_is_count, points)), "its evaluation budgets are not counts")
    _require(detail.get("pool_size", 1) != 0 and _is_count(detail.get("pool_size", 1)), "its pool size is not a count")
    if entry["outcome"] == "evaluated":
        correct, total = detail.get("correct"), detail.get("total")
        _require(_is_count(correct) and _is_count(total) and correct <= total != 0, "its evaluation has no result")
    if refused and entry["op"] == "query":
        # A refusal names the count and the hash of the ids asked for; before there was the hash, it named the ids.
        asked, digest = detail.get("asked", 0), detail.get("asked_sha256")
        hashed = _is_count(asked) and asked > 0 and isinstance(digest, str) and bool(_SHA256.fullmatch(digest))
        named = bool(entry["ids"]) and not detail
        _require(named or (hashed and not entry["ids"]), "it does not say what it refused")


def _read_forerunner(value: object) -> Forerunner:
    try:
        return Forerunner.read(value)
    except VerificationError as error:
        raise _Invalid(str(error)) from error


def _is_root(text: str) -> bool:
    try:
        return len(decode_base64(text, "the commitment")) == HASH_BYTES
    except VerificationError:
        return False


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _add(runs: dict[str, RunAccount], entry: dict[str, Any]) -> set[int]:
    """Check an entry by the rules of the log and add it to its run; return the ids of the labels it newly reveals."""
    name, op, outcome, detail = entry["run"], entry["op"], entry["outcome"], entry.get("detail", {})
    if op == "run-opened":
        _require(name not in runs, f"run {name} is opened a second time")
        runs[name] = open_account(entry)
    if name not in runs:
        raise _Invalid(f"run {name} was never opened")
    run = runs[name]
    if op == "budget-changed":
        _require(detail["previous_budget"] == run.budget, "the budget it changes is not the run's")
        run.budget = entry["budget"]
    if entry["budget"] != run.budget:
        raise _Invalid(f"it says a budget of {entry['budget']}, and the run's is {run.budget}")
    new = _add_labels(run, entry)
    if outcome == "evaluated":
        _add_evaluation(run, detail)
    elif (op, outcome) == ("evaluation", "replayed"):
        # Entries of former versions repeat an evaluation without its result.
        _require(not detail or detail in run.results, "it repeats an evaluation that the run never made")
    _require(op != "run-sealed" or not run.sealed, "the run was sealed before")
    if op == "run-sealed":
        run.sealed_at = entry["ts"]
    run.replays += outcome == "replayed"
    run.refusals += outcome not in DONE
    run.entries += 1
    return new


def open_account(opening: dict[str, Any]) -> RunAccount:
    """Return the account of a run as its first entry opens it."""
    detail = opening.get("detail", {})
    return RunAccount(
        name=detail.get("name"),
        budget=opening["budget"],
        evaluations_allowed=detail["evaluations_allowed"],
        evaluation_budgets=tuple(detail.get("evaluation_budgets", ())),
        opened_at=opening["ts"],
        opened_with=detail.get("opened_with"),
    )


def _add_labels(run: RunAccount, entry: dict[str, Any]) -> set[int]:
    answered = entry["op"] == "query" and entry["outcome"] in ("revealed", "replayed")
    new = set(entry["ids"]) - run.labels if answered else set()
    charged, spent = entry["charged"], entry["spent"]
    # No text is made for an entry that holds: this is done for every entry of the log.
    if charged != len(new):
        raise _Invalid(f"it charges {charged}, and {len(new)} of its ids are new to the run")
    _require(entry["outcome"] != "revealed" or bool(new), "it reveals nothing new")
    _require(entry["outcome"] == "revealed" or not new, "it repeats an answer, and charges for it")
    _require(not new or not (run.sealed or run.evaluations), "it reveals new labels to an evaluated or sealed run")
    run.labels |= new
    if spent != run.queries:
        raise _Invalid(f"it says {spent} spent, and the entries make {run.queries}")
    _require(not new or run.queries <= run.budget, "it reveals more than the run's budget")
    return new


def _add_evaluation(run: RunAccount, detail: dict[str, Any]) -> None:
    point = detail.get("evaluated_budget")
    if run.evaluation_budgets:
        _require(point in run.evaluation_budgets, f"it evaluates {point} labels, a point that the run never declared")
        _require(point not in run.evaluated_at, f"it evaluates {point} labels a second time")
    _require(not run.sealed, "it evaluates a run that was sealed")
    run.results.append(detail)
    _require(run.evaluations <= run.evaluations_allowed, "the run had no evaluation left")
    _require(detail["evaluation"] == run.evaluations, "its evaluation has the wrong number")
