"""The trainer's verifier against RFC 6962's published vectors, and against the service's signatures and proofs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from label_service.log import merkle, signed_note, tree_head
from trainer.oracle.log_proofs import (
    LogKey,
    LogProofError,
    TreeHead,
    decode_base64,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# From github.com/transparency-dev/merkle, testdata (Apache License 2.0), one list a kind.
VECTORS = Path(__file__).parents[3] / "vectors" / "rfc6962"
LEAVES = [leaf_hash(b"%d" % number) for number in range(40)]
SIGNER = signed_note.SigningKey("labelmeter/log-1", bytes(range(32)))
OTHER = signed_note.SigningKey("labelmeter/log-1", bytes(32))
KEY = LogKey.parse(SIGNER.verifier.vkey)


def vectors(kind: str) -> list[Any]:
    """Read the vectors of a kind as test parameters."""
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / f"{kind}.json").read_text())]


def decoded(text: str | None) -> bytes:
    """Decode base64; null is nothing."""
    return base64.b64decode(text or "")


def expect(holds: bool, check: Callable[..., None], *given: Any) -> None:
    """Run a check that must pass or must refuse."""
    if holds:
        check(*given)
    else:
        with pytest.raises(LogProofError):
            check(*given)


def test_all_published_vectors_are_here() -> None:
    """98 of each kind, right ones and wrong ones."""
    for kind in ("inclusion", "consistency"):
        wrong = [vector.values[0]["wantErr"] for vector in vectors(kind)]
        assert len(wrong) == 98 and {True, False} == set(wrong)


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_published_inclusion_vector(vector: dict[str, Any]) -> None:
    """A right proof is accepted, a wrong one refused."""
    proof = [decoded(sibling) for sibling in vector["proof"] or []]
    given = decoded(vector["leafHash"]), vector["leafIdx"], vector["treeSize"], proof, decoded(vector["root"])
    expect(not vector["wantErr"], verify_inclusion, *given)


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_published_consistency_vector(vector: dict[str, Any]) -> None:
    """A right proof is accepted, a wrong one refused."""
    proof = [decoded(sibling) for sibling in vector["proof"] or []]
    given = vector["size1"], vector["size2"], decoded(vector["root1"]), decoded(vector["root2"]), proof
    expect(not vector["wantErr"], verify_consistency, *given)


def test_every_proof_of_the_service_holds_and_no_other() -> None:
    """Up to 20 leaves: every inclusion and consistency proof, and each cut, lengthened or given another place."""
    for size in range(1, 21):
        tree = merkle.MerkleTree(LEAVES[:size])
        for index in range(size):
            proof = tree.inclusion_proof(index)
            verify_inclusion(LEAVES[index], index, size, proof, tree.root())
            for wrong in ([*proof, LEAVES[0]], *[proof[:cut] for cut in range(len(proof))]):
                expect(False, verify_inclusion, LEAVES[index], index, size, wrong, tree.root())
            for other in set(range(size)) - {index}:
                expect(False, verify_inclusion, LEAVES[index], other, size, proof, tree.root())
        for first in range(1, size + 1):
            proof = tree.consistency_proof(first)
            verify_consistency(first, size, tree.root(first), tree.root(), proof)
            for wrong in ([*proof, LEAVES[0]], *[proof[:cut] for cut in range(len(proof))]):
                expect(False, verify_consistency, first, size, tree.root(first), tree.root(), wrong)
            expect(False, verify_consistency, first, size, LEAVES[30], tree.root(), proof)
            expect(False, verify_consistency, first, size, tree.root(first), LEAVES[30], proof)


def test_hashes_of_another_width_are_refused() -> None:
    """Bytes cannot move from one hash of a proof to its neighbour."""
    root = merkle.MerkleTree(LEAVES[:2]).root()
    with pytest.raises(LogProofError, match="32 bytes"):
        verify_inclusion(LEAVES[0], 0, 2, [LEAVES[1] + b"x"], root)
    with pytest.raises(LogProofError, match="32 bytes"):
        verify_consistency(1, 2, LEAVES[0], root, [LEAVES[1][:31]])


def signed(text: str, signer: signed_note.SigningKey = SIGNER) -> str:
    """Sign with the service's code."""
    return signer.sign(text)


NOTE, OTHER_NOTE = (tree_head.TreeHead.sign(key, 7, LEAVES[0]).note for key in (SIGNER, OTHER))


def test_tree_head_of_the_service_is_opened() -> None:
    """Key and head, written by the service's code, are read here; the key is written the same again."""
    assert TreeHead.open(NOTE, KEY) == TreeHead(7, LEAVES[0], NOTE)
    assert (KEY.name, KEY.vkey) == (SIGNER.name, SIGNER.verifier.vkey)


def test_signatures_of_others_are_passed_over_but_not_instead_of_the_keys() -> None:
    """A cosigner's line changes nothing, wherever it stands; alone it is not enough."""
    text, _, own = NOTE.partition("\n\n")
    others = OTHER_NOTE.partition("\n\n")[2]
    for lines in (own + others, others + own):
        assert TreeHead.open(f"{text}\n\n{lines}", KEY).size == 7
    with pytest.raises(LogProofError, match="not signed by the log's pinned key"):
        TreeHead.open(OTHER_NOTE, KEY)


ROOT = base64.b64encode(LEAVES[0]).decode()


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (NOTE.replace("\n7\n", "\n8\n"), "signature does not hold"),
        (NOTE.replace(ROOT, base64.b64encode(LEAVES[1]).decode()), "signature does not hold"),
        (NOTE[:-1], "not a signed note"),
        (NOTE.replace("\n\n", "\n"), "not a signed note"),
        (NOTE.replace("\u2014 ", "- "), "not a signed note"),
        (NOTE + "\n", "not a signed note"),
        (NOTE.replace("\n7", "\r\n7"), "control characters"),
        (NOTE + "\u2014 x AAAA\n" * 9000, "too long"),
        ("", "not a signed note"),
        (signed(f"labelmeter/log-2\n7\n{ROOT}\n"), "of the log 'labelmeter/log-2'"),
        (signed(f"{SIGNER.name}\n07\n{ROOT}\n"), "three lines"),
        (signed(f"{SIGNER.name}\n-7\n{ROOT}\n"), "three lines"),
        (signed(f"{SIGNER.name}\n\u0667\n{ROOT}\n"), "three lines"),
        (signed(f"{SIGNER.name}\n7\n{ROOT}\nmore\n"), "three lines"),
        (signed(f"{SIGNER.name}\n7\n{ROOT[:-4]}\n"), "32 bytes"),
        (signed(f"{SIGNER.name}\n7\nno base64\n"), "not base64"),
    ],
)
def test_tree_head_that_does_not_hold_is_refused(note: str, message: str) -> None:
    """Edited, torn, of another form or log, even where the key has signed it."""
    with pytest.raises(LogProofError, match=message):
        TreeHead.open(note, KEY)


@pytest.mark.parametrize(
    ("vkey", "message"),
    [
        ("", "NAME.ID.KEY"),
        ("name", "NAME.ID.KEY"),
        ("two words+00000000+AAAA", "NAME.ID.KEY"),
        (KEY.vkey.replace("log-1", "log-2"), "id that does not belong to it"),
        (KEY.vkey.replace("+", "+0", 1), "id that does not belong to it"),
        (KEY.vkey[:-4], "Ed25519|base64"),
        ("n+00000000+" + base64.b64encode(b"\x02" + bytes(32)).decode(), "Ed25519"),
        (KEY.vkey + "=", "base64"),
    ],
)
def test_key_with_a_mistake_is_refused(vkey: str, message: str) -> None:
    """One wrong character in a pinned key is found before anything is asked."""
    with pytest.raises(LogProofError, match=message):
        LogKey.parse(vkey)


@pytest.mark.parametrize("text", ["QQ", "QR==", "QQ==\n", " QQ==", "Q Q==", "QQ===", "_w==", "\u00e9"])
def test_base64_is_read_in_one_form_only(text: str) -> None:
    """Spaces, missing or spare padding, loose bits, another alphabet: refused."""
    assert decode_base64("QQ==") == b"A"
    with pytest.raises(LogProofError):
        decode_base64(text)
