"""The fake label service with a signed log: every answer is proved, and the log can be made to lie.

It signs, proves and commits with the code of the label service, so the trainer's verifier meets another implementation.
`forge` changes what is said before it is signed, as only a service that holds the key could.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from typing import Any

from label_service.log.answer_key import AnswerKey
from label_service.log.entries import canonical_json
from label_service.log.key_history import KeyRotation
from label_service.log.merkle import MerkleTree, encode_base64, leaf_hash
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead
from tests.support.fake_label_service import FakeLabelService, Handler

ORIGIN = "labelmeter/fake"
GUEST = {"run": "guest", "op": "query", "ids": [1], "outcome": "revealed", "charged": 1, "spent": 1, "budget": 100}


class FakeLog:
    """Entries, their tree, the key that signs it, and the answer key."""

    def __init__(self, labels: dict[int, int]) -> None:
        self.signer = SigningKey(ORIGIN, bytes(range(32)))
        self.answer_key = AnswerKey(b"s" * 32, array("i", [labels[label_id] for label_id in range(len(labels))]))
        self.commitment = self.answer_key.commitment
        self.entries: list[bytes] = []
        self.rotations: list[dict[str, str]] = []
        self.forge: Callable[[dict[str, Any]], object] = lambda entry: None
        self.append(**GUEST)

    @property
    def tree(self) -> MerkleTree:
        return MerkleTree(leaf_hash(entry) for entry in self.entries)

    def head(self) -> str:
        """Sign the newest head."""
        return TreeHead.sign(self.signer, len(self.entries), self.tree.root()).note

    def rotate(self, old: SigningKey | None = None, new: SigningKey | None = None) -> None:
        """Replace the key in an entry that the old key, or another one, signs."""
        signer, new = old or self.signer, new or SigningKey.generate(ORIGIN)
        rotation = KeyRotation.sign(signer, new.verifier, len(self.entries)).model_dump()
        rotation["old_key"] = self.signer.verifier.vkey
        self.append(**{**GUEST, "op": "key-rotated", "outcome": "rotated", "ids": [], "charged": 0, "detail": rotation})
        self.rotations.append(rotation)
        self.signer = new

    def append(self, **fields: object) -> dict[str, Any]:
        """Append an entry and return its receipt."""
        entry = {"v": 2, "seq": len(self.entries), "label_commitment": self.commitment, **fields}
        self.forge(entry)
        self.entries.append(canonical_json(entry))
        return self.receipt(len(self.entries) - 1)

    def receipt(self, index: int) -> dict[str, Any]:
        """Prove an entry under the newest head."""
        proof = [encode_base64(sibling) for sibling in self.tree.inclusion_proof(index)]
        entry = self.entries[index].decode()
        return {"entry": entry, "index": index, "inclusion_proof": proof, "checkpoint": self.head()}

    def consistency(self, first: int, second: int) -> dict[str, Any]:
        """Prove growth; roots are detail too, as the service does."""
        tree = self.tree
        proof = [encode_base64(sibling) for sibling in tree.consistency_proof(first, second)]
        return {"first": first, "second": second, "first_root": "", "second_root": "", "proof": proof}


class SigningLabelService(FakeLabelService):
    """A fake that answers receipts and openings."""

    def __init__(self, pool_size: int = 50) -> None:
        self.log = FakeLog({label_id: label_id % 3 for label_id in range(pool_size)})
        self.predictions_by_key: dict[str, dict[str, Any]] = {}
        super().__init__(pool_size)

    def respond(self, handler: Handler) -> tuple[int, object]:
        """Answer as the fake does, on the record."""
        key, body = handler.headers.get("idempotency-key", ""), handler.body
        first, second = (int(handler.params.get(name, 0)) for name in ("first", "second"))
        if handler.route == "/v1/log/key":
            return 200, {"key": self.log.signer.verifier.vkey, "rotations": self.log.rotations}
        if handler.route == "/v1/log/proof/consistency":
            if second > len(self.log.entries):
                return 404, {"code": "not-signed", "detail": "There is no such proof."}
            return 200, self.log.consistency(first, second)
        status, document = super().respond(handler)
        if status >= 300 or not isinstance(document, dict):
            return status, document
        document = dict(document)
        spent = len(self.charged_ids)
        entry: dict[str, Any] = {"run": "r1", "ids": [], "charged": 0, "spent": spent, "budget": self.budget}
        match handler.route:
            case "/v1/runs":
                self.budget = body["budget"]
                detail = {"name": body["name"], "evaluation_budgets": body.get("evaluation_budgets", [])}
                entry |= {"op": "run-opened", "outcome": "opened", "budget": self.budget, "detail": detail}
            case "/v1/labels:query":
                replayed = document["replayed"]
                entry |= {"op": "query", "outcome": "replayed" if replayed else "revealed", "ids": body["ids"]}
                entry |= {"charged": 0 if replayed else document["charged"]}
                document["labels"] = [label | {"opening": self._open(label["id"])} for label in document["labels"]]
            case "/v1/runs/r1/evaluations":
                document["replayed"] = key in self.predictions_by_key
                entry |= {"op": "evaluation", "outcome": "replayed" if document["replayed"] else "evaluated"}
                detail = {"correct": document["correct"], "total": document["total"]}
                sha256 = hashlib.sha256(canonical_json(body["predictions"])).hexdigest()
                detail |= {"evaluated_budget": body.get("budget"), "predictions_sha256": sha256}
                self.predictions_by_key[key] = detail
                entry |= {"detail": detail}
            case "/v1/runs/r1:seal":
                entry |= {"op": "run-sealed", "outcome": "sealed"}
            case _:
                return status, document
        return status, document | {"receipt": self.log.append(**entry)}

    def _open(self, label_id: int) -> dict[str, Any]:
        return self.log.answer_key.open(label_id).model_dump()
