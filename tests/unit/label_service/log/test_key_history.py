"""Which key may sign what, and which words lead from one key to the next."""

from __future__ import annotations

import base64

import pytest

from label_service.log.key_history import KeyHistory, KeyRotation
from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead

A, B, C = (SigningKey("labelmeter/log-1", bytes([seed]) * 32) for seed in (1, 2, 3))
A_B, B_C = KeyRotation.sign(A, B.verifier, 3), KeyRotation.sign(B, C.verifier, 7)
ROOT = bytes(32)


def head(key: SigningKey, size: int) -> str:
    return TreeHead.sign(key, size, ROOT).note


def test_a_pinned_key_leads_to_all_later_ones_and_to_no_earlier_one() -> None:
    """What a key has not signed is not its word, though a newer key is there."""
    for pinned, keys in ((A, [A, B, C]), (B, [B, C]), (C, [C])):
        followed = KeyHistory((pinned.verifier,)).follow([A_B, B_C])
        assert [key.vkey for key in followed.keys] == [key.verifier.vkey for key in keys]
        assert followed.newest == C.verifier and followed.follow([A_B, B_C]) == followed
    with pytest.raises(VerificationError, match="is not signed by"):
        KeyHistory((B.verifier,)).follow([A_B]).open_head(head(A, 1))


def test_a_retired_key_signs_no_head_over_the_entry_that_replaced_it() -> None:
    """Up to the entry's number it may; a newer key may sign every size."""
    keys = KeyHistory.of([A_B, B_C])
    for key, sizes in ((A, (0, 3)), (B, (0, 4, 7)), (C, (0, 3, 8, 100))):
        for size in sizes:
            assert keys.open_head(head(key, size)).size == size
            assert keys.has_signed(size, ROOT, _signature(head(key, size)))
    for key, size in ((A, 4), (B, 8)):
        with pytest.raises(VerificationError, match=f"over {size} entries is signed by a key replaced at entry"):
            keys.open_head(head(key, size))
        assert not keys.has_signed(size, ROOT, _signature(head(key, size)))


def _signature(note: str) -> bytes:
    return base64.b64decode(note.rstrip("\n").rpartition(" ")[2])


OTHER_LOG = SigningKey("labelmeter/log-2", bytes([9]) * 32)


@pytest.mark.parametrize(
    ("rotations", "sentence"),
    [
        ([A_B, KeyRotation.sign(A, C.verifier, 7)], "not the log's"),
        ([KeyRotation.sign(A, OTHER_LOG.verifier, 3)], "not the log's"),
        ([A_B, KeyRotation.sign(B, A.verifier, 7)], "replaced before"),
        ([A_B, KeyRotation.sign(B, C.verifier, 3)], "replaced before"),
        ([KeyRotation.sign(A, A.verifier, 3)], "replaced before"),
    ],
)
def test_rotations_are_one_chain(rotations: list[KeyRotation], sentence: str) -> None:
    """Each replaces the newest key, of this log, later, by one that was not there."""
    with pytest.raises(VerificationError, match=sentence):
        KeyHistory.of(rotations)


def test_known_keys_are_not_forgotten() -> None:
    """A service that tells another story of the same key, or none, is refused."""
    known = KeyHistory((A.verifier,)).follow([A_B])
    for told in ([], [KeyRotation.sign(A, C.verifier, 3)], [KeyRotation.sign(A, B.verifier, 2)], [B_C]):
        with pytest.raises(VerificationError, match="has other keys than"):
            known.follow(told)


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        A_B.model_dump() | {"more": 1},
        A_B.model_dump() | {"old_key": B.verifier.vkey},
        A_B.model_dump() | {"new_key": C.verifier.vkey},
        A_B.model_dump() | {"statement": head(A, 3)},
        A_B.model_dump() | {"statement": A.sign(f"labelmeter/key-rotation\n03\n{B.verifier.vkey}\n")},
        A_B.model_dump() | {"statement": A.sign(f"labelmeter/successor\n3\n{B.verifier.vkey}\n")},
        A_B.model_dump() | {"statement": C.sign(f"labelmeter/key-rotation\n3\n{B.verifier.vkey}\n")},
    ],
)
def test_only_what_the_old_key_has_signed_is_read(said: object) -> None:
    """Whatever is malformed or signed by others is one sentence."""
    assert KeyRotation.read(A_B.model_dump()).seq == 3
    with pytest.raises(VerificationError):
        KeyRotation.read(said)
