"""Check the evidence that sealing a run answers: the whole log under one head, and what it says of this run.

It closes what single receipts leave open: the entry of a repeated evaluation does not tell the result again, and here
the entry that does is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from trainer.oracle.answers import Answer, Evaluation
from trainer.oracle.log_proofs import Checkpoint, LogKey, LogProofError, leaf_hash, tree_root
from trainer.oracle.receipts import WitnessedRun, bytes_of, read, read_entry, require, tells_evaluation


class Evidence(Answer):
    """The whole log under one head, as sealing a run answers it."""

    key: str
    checkpoint: str
    entries: list[str]


@dataclass(frozen=True)
class Submitted:
    """An evaluation that was answered: what was submitted, and the answer."""

    predictions: tuple[int, ...]
    budget: int | None
    answer: Evaluation


def check_evidence(
    value: JsonValue, key: LogKey, former: Checkpoint, run: WitnessedRun, evaluations: Sequence[Submitted]
) -> Checkpoint:
    """Check the whole log as sealing answered it: signed, grown from what was seen, and true about this run."""
    if value is None:
        raise LogProofError("the answer to sealing the run has no evidence")
    evidence = read(Evidence, value, "the evidence")
    require(evidence.key == key.vkey, "the evidence names another key than the pinned one")
    head = Checkpoint.open(evidence.checkpoint, key)
    leaves = [leaf_hash(bytes_of(text)) for text in evidence.entries]
    require(len(leaves) == head.size, f"the evidence has {len(leaves)} entries, and its head {head.size}")
    require(tree_root(leaves) == head.root, "the entries of the evidence are not those under its head")
    require(head.size >= former.size, f"the log has shrunk from {former.size} entries to {head.size}")
    require(tree_root(leaves[: former.size]) == former.root, "the evidence is of another history than was witnessed")
    own = [read_entry(text) for text in evidence.entries if _run_of(text) == run.run_id]
    require(bool(own) and own[-1].op == "run-sealed", "the evidence does not end the run")
    require(sum(entry.charged for entry in own) == own[-1].spent, "the run's entries charge other labels than it spent")
    require(all(entry.label_commitment == run.label_commitment for entry in own), "the answer key was exchanged")
    for one in evaluations:
        require(
            any(tells_evaluation(entry, one.predictions, one.budget, one.answer) for entry in own),
            "no entry says the test accuracy that was answered",
        )
    return head


def _run_of(text: str) -> object:
    """Return the run that an entry names. Entries of other runs may be of a former version, so no more is read."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LogProofError("an entry of the evidence is not JSON") from error
    return entry.get("run") if isinstance(entry, dict) else None
