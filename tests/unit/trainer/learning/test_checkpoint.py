"""A checkpoint is there whole or not at all, and what is damaged or hostile is refused, not loaded."""

from __future__ import annotations

import os
import pickle
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.errors import RecordsUnwritable, ResumeError
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
STATE = {"weights": {"a": torch.arange(200.0)}, "epoch": 3, "identity": "x", "steps": [1, 2]}


def loaded(path: Path) -> dict[str, Any]:
    """Load on the CPU."""
    return load_checkpoint(path, CPU)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Tensors, numbers, strings and containers survive the way to the disk, and no draft is left."""
    save_checkpoint(tmp_path / "a.pt", STATE)
    state = loaded(tmp_path / "a.pt")
    assert torch.equal(state["weights"]["a"], torch.arange(200.0))
    assert (state["epoch"], state["identity"], state["steps"]) == (3, "x", [1, 2])
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "rename"])
def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path, owner: object, name: str) -> None:
    """Killed between writing and renaming the new file, the old one loads, and the next save succeeds."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"epoch": 1})
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads; this child only writes a file and dies.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            save_checkpoint(path, {"epoch": 2})
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert loaded(path) == {"epoch": 1}
    assert (tmp_path / ".a.pt.tmp").exists(), "the kill came after the new bytes were written"
    save_checkpoint(path, {"epoch": 3})
    assert loaded(path) == {"epoch": 3}
    assert not (tmp_path / ".a.pt.tmp").exists()


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error is RecordsUnwritable with the file's name; the old file stays and the draft goes."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"epoch": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordsUnwritable, match=r"a\.pt cannot be written .*No space left.*--resume") as caught:
        save_checkpoint(path, {"epoch": 2})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert loaded(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_a_missing_checkpoint_is_a_resume_error(tmp_path: Path) -> None:
    """The sentence names the file."""
    with pytest.raises(ResumeError, match=r"missing\.pt cannot be read"):
        loaded(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda _: b"not a checkpoint\n",
        lambda _: bytes(range(256)),
        lambda _: pickle.dumps({"epoch": 1}),
    ],
    ids=["empty", "half", "a byte short", "text", "noise", "a bare pickle"],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """The error names the file and says what to do."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ResumeError, match=r"a\.pt cannot be read .*remove it to redo it"):
        loaded(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """A weight that changed on the disk is not loaded: the file's checksums are compared."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    # 177.0 occurs once: in the middle of the tensor.
    place = content.index(torch.tensor(177.0).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"]["a"], STATE["weights"]["a"]), (
        "torch itself would not have noticed"
    )
    with pytest.raises(ResumeError, match="BadZipFile"):
        loaded(path)


def test_no_damage_escapes_as_another_error(tmp_path: Path) -> None:
    """Of 80 files with random damage, each is refused as a ResumeError or loads exactly as it was saved."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    good = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(80):
        content = bytearray(good)
        for _ in range(dice.choice([1, 3, 20])):
            content[dice.randrange(len(content))] ^= dice.randrange(1, 256)
        path.write_bytes(content)
        try:
            state = loaded(path)
        except ResumeError:
            refused += 1
        else:
            assert torch.equal(state["weights"]["a"], torch.arange(200.0))
            assert (state["epoch"], state["identity"]) == (3, "x")
    assert refused > 40


class Hostile:
    """Unpickles by running a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.proof),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A file that would run code is refused before it runs any; the twin shows that it would have."""
    path, proof = tmp_path / "a.pt", tmp_path / "proof"
    torch.save({"encoder": Hostile(proof)}, path)
    with pytest.raises(ResumeError, match="cannot be read"):
        loaded(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    """A file that holds only a tensor is no training state."""
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with pytest.raises(ResumeError, match="is not a checkpoint of this trainer"):
        loaded(tmp_path / "a.pt")
