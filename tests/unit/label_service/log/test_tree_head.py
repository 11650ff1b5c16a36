"""Signed tree heads: what was signed is read back, and everything else is refused."""

from __future__ import annotations

import pytest

from label_service.log.merkle import EMPTY_ROOT, VerificationError
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead

KEY = SigningKey("labelmeter/log-1", bytes(range(32)))
OTHER = SigningKey("labelmeter/log-1", bytes(range(1, 33)))
HEAD = TreeHead.sign(KEY, 5, EMPTY_ROOT)


def test_a_head_is_read_back_as_it_was_signed() -> None:
    """Its text is origin, size and root, a line each."""
    assert HEAD.note.startswith(
        "labelmeter/log-1\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\N{EM DASH} labelmeter"
    )
    assert TreeHead.open(HEAD.note, KEY.verifier) == HEAD


def test_signatures_of_other_keys_are_ignored_beside_the_right_one() -> None:
    """A witness may add its signature; alone it does not count."""
    other = TreeHead.sign(OTHER, 5, EMPTY_ROOT).note
    assert TreeHead.open(HEAD.note + other.rpartition("\n\n")[2], KEY.verifier) == HEAD
    with pytest.raises(VerificationError, match="not signed by labelmeter/log-1 with the key"):
        TreeHead.open(other, KEY.verifier)


def test_every_changed_character_is_found() -> None:
    """Changing any character of a note, or cutting the note there, makes it invalid."""
    note = HEAD.note
    for at, character in enumerate(note):
        changed = note[:at] + ("A" if character != "A" else "B") + note[at + 1 :]
        with pytest.raises(VerificationError):
            TreeHead.open(changed, KEY.verifier)
        with pytest.raises(VerificationError):
            TreeHead.open(note[:at], KEY.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "labelmeter/log-1\n5\n",
        "labelmeter/log-1\n05\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "labelmeter/log-1\n-5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "labelmeter/log-1\n\N{ARABIC-INDIC DIGIT FIVE}\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "labelmeter/log-1\n5\n47DEQpj8\n",
        "labelmeter/log-1\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=\n",
        "labelmeter/log-1\n5\nnot base64\n",
        "labelmeter/log-1\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nmore\n",
        "labelmeter/log-2\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
    ],
)
def test_a_signed_text_that_is_no_head_of_this_log_is_refused(text: str) -> None:
    """The right signature does not excuse another log, a size with a leading zero, or a short root."""
    with pytest.raises(VerificationError):
        TreeHead.open(KEY.sign(text), KEY.verifier)
