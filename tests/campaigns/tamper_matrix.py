"""Tamper with a log's evidence and see what `verify` says: `python -m tests.campaigns.tamper_matrix`.

Each attack is tried on the first, a middle and the last entry, by someone without the signing key and by someone who
holds it, and judged with and without the receipts that the client kept. Three cases cannot be found by anybody without
receipts, and the table says so: a history that follows the rules and is signed anew by the key's holder, a true older
state under its own true head, and a false label, which no bundle holds.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence, KeptAnswer
from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import TreeHead
from label_service.log.verify import verify
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.services import run_service

LAST = 11
PLACES = {"first": 0, "middle": 5, "last": LAST}


@dataclass(frozen=True)
class Case:
    """An honest log of twelve entries: its bundle, the key that signed it, and the answers that one client kept."""

    evidence: Evidence
    signing_key: SigningKey
    kept: tuple[KeptAnswer, ...]

    @property
    def key(self) -> Verifier:
        """The pinned key."""
        return self.signing_key.verifier

    def of(self, entries: list[str], *, signed: bool) -> Evidence:
        """Make a bundle of other entries; signed anew by someone who holds the key, or under the old heads."""
        if not signed:
            return self.evidence.model_copy(update={"entries": entries})
        root = MerkleTree(leaf_hash(entry.encode()) for entry in entries).root()
        head = TreeHead.sign(self.signing_key, len(entries), root)
        return self.evidence.model_copy(update={"entries": entries, "checkpoint": head.note, "heads": []})


def honest_case(folder: Path) -> Case:
    """Play opening, queries, a replay, refusals, an evaluation and a seal against a real service.

    Args:
        folder: empty, for data and database.
    """
    data = make_idx_dataset(folder / "data")
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    settings = Settings(data=data, other_data=True, database_url=url, port=0)
    with run_service(settings) as running:
        client = running.client
        opened = client.post("/v1/runs", json={"name": "r", "budget": 6}).json()
        token = {"Authorization": f"Bearer {opened['token']}"}
        answers = [opened]
        client.get("/label/9")
        for ids in ([1, 2], [3], [2, 3], [4, 5, 6]):
            answers.append(client.post("/v1/labels:query", json={"ids": ids}, headers=token).json())
        client.get("/label/7", headers=token)
        client.get("/label/9999", headers=token)
        client.get("/label/9")
        call = f"/v1/runs/{opened['run_id']}/evaluations"
        answers.append(client.post(call, json={"predictions": [0] * 50}, headers=token).json())
        sealed = client.post(f"/v1/runs/{opened['run_id']}:seal", headers=token).json()
        answers.append(sealed)
    kept = tuple(KeptAnswer.model_validate(answer) for answer in answers)
    case = Case(Evidence.model_validate(sealed["evidence"]), SigningKey.load(folder / "service" / "labels.key"), kept)
    assert len(case.evidence.entries) == LAST + 1, "the places of the attacks are those of this log"
    return case


def edited(entries: list[str], at: int, **changes: Any) -> list[str]:
    """Change fields of one entry."""
    entry = canonical_json(json.loads(entries[at]) | changes).decode()
    return [*entries[:at], entry, *entries[at + 1 :]]


def renumbered(entries: list[str]) -> list[str]:
    """Give entries the numbers of their places, as a careful forger would."""
    return [canonical_json(json.loads(entry) | {"seq": seq}).decode() for seq, entry in enumerate(entries)]


def swapped(entries: list[str], first: int) -> list[str]:
    """Exchange an entry with the next and renumber."""
    pair = [entries[first + 1], entries[first]]
    return renumbered([*entries[:first], *pair, *entries[first + 2 :]])


@dataclass(frozen=True)
class Trial:
    """One cell of the matrix, before and after it was judged.

    Attributes:
        attack: what was done.
        place: to which entry.
        touched: number of the first entry that is not as it was; None where none is meant.
        holds_key: whether the attacker signs anew.
        with_receipts: whether the verifier has the answers the client kept.
        evidence: the forged bundle.
        kept: the answers, true or forged.
        provable: whether it can be found at all in this setting.
        sentence: what `verify` said; None: verified.
    """

    attack: str
    place: str
    touched: int | None
    holds_key: bool
    with_receipts: bool
    evidence: Evidence
    kept: tuple[KeptAnswer, ...]
    provable: bool = True
    sentence: str | None = None

    @property
    def found(self) -> bool:
        """Whether the forgery was refused."""
        return self.sentence is not None

    @property
    def named(self) -> bool:
        """Whether the sentence names the first entry that does not hold, alone or among those of one head."""
        match = re.match(r"entry (\d+)(?:, or one of those up to (\d+))?: ", self.sentence or "")
        if self.touched is None:
            return match is None
        if match is None:
            return False
        first, last = int(match[1]), int(match[2] or match[1])
        # Signed anew and without receipts, a changed entry holds until a later one does not follow from it.
        return self.touched <= first if self.holds_key and not self.with_receipts else first <= self.touched <= last


Forge = Callable[[list[str], int], list[str]]

# Edits keep to the rules where they can, as a careful forger would: then only hashes and signatures are in the way.
ATTACKS: dict[str, Forge] = {
    "edit": lambda entries, at: edited(entries, at, request_id="another"),
    "delete": lambda entries, at: renumbered(entries[:at] + entries[at + 1 :]),
    "insert": lambda entries, at: renumbered([*entries[:at], entries[8], *entries[at:]]),
    "reorder": lambda entries, at: swapped(entries, min(at, LAST - 1)),
    "truncate": lambda entries, at: entries[:at],
    "fork": lambda entries, at: [
        *entries[:at],
        *(edited(entries, n, request_id="elsewhere")[n] for n in range(at, LAST + 1)),
    ],
    "wrong count": lambda entries, at: edited(entries, at, spent=json.loads(entries[at])["spent"] + 1),
}
# Deleting, inserting or counting wrongly breaks the rules of the log; these do not, at these places.
FOLLOWS_RULES = {
    "edit": (0, 5, LAST),
    "fork": (0, 5, LAST),
    "truncate": (0, 5, LAST),
    "delete": (5, LAST),
    "insert": (LAST,),
    "reorder": (0, LAST),
}


def trials(case: Case) -> Iterator[Trial]:
    """Yield every trial, not judged yet."""
    honest = list(case.evidence.entries)
    for attack, forge in ATTACKS.items():
        for place, at in PLACES.items():
            entries = forge(honest, at)
            touched = next((n for n, (a, b) in enumerate(zip(honest, entries, strict=False)) if a != b), len(entries))
            for holds_key in (False, True):
                forged = case.of(entries, signed=holds_key)
                for receipts in (False, True):
                    provable = receipts or not holds_key or at not in FOLLOWS_RULES.get(attack, ())
                    yield Trial(attack, place, touched, holds_key, receipts, forged, case.kept, provable)
    yield from _other_key(case)
    yield from _old_backup(case)
    yield from _changed_labels(case)


def judge(trial: Trial, key: Verifier) -> Trial:
    """Let `verify` decide a trial."""
    try:
        verify(trial.evidence, key, trial.kept if trial.with_receipts else ())
    except VerificationError as error:
        return replace(trial, sentence=str(error))
    return trial


def _other_key(case: Case) -> Iterator[Trial]:
    other = SigningKey.generate(case.key.name)
    head = TreeHead.open(case.evidence.checkpoint, case.key)
    note = TreeHead.sign(other, head.size, head.root).note
    for named, vkey in (("named", other.verifier.vkey), ("hidden", case.evidence.key)):
        forged = case.evidence.model_copy(update={"key": vkey, "checkpoint": note, "heads": []})
        for receipts in (False, True):
            yield Trial("key swap", f"the other key {named}", None, False, receipts, forged, case.kept)


def _old_backup(case: Case) -> Iterator[Trial]:
    """A true older state under the head that was truly signed for it."""
    heads = {answer.receipt.index + 1: answer.receipt.checkpoint for answer in case.kept}
    for place, size in zip(PLACES, (min(heads), sorted(heads)[2], LAST), strict=True):
        entries = list(case.evidence.entries[:size])
        note = heads.get(size) or case.of(entries, signed=True).checkpoint
        forged = case.evidence.model_copy(update={"entries": entries, "checkpoint": note})
        for receipts in (False, True):
            yield Trial("old backup", place, size, False, receipts, forged, case.kept, provable=receipts)


def _changed_labels(case: Case) -> Iterator[Trial]:
    """A label answered that is not the one committed to, with everything else as it was."""
    told = [n for n, answer in enumerate(case.kept) if answer.opened_labels]
    for place, at in zip(PLACES, (told[0], told[1], told[-1]), strict=True):
        answer = case.kept[at]
        label = answer.labels[0].model_copy(update={"label": (answer.labels[0].label + 1) % 3})
        lie = answer.model_copy(update={"labels": [label, *answer.labels[1:]]})
        kept = (*case.kept[:at], lie, *case.kept[at + 1 :])
        for receipts in (False, True):
            touched = answer.receipt.index
            yield Trial("label changed", place, touched, True, receipts, case.evidence, kept, provable=receipts)


def table(judged: list[Trial]) -> str:
    """Write the matrix as Markdown."""
    lines = ["| attack | at | signing key | receipts | `verify` says |", "|---|---|---|---|---|"]
    for one in judged:
        said = f"not verified: {one.sentence}" if one.found else "verified: it takes receipts to find this"
        key, receipts = "attacker's too" if one.holds_key else "not his", "given" if one.with_receipts else "none"
        lines.append(f"| {one.attack} | {one.place} | {key} | {receipts} | {said} |")
    provable = [one for one in judged if one.provable]
    found, named = sum(one.found for one in provable), sum(one.found and one.named for one in provable)
    lines += ["", f"{len(judged)} trials, {len(provable)} that can be found; {found} found, {named} with their entry."]
    return "\n".join(lines)


def main() -> None:
    """Print the matrix; exit code 1 if a forgery that can be found was not, or was not named."""
    with tempfile.TemporaryDirectory() as folder:
        case = honest_case(Path(folder))
    judged = [judge(trial, case.key) for trial in trials(case)]
    print(table(judged))
    raise SystemExit(any(one.provable and not (one.found and one.named) for one in judged))


if __name__ == "__main__":
    main()
