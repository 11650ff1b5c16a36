"""The Merkle tree: RFC 6962's published vectors, and every proof of small trees."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from label_service.log.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    VerificationError,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# From github.com/transparency-dev/merkle, testdata (Apache License 2.0), one list for each kind of proof.
VECTORS = Path(__file__).parents[3] / "vectors" / "rfc6962"
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def vectors(kind: str) -> list[Any]:
    """Read the vectors of a kind as test parameters."""
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / f"{kind}.json").read_text())]


def root(leaves: list[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    return MerkleTree(leaves).root()


def decoded(text: str | None) -> bytes:
    """Decode base64; null is nothing."""
    return base64.b64decode(text or "")


def test_all_published_vectors_are_here() -> None:
    """There are 98 vectors of each kind, valid and invalid."""
    for kind in ("inclusion", "consistency"):
        wrong = [vector.values[0]["wantErr"] for vector in vectors(kind)]
        assert len(wrong) == 98 and {True, False} == set(wrong)


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_published_inclusion_vector(vector: dict[str, Any]) -> None:
    """A valid proof is accepted, an invalid proof refused."""
    proof = [decoded(text) for text in vector["proof"] or []]
    given = decoded(vector["leafHash"]), vector["leafIdx"], vector["treeSize"], proof, decoded(vector["root"])
    if vector["wantErr"]:
        with pytest.raises(VerificationError):
            verify_inclusion(*given)
    else:
        verify_inclusion(*given)


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_published_consistency_vector(vector: dict[str, Any]) -> None:
    """A valid proof is accepted, an invalid proof refused."""
    proof = [decoded(text) for text in vector["proof"] or []]
    given = vector["size1"], vector["size2"], decoded(vector["root1"]), decoded(vector["root2"]), proof
    if vector["wantErr"]:
        with pytest.raises(VerificationError):
            verify_consistency(*given)
    else:
        verify_consistency(*given)


def test_roots_of_the_rfc() -> None:
    """The empty tree's root is the hash of no bytes; a leaf is hashed with the prefix 0, a pair with the prefix 1."""
    assert root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    left, right = (hashlib.sha256(b"\0" + data).digest() for data in (b"a", b"b"))
    assert leaf_hash(b"a") == left == root([left])
    assert root([left, right]) == hashlib.sha256(b"\1" + left + right).digest()


def test_every_proof_of_every_small_tree_holds_and_no_other() -> None:
    """Up to 20 leaves: each leaf's proof leads to its root, and to no other leaf, index, size or root."""
    for size in range(1, 21):
        leaves = LEAVES[:size]
        for index in range(size):
            proof = MerkleTree(leaves).inclusion_proof(index)
            verify_inclusion(leaves[index], index, size, proof, root(leaves))
            for wrong in [
                (LEAVES[index + 1], index, size, proof, root(leaves)),
                (leaves[index], index, size, proof, root(LEAVES[: size + 1])),
                (leaves[index], index, size, [*proof, LEAVES[0]], root(leaves)),
                *[(leaves[index], other, size, proof, root(leaves)) for other in range(size) if other != index],
                *[(leaves[index], index, size, proof[:cut], root(leaves)) for cut in range(len(proof))],
            ]:
                with pytest.raises(VerificationError):
                    verify_inclusion(*wrong)


def test_every_small_tree_is_shown_to_grow_and_a_changed_one_is_not() -> None:
    """Up to 20 leaves: each pair of sizes; a history with one leaf changed has no proof."""
    for second in range(1, 21):
        for first in range(1, second + 1):
            now, then = root(LEAVES[:second]), root(LEAVES[:first])
            proof = MerkleTree(LEAVES[:second]).consistency_proof(first)
            verify_consistency(first, second, then, now, proof)
            rewritten = [leaf_hash(b"x"), *LEAVES[1:first]]
            for wrong in [
                (first, second, root(rewritten), now, proof),
                (first, second, then, root(rewritten), proof),
                (first, second, then, now, [*proof, LEAVES[0]]),
                *[(first, second, then, now, proof[:cut]) for cut in range(len(proof))],
            ]:
                with pytest.raises(VerificationError):
                    verify_consistency(*wrong)


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
        verify_inclusion(LEAVES[0], 0, 2, [LEAVES[1] + b"x"], root(LEAVES[:2]))
    with pytest.raises(VerificationError, match="32 bytes"):
        verify_consistency(1, 2, LEAVES[0], root(LEAVES[:2]), [LEAVES[1][:31]])
