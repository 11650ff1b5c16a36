"""Files that survive a kill: JSON-lines files that are appended to, and files that are replaced whole.

A line counts once its newline is on the disk. A process killed in the middle of a write leaves a last line without
newline; readers drop it, and the next append removes it first. Any other damaged line is an error, because no kill
explains it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from trainer.errors import DataError, RecordsUnwritable, TrainerError

# Permissions of a new file (before the umask): OWNER_ONLY for labels and tokens.
PUBLIC = 0o644
OWNER_ONLY = 0o600

T = TypeVar("T")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_lines(path: Path, lines: Iterable[str], *, mode: int = PUBLIC, durable: bool = True) -> None:
    """Append lines in one write, after cutting off a torn last line.

    Args:
        path: The file; it and its folder are made when missing.
        lines: JSON documents without line breaks.
        mode: Permission bits of a new file. `OWNER_ONLY` also narrows the permissions of an existing file.
        durable: Wait until the disk has the lines (fsync). False only for what can be computed again.

    Raises:
        RecordsUnwritable: The file cannot be written; its content is as before.
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
    """Read the complete lines of a file, without a torn last line; a missing file has none.

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


def replace_file(path: Path, data: str | bytes, *, mode: int = PUBLIC) -> None:
    """Replace a whole file, so that a reader sees the old content or the new one and never a part.

    Args:
        path: The file; it and its folder are made when missing.
        data: The new content; text is written as UTF-8.
        mode: Permission bits of the new file.

    Raises:
        RecordsUnwritable: The file cannot be written; its content is as before.
    """
    # One name for all drafts of a file: what a killed process left is overwritten, not kept.
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.touch(mode)
            with draft.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_file(
    path: Path, parse: Callable[[bytes], T], damage: str, *, error: type[TrainerError] = DataError
) -> T | None:
    """Read a file that is replaced whole; None when there is no file.

    Args:
        path: The file.
        parse: Reads its content, such as `Model.model_validate_json`; raises ValueError if it cannot.
        damage: The message, after the path, when the file cannot be read or parsed.
        error: Class of that error.

    Raises:
        DataError: The file is damaged; or `error`.
    """
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as cause:
        raise error(f"{path} {damage}") from cause


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
    """Write all bytes: the system may take only a part when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """Make a new or replaced file name durable: the folder holds the names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> RecordsUnwritable:
    """Return the error of a file that cannot be written."""
    return RecordsUnwritable(
        f"{path} cannot be written ({error.strerror or error}); make room or correct the permissions, and start "
        "again with --resume: labels that were paid for are answered again for free."
    )
