"""Save and load training state: a file is replaced whole, and loading it never runs code that it holds."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ResumeError
from trainer.records.files import replace_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint of tensors, numbers and strings; a kill leaves the old file or the new one.

    Raises:
        RecordsUnwritable: the disk is full or read-only; the old checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_file(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Check a checkpoint's checksums, then read it with PyTorch's restricted unpickler.

    Raises:
        ResumeError: the file is missing or damaged, or holds anything but tensors, numbers and strings.
    """
    try:
        # torch.load ignores the checksums that torch.save wrote, and one flipped bit can change a weight.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    # A damaged file can raise many kinds of exception in zipfile and in torch.load; all mean that it is damaged.
    except Exception as error:
        raise ResumeError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); remove it to redo it"
        ) from error
    if not isinstance(state, dict):
        raise ResumeError(f"{path} is not a checkpoint of this trainer")
    return state
