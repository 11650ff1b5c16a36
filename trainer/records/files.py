"""Files that survive a kill: JSON-lines files that are appended to, and small files that are replaced whole.

A line counts once its newline is on the disk. A process killed in the middle of a write leaves a last line without
one; readers drop it, and the next append cuts it off before it writes. A damaged line anywhere else was not made by
a kill, so it is an error and nothing is repaired in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import DataError, RecordsUnwritable

# New files get rw-r--r-- (before the umask); the receipts ask for OWNER_ONLY, because they hold labels.
PUBLIC = 0o644
OWNER_ONLY = 0o600


def append_lines(path: Path, lines: Iterable[str], *, mode: int = PUBLIC, durable: bool = True) -> None:
    """Append lines in one write, after cutting off a torn last line.

    Args:
        path: The file; it and its folder are made when missing.
        lines: JSON documents without line breaks.
        mode: Permission bits for the file; an existing file that allows more is narrowed when `OWNER_ONLY` is asked.
        durable: Wait until the disk has it (fsync). Only what can be computed again may do without.

    Raises:
        RecordsUnwritable: The file cannot be written; its former content is left as it was.
        ValueError: A line holds a line break.
    """
    rows = list(lines)
    if any("\n" in row or "\r" in row for row in rows):
        raise ValueError("a JSON line must not hold a line break")
    data = "".join(row + "\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            if mode == OWNER_ONLY:
                os.fchmod(descriptor, OWNER_ONLY)
            end = _end_of_last_line(descriptor)
            os.ftruncate(descriptor, end)
            os.lseek(descriptor, end, os.SEEK_SET)
            try:
                _write_all(descriptor, data)
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if durable and is_new:
            _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_lines(path: Path) -> list[str]:
    """Read the complete lines of a file; a missing file has none, and a torn last line is left out.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it is a file of yours.") from error
    complete = data[: data.rfind(b"\n") + 1]
    try:
        return complete.decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged (not UTF-8 at byte {error.start}); move it away to start anew.") from error


def replace_file(path: Path, content: str | bytes, *, mode: int = PUBLIC) -> None:
    """Replace a whole file, so that a reader sees the old content or the new one and never a part.

    Raises:
        RecordsUnwritable: The file cannot be written; its former content is left as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.touch(mode)
            with draft.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _end_of_last_line(descriptor: int) -> int:
    """Return the offset after the last newline of an open file."""
    block = 65536
    position = os.lseek(descriptor, 0, os.SEEK_END)
    while position > 0:
        start = max(0, position - block)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    """Write everything: the system may take less than it was given when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """Make a new or replaced name durable; the name lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> RecordsUnwritable:
    """Say in one sentence that a file of the run cannot be written."""
    return RecordsUnwritable(
        f"{path} cannot be written ({error.strerror or error}); make room or mend the permissions and start again "
        "with --resume: labels paid for are answered again for free."
    )
