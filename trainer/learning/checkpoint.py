"""Save and load training state: whole or not at all, and never executing what a file holds."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from trainer.errors import RecordsUnwritable, ResumeError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, make it durable, then rename it into place.

    A kill at any moment leaves the old file or the new one.

    Args:
        path: where it goes; the folder exists.
        state: tensors, numbers, strings and containers of them.

    Raises:
        RecordsUnwritable: the disk is full or read-only; the old checkpoint is untouched.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise RecordsUnwritable(
            f"the checkpoint {path} cannot be written ({error}); free some space and start again with --resume"
        ) from error


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint with PyTorch's restricted unpickler, after its checksums.

    Raises:
        ResumeError: the file is missing or damaged, or holds anything but tensors, numbers and strings.
    """
    try:
        # torch.load does not look at the checksums that torch.save wrote, and one flipped bit can change a weight.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    # Damaged bytes make the two readers fail in many ways (ten kinds of exception were seen), and all mean the same.
    except Exception as error:
        raise ResumeError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); remove it to redo it"
        ) from error
    if not isinstance(state, dict):
        raise ResumeError(f"{path} is not a checkpoint of this trainer")
    return state
