"""Forge evidence in every way we know and count what `verify` finds: `python -m tests.campaigns.tamper_matrix`.

Each attack changes the first, a middle or the last entry. The attacker holds the signing key or does not, and the
verifier has the client's receipts or does not. Three forgeries cannot be found without receipts, and the table says so:

- a history that follows the rules, signed anew by someone who holds the key;
- a true older state of the log under its own true head;
- a false label, because labels are in no bundle.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.key_history import KeyRotation
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
    """A log of twelve entries: its bundle, the key that signed it, and the answers that a client kept."""

    evidence: Evidence
    signing_key: SigningKey
    kept: tuple[KeptAnswer, ...]

    @property
    def key(self) -> Verifier:
        """The pinned key."""
        return self.signing_key.verifier

    def forge(self, entries: list[str], *, signed: bool) -> Evidence:
        """Return a bundle of other entries, signed anew with the log's key or under the old heads."""
        if not signed:
            return self.evidence.model_copy(update={"entries": entries})
        root = MerkleTree(leaf_hash(entry.encode()) for entry in entries).root()
        head = TreeHead.sign(self.signing_key, len(entries), root)
        return self.evidence.model_copy(update={"entries": entries, "checkpoint": head.note, "heads": []})


def honest_case(folder: Path) -> Case:
    """Let a real service log an opening, queries, replays, refusals, an evaluation and a seal.

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
        answers.append(client.post(f"/v1/runs/{opened['run_id']}:seal", headers=token).json())
        evidence = Evidence.model_validate_json(client.get("/v1/log/evidence").content)
    kept = tuple(KeptAnswer.model_validate(answer) for answer in answers)
    case = Case(evidence, SigningKey.load(folder / "service" / "labels.key"), kept)
    assert len(case.evidence.entries) == LAST + 1, "the places of the attacks are those of this log"
    return case


def edited(entries: list[str], at: int, **changes: Any) -> list[str]:
    """Change fields of an entry."""
    entry = canonical_json(json.loads(entries[at]) | changes).decode()
    return [*entries[:at], entry, *entries[at + 1 :]]


def renumbered(entries: list[str]) -> list[str]:
    """Number entries by their places, as a careful forger would."""
    documents = [json.loads(entry) for entry in entries]
    times = accumulate((document["ts"] for document in documents), max)
    return [
        canonical_json(document | {"seq": seq, "ts": time}).decode()
        for seq, (document, time) in enumerate(zip(documents, times, strict=True))
    ]


def swapped(entries: list[str], first: int) -> list[str]:
    """Exchange an entry with the next one and renumber them."""
    pair = [entries[first + 1], entries[first]]
    return renumbered([*entries[:first], *pair, *entries[first + 2 :]])


@dataclass(frozen=True)
class Trial:
    """One row of the matrix, before and after it is judged.

    Attributes:
        attack: what the attacker did.
        place: to which entry.
        changed: number of the first entry that is not as it was; None if the attack changes no entry.
        holds_key: the attacker has the signing key and signs the forged log.
        with_receipts: the verifier has the answers that the client kept.
        evidence: the forged bundle.
        kept: the answers, true or forged.
        provable: the forgery can be found in this setting.
        sentence: why `verify` refused the bundle; None if it verified it.
    """

    attack: str
    place: str
    changed: int | None
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
        """Whether the sentence names the first changed entry, alone or in a range."""
        match = re.match(r"entry (\d+)(?:, or one of those up to (\d+))?: ", self.sentence or "")
        if self.changed is None:
            return match is None
        if match is None:
            return False
        first, last = int(match[1]), int(match[2] or match[1])
        # Signed anew and without receipts, a changed entry shows only when a later entry does not follow from it.
        return self.changed <= first if self.holds_key and not self.with_receipts else first <= self.changed <= last


Change = Callable[[list[str], int], list[str]]

# The attacks follow the rules of the log where they can, so that only hashes and signatures can reveal them.
ATTACKS: dict[str, Change] = {
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
# The entries at which each attack follows the rules of the log.
FOLLOWS_RULES = {
    "edit": (0, 5, LAST),
    "fork": (0, 5, LAST),
    "truncate": (0, 5, LAST),
    "delete": (5, LAST),
    "insert": (LAST,),
    "reorder": (0,),
}


def trials(case: Case) -> Iterator[Trial]:
    """Yield every trial, not yet judged."""
    honest = list(case.evidence.entries)
    for attack, change in ATTACKS.items():
        for place, at in PLACES.items():
            entries = change(honest, at)
            changed = next((n for n, (a, b) in enumerate(zip(honest, entries, strict=False)) if a != b), len(entries))
            for holds_key in (False, True):
                forged = case.forge(entries, signed=holds_key)
                for receipts in (False, True):
                    provable = receipts or not holds_key or at not in FOLLOWS_RULES.get(attack, ())
                    yield Trial(attack, place, changed, holds_key, receipts, forged, case.kept, provable)
    yield from _other_key(case)
    yield from _rotation(case)
    yield from _old_backup(case)
    yield from _changed_labels(case)


def rotated(case: Case, old: SigningKey, new: SigningKey) -> Evidence:
    """Return a bundle in which one more entry, signed by a key, replaces the log's key by a new one, which signs."""
    entries, seq = list(case.evidence.entries), len(case.evidence.entries)
    guest = [entry for entry in map(json.loads, entries) if entry["run"] == "guest"][-1]
    said = KeyRotation.sign(old, new.verifier, seq).model_dump() | {"old_key": case.key.vkey}
    fields = {"seq": seq, "op": "key-rotated", "outcome": "rotated", "ids": [], "charged": 0, "detail": said}
    time = json.loads(entries[-1])["ts"]
    entries.append(canonical_json(guest | fields | {"ts": time}).decode())
    forged = replace(case, signing_key=new).forge(entries, signed=True)
    return forged.model_copy(update={"key": new.verifier.vkey, "heads": case.evidence.heads})


def judge(trial: Trial, key: Verifier) -> Trial:
    """Return a trial with the verdict of `verify`."""
    try:
        verify(trial.evidence, key, trial.kept if trial.with_receipts else ())
    except VerificationError as error:
        return replace(trial, sentence=str(error))
    return trial


def _other_key(case: Case) -> Iterator[Trial]:
    other = SigningKey.generate(case.key.name)
    head = TreeHead.open(case.evidence.checkpoint, case.key)
    note = TreeHead.sign(other, head.size, head.root).note
    for shown, vkey in (("named", other.verifier.vkey), ("hidden", case.evidence.key)):
        forged = case.evidence.model_copy(update={"key": vkey, "checkpoint": note, "heads": []})
        for receipts in (False, True):
            yield Trial("key swap", f"the other key {shown}", None, False, receipts, forged, case.kept)


def _rotation(case: Case) -> Iterator[Trial]:
    """Replace the log's key by an entry that another key has signed."""
    other, new = SigningKey.generate(case.key.name), SigningKey.generate(case.key.name)
    for receipts in (False, True):
        yield Trial("key rotation", "another signs it", LAST + 1, False, receipts, rotated(case, other, new), case.kept)


def _old_backup(case: Case) -> Iterator[Trial]:
    """Put back a true older state of the log, with the head that was signed for it."""
    heads = {answer.receipt.index + 1: answer.receipt.checkpoint for answer in case.kept}
    for place, size in zip(PLACES, (min(heads), sorted(heads)[2], LAST), strict=True):
        entries = list(case.evidence.entries[:size])
        note = heads.get(size) or case.forge(entries, signed=True).checkpoint
        earlier = [head for head in case.evidence.heads if head.size < size]
        forged = case.evidence.model_copy(update={"entries": entries, "checkpoint": note, "heads": earlier})
        for receipts in (False, True):
            yield Trial("old backup", place, size, False, receipts, forged, case.kept, provable=receipts)


def _changed_labels(case: Case) -> Iterator[Trial]:
    """Answer a label that is not the one committed to, and change nothing else."""
    with_labels = [n for n, answer in enumerate(case.kept) if answer.opened_labels]
    for place, at in zip(PLACES, (with_labels[0], with_labels[1], with_labels[-1]), strict=True):
        answer = case.kept[at]
        first, *others = answer.opened_labels
        label = first.model_copy(update={"label": (first.label + 1) % 3})
        false = answer.model_copy(update={"labels": [label, *others]})
        kept = (*case.kept[:at], false, *case.kept[at + 1 :])
        for receipts in (False, True):
            changed = answer.receipt.index
            yield Trial("label changed", place, changed, True, receipts, case.evidence, kept, provable=receipts)


def table(judged: list[Trial]) -> str:
    """Return the matrix as Markdown."""
    lines = ["| attack | at | signing key | receipts | `verify` says |", "|---|---|---|---|---|"]
    for trial in judged:
        verdict = f"not verified: {trial.sentence}" if trial.found else "verified: only receipts can show this"
        key, receipts = "attacker's too" if trial.holds_key else "not his", "given" if trial.with_receipts else "none"
        lines.append(f"| {trial.attack} | {trial.place} | {key} | {receipts} | {verdict} |")
    provable = [trial for trial in judged if trial.provable]
    found, named = sum(trial.found for trial in provable), sum(trial.found and trial.named for trial in provable)
    lines += ["", f"{len(judged)} trials, {len(provable)} that can be found; {found} found, {named} with their entry."]
    return "\n".join(lines)


def main() -> None:
    """Print the matrix; exit with 1 if a forgery that can be found is not found, or its entry is not named."""
    with tempfile.TemporaryDirectory() as folder:
        case = honest_case(Path(folder))
    judged = [judge(trial, case.key) for trial in trials(case)]
    print(table(judged))
    raise SystemExit(any(trial.provable and not (trial.found and trial.named) for trial in judged))


if __name__ == "__main__":
    main()
