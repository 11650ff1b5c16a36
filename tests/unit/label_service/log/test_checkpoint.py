"""Signed notes and checkpoints: the specification's example, and everything that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_service.log.checkpoint import Checkpoint, SigningKey, Verifier
from label_service.log.merkle import EMPTY_ROOT, VerificationError

# The example of c2sp.org/signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\N{EM DASH} example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
KEY = SigningKey("labelmeter/log-1", bytes(range(32)))
OTHER = SigningKey("labelmeter/log-1", bytes(range(1, 33)))
HEAD = Checkpoint("labelmeter/log-1", 5, EMPTY_ROOT)


def test_the_specification_s_example_is_verified() -> None:
    """Key, id, note and text are those that were published."""
    verifier = Verifier.from_vkey(VKEY)
    assert verifier.vkey == VKEY
    assert verifier.open(NOTE) == "This is an example message.\n"


def test_a_checkpoint_comes_back_as_it_was_signed() -> None:
    """Its text is origin, size and root, a line each."""
    note = HEAD.sign(KEY)
    assert note.startswith(
        "labelmeter/log-1\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\N{EM DASH} labelmeter"
    )
    assert Checkpoint.open(note, KEY.verifier) == HEAD
    assert Verifier.from_vkey(KEY.verifier.vkey) == KEY.verifier


def test_signatures_of_other_keys_are_ignored_beside_the_right_one() -> None:
    """A witness may add its own; alone it does not count."""
    theirs = OTHER.sign(HEAD.text).rpartition("\n\n")[2]
    assert Checkpoint.open(HEAD.sign(KEY) + theirs, KEY.verifier) == HEAD
    with pytest.raises(VerificationError, match="not signed by labelmeter/log-1 with the key"):
        Checkpoint.open(OTHER.sign(HEAD.text), KEY.verifier)


def test_every_changed_character_is_found() -> None:
    """Whichever character of a note is changed, it is refused (or read as signed by nobody known)."""
    note = HEAD.sign(KEY)
    for at, character in enumerate(note):
        changed = note[:at] + ("A" if character != "A" else "B") + note[at + 1 :]
        with pytest.raises(VerificationError):
            Checkpoint.open(changed, KEY.verifier)
        with pytest.raises(VerificationError):
            Checkpoint.open(note[:at], KEY.verifier)


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
def test_a_signed_text_that_is_no_checkpoint_of_this_log_is_refused(text: str) -> None:
    """The right signature does not excuse another log, a size with a leading zero, or a short root."""
    with pytest.raises(VerificationError):
        Checkpoint.open(KEY.sign(text), KEY.verifier)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+530d903a",
        VKEY.replace("530d903a", "530d903b"),
        VKEY.replace("foo", "bar"),
        VKEY[:-4],
        VKEY.replace("+Aek", "+Bek"),
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_a_damaged_verifier_key_is_refused(vkey: str) -> None:
    """Its id covers name and key, so a slip of the pen is found."""
    with pytest.raises(VerificationError):
        Verifier.from_vkey(vkey)


@pytest.mark.parametrize("text", ["", "no newline", "a tab\t\n", "a return\r\n"])
def test_a_text_that_no_note_can_hold_is_not_signed(text: str) -> None:
    """What could not be read back is a mistake of the caller."""
    with pytest.raises(ValueError, match="newline"):
        KEY.sign(text)


def test_a_key_file_is_its_owner_s_and_never_replaced(tmp_path: Path) -> None:
    """Mode 0600, exclusive, and read back as it was."""
    path, key = tmp_path / "key", SigningKey.generate("labelmeter/log-1")
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path) == key
    with pytest.raises(FileExistsError):
        OTHER.save(path)
    assert SigningKey.load(path) == key


def test_a_damaged_key_file_is_refused(tmp_path: Path) -> None:
    """A cut line, another name, or no key at all."""
    path = tmp_path / "key"
    KEY.save(path)
    line = path.read_text()
    for damaged in ["", line[:-8], line.replace("log-1", "log-2"), KEY.verifier.vkey]:
        path.write_text(damaged)
        with pytest.raises(VerificationError):
            SigningKey.load(path)


def test_the_private_half_is_not_shown() -> None:
    """Neither seed nor line is in the representation that a log might print."""
    assert "seed" not in repr(KEY) and str(KEY.seed) not in repr(KEY)


@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    """Whatever comes, the answer is a checkpoint or a VerificationError."""
    with pytest.raises(VerificationError):
        Checkpoint.open(text, KEY.verifier)
    with pytest.raises(VerificationError):
        Verifier.from_vkey(text)
