"""The file of remembered heads: the largest undamaged head counts, whichever worker wrote it and in any order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from label_service.errors import DatabaseRefused
from label_service.log import remembered_heads
from label_service.log.key_history import KeyHistory
from label_service.log.merkle import leaf_hash
from label_service.log.remembered_heads import RememberedHeads
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead

KEY = SigningKey.generate("labelmeter/log-1")
KEYS = KeyHistory((KEY.verifier,))


def note(size: int, key: SigningKey = KEY) -> str:
    """Sign a head of some size."""
    return TreeHead.sign(key, size, leaf_hash(b"%d" % size)).note


def newest_size(path: Path) -> int:
    """Return the size of the newest head in a file."""
    head = RememberedHeads(path).newest(KEYS)
    assert head is not None
    return head.size


@pytest.mark.parametrize("shared", [False, True])
def test_the_largest_head_counts_wherever_it_stands(tmp_path: Path, shared: bool) -> None:
    """Workers may append in another order than they committed."""
    heads = RememberedHeads(tmp_path / "heads", shared)
    assert heads.newest(KEYS) is None
    heads.start_anew(note(1))
    for size in (2, 9, 8, 10, 3):
        heads.remember(note(size))
    assert newest_size(tmp_path / "heads") == 10


def test_beginning_anew_never_forgets_a_larger_head(tmp_path: Path) -> None:
    """A worker with an older head keeps the newer head of another, at its start and when the file is too long."""
    heads = RememberedHeads(tmp_path / "heads", shared=True)
    heads.start_anew(note(7))
    heads.start_anew(note(5))
    assert newest_size(tmp_path / "heads") == 7


def test_many_workers_append_and_rotate_without_losing_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight workers, a file rewritten every few heads: each worker finds its own head or a larger one."""
    monkeypatch.setattr(remembered_heads, "_MAX_HEADS_BYTES", 1500)
    path = tmp_path / "heads"
    RememberedHeads(path, shared=True).start_anew(note(1))
    lost: list[tuple[int, int]] = []

    def work(worker: int) -> None:
        heads = RememberedHeads(path, shared=True)
        for turn in range(25):
            size = 2 + turn * 8 + worker
            heads.remember(note(size))
            found = newest_size(path)
            if found < size:
                lost.append((size, found))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert newest_size(path) == 2 + 24 * 8 + 7
    assert path.stat().st_size < 4000


def test_a_head_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """A full disk cuts a head at any byte; the heads before and after it are read."""
    path = tmp_path / "heads"
    heads = RememberedHeads(path)
    whole = note(30)
    for cut in range(1, len(whole)):
        heads.start_anew(note(20))
        with path.open("a") as file:
            file.write("\x00\n" + whole[:cut])
        assert newest_size(path) == 20
        heads.remember(note(21))
        assert newest_size(path) == 21
        path.unlink()


def test_the_largest_head_of_another_key_is_refused(tmp_path: Path) -> None:
    """A replaced key cannot continue the log, even if a smaller head is of the right key."""
    heads = RememberedHeads(tmp_path / "heads")
    heads.start_anew(note(3))
    heads.remember(note(4, SigningKey.generate(KEY.name)))
    with pytest.raises(DatabaseRefused, match="put back the log's key"):
        heads.newest(KEYS)
