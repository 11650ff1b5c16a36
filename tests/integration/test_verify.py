"""Offline verification: an honest bundle passes, and every way to tamper with one is found, with its entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from label_service.checkpoint import Checkpoint, SigningKey, Verifier
from label_service.cli import app
from label_service.entries import canonical_json
from label_service.merkle import VerificationError, leaf_hash, root
from label_service.schemas import Evidence, KeptAnswer
from label_service.settings import Settings
from label_service.verify import verify
from tests.integration.conftest import run_service

LAST = 11


@dataclass(frozen=True)
class Case:
    """An honest log of twelve entries: its bundle, the key that signed it, and the receipts of one run."""

    evidence: Evidence
    signing_key: SigningKey
    kept: tuple[KeptAnswer, ...]

    @property
    def key(self) -> Verifier:
        """The pinned key."""
        return self.signing_key.verifier

    def of(self, entries: list[str], *, signed: bool) -> Evidence:
        """Make a bundle of other entries; signed anew by someone who holds the key, or under the old head."""
        head = Checkpoint(self.key.name, len(entries), root([leaf_hash(entry.encode()) for entry in entries]))
        note = head.sign(self.signing_key) if signed else self.evidence.checkpoint
        return self.evidence.model_copy(update={"entries": entries, "checkpoint": note})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Case:
    """Queries, a replay, refusals, an evaluation and a seal, over real HTTP."""
    folder = tmp_path_factory.mktemp("honest") / "service"
    url = f"sqlite:///{folder / 'labels.sqlite3'}"
    with run_service(Settings(data=tiny_data, other_data=True, database_url=url, port=0)) as running:
        opened = running.client.post("/v1/runs", json={"name": "r", "budget": 6}).json()
        token = {"Authorization": f"Bearer {opened['token']}"}
        answers = [opened]
        running.client.get("/label/9")
        for ids in ([1, 2], [3], [2, 3], [4, 5, 6]):
            answers.append(running.client.post("/v1/labels:query", json={"ids": ids}, headers=token).json())
        running.client.get("/label/7", headers=token)
        running.client.get("/label/9999", headers=token)
        running.client.get("/label/9")
        call = f"/v1/runs/{opened['run_id']}/evaluations"
        answers.append(running.client.post(call, json={"predictions": [0] * 50}, headers=token).json())
        sealed = running.client.post(f"/v1/runs/{opened['run_id']}:seal", headers=token).json()
    evidence = Evidence.model_validate(sealed["evidence"])
    kept = tuple(KeptAnswer.model_validate(answer) for answer in answers)
    return Case(evidence, SigningKey.load(folder / "labels.key"), kept)


def test_an_honest_bundle_is_verified_and_counted(case: Case) -> None:
    """Counts by run and over all, with and without receipts."""
    assert len(case.evidence.entries) == LAST + 1
    for kept in ((), case.kept):
        verdict = verify(case.evidence, case.key, kept)
        (run,) = (account for name, account in verdict.runs.items() if name != "guest")
        assert (run.queries, run.replays, run.refusals, run.evaluations, run.sealed) == (6, 1, 2, 1, True)
        assert run.labels == {1, 2, 3, 4, 5, 6} and verdict.runs["guest"].labels == {9}
        assert (len(verdict.labels), verdict.receipts, verdict.openings) == (7, len(kept), 8 if kept else 0)


Attack = Callable[[list[str]], list[str]]


def edited(at: int, **changes: Any) -> Attack:
    """Change fields of one entry."""

    def attack(entries: list[str]) -> list[str]:
        entry = canonical_json(json.loads(entries[at]) | changes).decode()
        return [*entries[:at], entry, *entries[at + 1 :]]

    return attack


def renumbered(entries: list[str]) -> list[str]:
    """Give entries the numbers of their places, as a careful forger would."""
    return [canonical_json(json.loads(entry) | {"seq": seq}).decode() for seq, entry in enumerate(entries)]


def swapped(first: int, second: int) -> Attack:
    """Exchange two entries and renumber."""

    def attack(entries: list[str]) -> list[str]:
        entries = entries.copy()
        entries[first], entries[second] = entries[second], entries[first]
        return renumbered(entries)

    return attack


ATTACKS: dict[str, tuple[Attack, int]] = {
    "edit the first": (edited(0, budget=50), 0),
    "edit a middle one": (edited(4, ids=[8]), 4),
    "edit the last": (edited(LAST, request_id="x"), LAST),
    "delete the first": (lambda e: renumbered(e[1:]), 0),
    "delete a middle one": (lambda e: renumbered(e[:4] + e[5:]), 4),
    "cut the last": (lambda e: e[:-1], LAST),
    "cut the end": (lambda e: e[:5], 5),
    "insert at the start": (lambda e: renumbered([e[9], *e]), 0),
    "insert in the middle": (lambda e: renumbered([*e[:5], e[9], *e[5:]]), 5),
    "insert at the end": (lambda e: renumbered([*e, e[9]]), LAST + 1),
    "reorder the first two": (swapped(0, 1), 0),
    "reorder in the middle": (swapped(3, 4), 3),
    "reorder the last two": (swapped(LAST - 1, LAST), LAST - 1),
    "count one less": (edited(4, charged=0, outcome="replayed"), 4),
    "hide a refusal": (edited(7, outcome="replayed", ids=[1], charged=0), 7),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_someone_without_the_key_is_always_found(case: Case, name: str) -> None:
    """The bundle alone is enough: the old head does not fit the new entries."""
    attack, _ = ATTACKS[name]
    with pytest.raises(VerificationError):
        verify(case.of(attack(list(case.evidence.entries)), signed=False), case.key)


@pytest.mark.parametrize("name", ATTACKS)
def test_someone_with_the_key_is_found_by_the_receipts(case: Case, name: str) -> None:
    """The sentence names the first entry that a receipt contradicts, at or after the one that was touched."""
    attack, touched = ATTACKS[name]
    forged = case.of(attack(list(case.evidence.entries)), signed=True)
    shown = max(answer.receipt.index for answer in case.kept)
    if touched > shown:
        # The limit, held fast: after the last receipt the key's holder can write what follows the rules.
        verify(forged, case.key, case.kept)
        return
    with pytest.raises(VerificationError, match=r"^entry \d+"):
        verify(forged, case.key, case.kept)


def test_a_swapped_key_is_found(case: Case) -> None:
    """A bundle that another key signed all over is not the pinned log."""
    other = SigningKey.generate(case.key.name)
    head = Checkpoint(case.key.name, LAST + 1, root([leaf_hash(entry.encode()) for entry in case.evidence.entries]))
    for key in (other.verifier.vkey, case.evidence.key):
        forged = case.evidence.model_copy(update={"key": key, "checkpoint": head.sign(other)})
        with pytest.raises(VerificationError, match="key"):
            verify(forged, case.key)


def test_a_fork_is_found_by_the_receipts(case: Case) -> None:
    """Another history from the middle on, correctly signed, is refused by whoever was shown this one."""
    fork = [*case.evidence.entries[:4], *edited(4, ids=[8])(list(case.evidence.entries))[4:5]]
    forged = case.of(fork, signed=True)
    verify(forged, case.key)
    with pytest.raises(VerificationError, match=r"^entry 4: it is not the one that the receipt"):
        verify(forged, case.key, case.kept)


def test_an_entry_nobody_kept_a_receipt_of_is_found_by_later_heads(case: Case) -> None:
    """The guest's query before the run's first: the run's receipts cover it."""
    guest = next(seq for seq, entry in enumerate(case.evidence.entries) if '"ids":[9]' in entry)
    forged = case.of(edited(guest, request_id="another")(list(case.evidence.entries)), signed=True)
    with pytest.raises(VerificationError, match=rf"^entry {guest}, or one of those up to"):
        verify(forged, case.key, case.kept)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"charged": 1}, "charges 1, and 2 of its ids are new"),
        ({"spent": 1}, "says 1 spent, and the entries make 2"),
        ({"budget": 7}, "says a budget of 7, and the run's is 6"),
        ({"run": "run-unknown"}, "run run-unknown was never opened"),
        ({"log_id": "log-0"}, "of another log"),
        ({"seq": 9}, "numbered 9"),
        ({"v": 3}, "of version 3"),
        ({"ids": [1, 1]}, "names an id twice"),
        ({"ids": ["1"]}, "ids are not integers"),
        ({"charged": True}, "must be a count is not"),
        ({"ts": 5}, "must be text is not"),
        ({"label_commitment": "AAAA"}, "binds another answer key"),
        ({"label_commitment": None}, "must be text is not"),
        ({"op": "gift"}, "unknown kind, gift"),
        ({"outcome": "evaluated"}, "do not match|detail lacks"),
        ({"more": 1}, "not the fields"),
    ],
    ids=str,
)
def test_an_entry_that_breaks_the_rules_is_named(case: Case, changes: dict[str, Any], sentence: str) -> None:
    """Correctly signed by the key's holder, and still refused without a receipt."""
    at = next(seq for seq, entry in enumerate(case.evidence.entries) if '"ids":[1,2]' in entry)
    forged = case.of(edited(at, **changes)(list(case.evidence.entries)), signed=True)
    with pytest.raises(VerificationError, match=rf"^entry {at}: .*({sentence})"):
        verify(forged, case.key)


def test_new_labels_after_the_end_are_named(case: Case) -> None:
    """A reveal appended after evaluation and seal breaks the rules though it is signed."""
    source = json.loads(next(entry for entry in case.evidence.entries if '"ids":[4,5,6]' in entry))
    late = canonical_json(source | {"seq": LAST + 1, "ids": [8], "charged": 1, "spent": 7}).decode()
    with pytest.raises(VerificationError, match=rf"^entry {LAST + 1}: it reveals new labels to a run that had ended"):
        verify(case.of([*case.evidence.entries, late], signed=True), case.key)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"v": 1}', "\N{LATIN SMALL LETTER E WITH ACUTE}", "[" * 5000])
def test_an_entry_that_is_none_is_named(case: Case, text: str) -> None:
    """Whatever stands there, the answer is one sentence."""
    entries = [*case.evidence.entries[:3], text, *case.evidence.entries[4:]]
    with pytest.raises(VerificationError, match=r"^entry 3: "):
        verify(case.of(entries, signed=True), case.key)


def run_command(case: Case, folder: Path, *more: str) -> tuple[int, str]:
    """Run `verify` on the case's bundle as a file."""
    bundle = folder / "evidence.json"
    if not bundle.exists():
        bundle.write_text(case.evidence.model_dump_json())
    result = CliRunner().invoke(app, ["verify", str(bundle), "--key", case.key.vkey, *more])
    return result.exit_code, result.output


def test_the_command_prints_counts_and_verified(case: Case, tmp_path: Path) -> None:
    """Exit code 0, with and without receipts; answers without a receipt are passed over."""
    code, printed = run_command(case, tmp_path)
    assert code == 0 and "12 entries, 7 distinct labels to anybody" in printed
    assert ": 6 queries, 6 distinct labels, 1 replays, 2 refusals, 1 evaluations" in printed
    assert printed.endswith("verified, without receipts\n")
    kept = tmp_path / "receipts.jsonl"
    lines = [{"answer": one.model_dump()} for one in case.kept] + [{"answer": {"evidence": 1}}]
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 0 and printed.endswith(f"verified with {len(case.kept)} receipts and 8 labels as committed to\n")


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), ("", "is not an evidence bundle"), ("{}", "is not an evidence")]
)
def test_a_file_that_is_no_bundle_is_refused_in_a_sentence(
    case: Case, tmp_path: Path, content: str | None, sentence: str
) -> None:
    """Exit code 1."""
    bundle = tmp_path / "evidence.json"
    if content is None:
        bundle.mkdir()
    else:
        bundle.write_text(content)
    code, printed = run_command(case, tmp_path)
    assert code == 1 and printed.startswith("not verified: ") and sentence in printed


@pytest.mark.parametrize("content", ["{", "[]", '{"answer": 1}', '{"answer": {"receipt": {"index": 1}}}'])
def test_damaged_receipts_are_refused_in_a_sentence(case: Case, tmp_path: Path, content: str) -> None:
    """They are not passed over: a receipt that cannot be read proves nothing."""
    kept = tmp_path / "receipts.jsonl"
    kept.write_text(content + "\n")
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 1 and f"line 1 of {kept} is not an answer of the service" in printed
