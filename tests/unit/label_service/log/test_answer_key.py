"""The answer key: the tree of RFC 6962 over all labels, of which a large pool keeps the upper part alone."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from label_service.errors import LogChanged
from label_service.log import answer_key
from label_service.log.answer_key import AnswerKey
from label_service.log.authenticated_file import AuthenticatedFile
from label_service.log.entry_mac import Hmac
from label_service.log.evidence import label_leaf
from label_service.log.merkle import MerkleTree, encode_base64, leaf_hash, verify_inclusion
from label_service.log.signed_note import decode_base64
from label_service.store import tables

SECRET = b"s" * 32


def labels(count: int) -> array[int]:
    return array("i", [number * 7 % 300 for number in range(count)])


def kept_in(folder: Path, secret: bytes = b"k" * 32) -> AuthenticatedFile:
    return AuthenticatedFile(folder / "tree", secret, "every label is hashed")


@pytest.mark.parametrize("most", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 33])
def test_a_part_of_the_tree_gives_the_root_and_the_proofs_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, count: int, most: int
) -> None:
    """However many labels lie under one kept hash, and however they are parted while the tree is made."""
    monkeypatch.setattr(answer_key, "_MOST_SUBTREES", most)
    monkeypatch.setattr(answer_key, "_LEAVES_AT_ONCE", 4)
    key = AnswerKey(SECRET, labels(count))
    salts = [Hmac(SECRET).digest(b"%d" % label_id).hex() for label_id in range(count)]
    leaves = [leaf_hash(label_leaf(*one)) for one in zip(range(count), labels(count), salts, strict=True)]
    root = MerkleTree(leaves).root()
    assert key.commitment == encode_base64(root)
    for label_id in range(count):
        opening = key.open(label_id)
        assert opening.salt == salts[label_id]
        proof = [decode_base64(node, "a hash") for node in opening.proof]
        verify_inclusion(leaves[label_id], label_id, count, proof, root)


def test_a_label_that_is_not_the_one_committed_to_is_found() -> None:
    """The comparison is with the labels that the root was computed from, or that its file was made of."""
    key = AnswerKey(SECRET, labels(5))
    key.require(3, 21)
    with pytest.raises(LogChanged, match="image 3 is not the one"):
        key.require(3, 22)


@pytest.mark.parametrize("most", [4, 64])
def test_a_kept_tree_is_taken_for_its_own_labels_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int
) -> None:
    """Other labels, another secret of the salts, another key of the log, or a changed byte: all labels are hashed."""
    monkeypatch.setattr(answer_key, "_MOST_SUBTREES", most)
    kept, whole = kept_in(tmp_path), AnswerKey(SECRET, labels(35))
    assert not AnswerKey(SECRET, labels(35), kept=kept).is_kept
    whole.keep(kept)
    again = AnswerKey(SECRET, labels(35), kept=kept)
    assert again.is_kept
    assert again.commitment == whole.commitment
    assert [again.open(label_id) for label_id in range(35)] == [whole.open(label_id) for label_id in range(35)]
    changed, fewer = labels(35), labels(35)[1:]
    changed[17] += 1
    moved = SECRET + labels(35)[:1].tobytes(), fewer
    for secret, others in ((SECRET, changed), (SECRET, fewer), (b"t" * 32, labels(35)), moved):
        key = AnswerKey(secret, others, kept=kept)
        assert not key.is_kept
        assert key.commitment == AnswerKey(secret, others).commitment != whole.commitment
    assert not AnswerKey(SECRET, labels(35), kept=kept_in(tmp_path, b"l" * 32)).is_kept
    written = kept.path.read_bytes()
    for place in (0, 66, len(written) - 1):
        kept.path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        key = AnswerKey(SECRET, labels(35), kept=kept)
        assert (key.is_kept, key.commitment) == (False, whole.commitment)


def test_no_file_and_a_folder_in_its_place_only_cost_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read or written is told, and the tree is made of the labels."""
    kept = kept_in(tmp_path)
    kept.path.mkdir()
    key = AnswerKey(SECRET, labels(5), kept=kept)
    key.keep(kept)
    assert not key.is_kept
    assert "cannot be read (Is a directory), so every label is hashed" in caplog.text
    assert "cannot be written (Is a directory); the next start takes longer" in caplog.text


def test_the_first_key_that_is_committed_to_stays() -> None:
    """Two workers may make one at the same time; the second is told, and its key is written nowhere."""
    first, second = (AnswerKey(secret * 32, labels(5)) for secret in (b"a", b"b"))
    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        assert first.commit(connection) and first.commit(connection)
        assert not second.commit(connection)
        (row,) = connection.execute(select(tables.answer_key)).all()
    assert (row.secret, row.commitment) == (b"a" * 32, first.commitment)
