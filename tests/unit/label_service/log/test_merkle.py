"""The Merkle tree: RFC 6962's published vectors, and every proof of small trees."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash, verify_consistency, verify_inclusion

# From github.com/transparency-dev/merkle, testdata (Apache License 2.0), one list for each kind of proof.
VECTORS = Path(__file__).parents[3] / "vectors" / "rfc6962"
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def vectors(kind: str) -> list[Any]:
    """Read the vectors of a kind as test parameters."""
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / f"{kind}.json").read_text())]


def decoded(text: str | None) -> bytes:
    """Decode base64; null is nothing."""
    return base64.b64decode(text or "")


def test_all_published_vectors_are_here() -> None:
    """There are 98 vectors of each kind, valid and invalid."""
    for kind in ("inclusion", "consistency"):
        wrong = [vector.values[0]["wantErr"] for vector in vectors(kind)]
        assert len(wrong) == 98 and {True, False} == set(wrong)


def expect(holds: bool, check: Callable[..., None], *given: Any) -> None:
    """Run a check that must pass or must refuse."""
    with nullcontext() if holds else pytest.raises(VerificationError):
        check(*given)


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_published_inclusion_vector(vector: dict[str, Any]) -> None:
    """A valid proof is accepted, an invalid proof refused."""
    proof = [decoded(text) for text in vector["proof"] or []]
    given = decoded(vector["leafHash"]), vector["leafIdx"], vector["treeSize"], proof, decoded(vector["root"])
    expect(not vector["wantErr"], verify_inclusion, *given)


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_published_consistency_vector(vector: dict[str, Any]) -> None:
    """A valid proof is accepted, an invalid proof refused."""
    proof = [decoded(text) for text in vector["proof"] or []]
    given = vector["size1"], vector["size2"], decoded(vector["root1"]), decoded(vector["root2"]), proof
    expect(not vector["wantErr"], verify_consistency, *given)


def test_a_changed_history_has_no_proof() -> None:
    """The proof must lead to both roots; the published vectors change the older one only where it is also a node."""
    tree, other = MerkleTree(LEAVES), leaf_hash(b"another history")
    for first in range(1, len(LEAVES)):
        for older, newer in ((other, tree.root()), (tree.root(first), other)):
            expect(False, verify_consistency, first, len(LEAVES), older, newer, tree.consistency_proof(first))


def test_a_tree_answers_for_its_former_sizes() -> None:
    """Roots and proofs of an earlier size are those of the tree at that size."""
    tree = MerkleTree(LEAVES)
    for size in range(1, len(LEAVES) + 1):
        former = MerkleTree(LEAVES[:size])
        assert tree.root(size) == former.root()
        assert tree.inclusion_proof(size // 2, size) == former.inclusion_proof(size // 2)
        assert tree.consistency_proof(size // 2 or 1, size) == former.consistency_proof(size // 2 or 1)


def test_what_is_not_there_has_no_proof() -> None:
    """An index or size outside of the tree is the caller's mistake."""
    tree = MerkleTree(LEAVES[:5])
    for impossible in [
        lambda: tree.root(6),
        lambda: tree.root(-1),
        lambda: tree.inclusion_proof(5),
        lambda: tree.inclusion_proof(-1),
        lambda: tree.inclusion_proof(0, 6),
        lambda: tree.consistency_proof(3, 6),
        lambda: tree.consistency_proof(4, 3),
    ]:
        with pytest.raises(ValueError, match=r"leaf|leaves|size"):
            impossible()


def test_hashes_of_another_width_are_refused() -> None:
    """A proof whose hashes are not 32 bytes could shift bytes between its neighbours."""
    with pytest.raises(VerificationError, match="32 bytes"):
        verify_inclusion(LEAVES[0], 0, 2, [LEAVES[1] + b"x"], MerkleTree(LEAVES[:2]).root())
    with pytest.raises(VerificationError, match="32 bytes"):
        verify_consistency(1, 2, LEAVES[0], MerkleTree(LEAVES[:2]).root(), [LEAVES[1][:31]])
