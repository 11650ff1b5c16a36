"""The trainer follows a log from its pinned key to those that replaced it, in notes that the service has signed."""

from __future__ import annotations

import pytest

from label_service.log import key_history
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead
from trainer.oracle.answers import KeyRotation
from trainer.oracle.log_keys import LogKeys
from trainer.oracle.log_proofs import LogKey, LogProofError, UnknownKey

A, B, C = (SigningKey("labelmeter/log-1", bytes([seed]) * 32) for seed in (1, 2, 3))
OTHER_LOG = SigningKey("labelmeter/log-2", bytes([9]) * 32)
ROOT = bytes(32)


def rotation(old: SigningKey, new: SigningKey, seq: int) -> KeyRotation:
    """Let the service's code say that a key replaces another."""
    return KeyRotation.model_validate(key_history.KeyRotation.sign(old, new.verifier, seq).model_dump())


A_B, B_C = rotation(A, B, 3), rotation(B, C, 7)


def pinned(key: SigningKey) -> LogKeys:
    return LogKeys(LogKey.parse(key.verifier.vkey))


def head(key: SigningKey, size: int) -> str:
    return TreeHead.sign(key, size, ROOT).note


def test_a_pinned_key_leads_to_all_later_ones_and_to_no_earlier_one() -> None:
    """What a key has not signed is not its word, though a newer key is there."""
    for first, newer, older in ((A, [A, B, C], []), (B, [B, C], [A]), (C, [C], [A, B])):
        keys = pinned(first).follow([A_B, B_C])
        assert keys.newest == LogKey.parse(C.verifier.vkey)
        assert all(LogKey.parse(key.verifier.vkey) in keys for key in newer)
        assert not any(LogKey.parse(key.verifier.vkey) in keys for key in older)
        assert keys.follow([A_B, B_C]) == keys
        for key in older:
            with pytest.raises(UnknownKey):
                keys.open(head(key, 1))


def test_a_replaced_key_signs_no_head_over_the_entry_that_replaced_it() -> None:
    """Up to the entry's number it may; a newer key may sign every size."""
    keys = pinned(A).follow([A_B, B_C])
    for key, sizes in ((A, (0, 3)), (B, (0, 4, 7)), (C, (0, 3, 8, 100))):
        for size in sizes:
            assert keys.open(head(key, size)).size == size
    for key, size in ((A, 4), (B, 8)):
        with pytest.raises(LogProofError, match=f"of {size} entries is signed by a key that was replaced at entry"):
            keys.open(head(key, size))


@pytest.mark.parametrize(
    ("rotations", "sentence"),
    [
        ([A_B, rotation(A, C, 7)], "was not its key"),
        ([rotation(A, OTHER_LOG, 3)], "by one of another log, or by one from before"),
        ([A_B, rotation(B, A, 7)], "by one of another log, or by one from before"),
        ([A_B, rotation(B, C, 3)], "by one of another log, or by one from before"),
        ([rotation(A, A, 3)], "by one of another log, or by one from before"),
    ],
    ids=["twice", "another log", "back again", "no later", "by itself"],
)
def test_rotations_are_one_chain(rotations: list[KeyRotation], sentence: str) -> None:
    """Each replaces the newest key, of this log, later, by one that was not there."""
    with pytest.raises(LogProofError, match=sentence):
        pinned(A).follow(rotations)


@pytest.mark.parametrize(
    "told", [[], [rotation(A, C, 3)], [rotation(A, B, 2)], [B_C]], ids=["none", "key", "place", "later"]
)
def test_known_keys_are_not_forgotten(told: list[KeyRotation]) -> None:
    """A service that tells another story of the same key, or none, is refused."""
    with pytest.raises(LogProofError, match="no longer tells"):
        pinned(A).follow([A_B]).follow(told)


@pytest.mark.parametrize(
    "change",
    [
        {"new_key": C.verifier.vkey},
        {"statement": head(A, 3)},
        {"statement": A.sign(f"labelmeter/key-rotation\n03\n{B.verifier.vkey}\n")},
        {"statement": A.sign(f"labelmeter/successor\n3\n{B.verifier.vkey}\n")},
        {"statement": C.sign(f"labelmeter/key-rotation\n3\n{B.verifier.vkey}\n")},
        {"statement": "x"},
        {"new_key": "x", "statement": A.sign("labelmeter/key-rotation\n3\nx\n")},
    ],
    ids=["another key", "a head", "a leading zero", "another word", "a stranger", "no note", "no key"],
)
def test_only_what_the_old_key_has_signed_is_followed(change: dict[str, str]) -> None:
    """Whatever is malformed or signed by others is refused in a sentence."""
    with pytest.raises(LogProofError):
        pinned(A).follow([A_B.model_copy(update=change)])
