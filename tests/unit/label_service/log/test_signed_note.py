"""Signed notes and keys: the specification's example, and everything that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey, Verifier, decode_base64

# The example of c2sp.org/signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\N{EM DASH} example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
KEY = SigningKey("labelmeter/log-1", bytes(range(32)))
OTHER = SigningKey("labelmeter/log-1", bytes(range(1, 33)))


def test_the_specification_s_example_is_verified() -> None:
    """Key, id, note and text are those that were published."""
    verifier = Verifier.from_vkey(VKEY)
    assert verifier.vkey == VKEY
    assert verifier.open(NOTE) == "This is an example message.\n"
    assert Verifier.from_vkey(KEY.verifier.vkey) == KEY.verifier


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
    """The id is a hash of name and key, so a changed character is found."""
    with pytest.raises(VerificationError):
        Verifier.from_vkey(vkey)


@pytest.mark.parametrize("text", ["", "no newline", "a tab\t\n", "a return\r\n"])
def test_a_text_that_no_note_can_hold_is_not_signed(text: str) -> None:
    """The caller must not sign what nobody could read back."""
    with pytest.raises(ValueError, match="newline"):
        KEY.sign(text)


@pytest.mark.parametrize("text", ["AAA", "AA=A", "AAB=", "not base64", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_base64_has_one_text_for_the_same_bytes(text: str) -> None:
    """Other base64, such as with stray bits at the end, is refused with the name of the value."""
    assert decode_base64("AAA=", "x") == b"\0\0"
    with pytest.raises(VerificationError, match=r"^the salt is not"):
        decode_base64(text, "the salt")


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
    """The seed is not in the representation that a log might print."""
    assert "seed" not in repr(KEY) and str(KEY.seed) not in repr(KEY)


@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    """Whatever the text, the error is a VerificationError."""
    with pytest.raises(VerificationError):
        KEY.verifier.open(text)
    with pytest.raises(VerificationError):
        Verifier.from_vkey(text)
