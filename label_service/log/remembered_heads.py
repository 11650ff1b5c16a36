"""The file of signed heads, kept outside the database's folder.

Someone who puts an older copy of the database back does not put back this file. So at the start the service compares
the database with the newest head in it, and refuses a database that is older.

The file is a sequence of signed notes between separators.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from label_service.errors import DatabaseRefused
from label_service.files import identify_file, write_atomically
from label_service.log.key_history import KeyHistory
from label_service.log.merkle import VerificationError
from label_service.log.tree_head import TreeHead

# A file longer than this is rewritten with its newest head alone.
_MAX_HEADS_BYTES = 1_000_000
_SEPARATOR = "\x00\n"
# Space reserved for one head: more than a note of this service has, which is about 230 bytes.
_SLOT_BYTES = 320
# A note of three lines and a signature, up to its last newline. Anything else between separators was cut off.
_WHOLE_NOTE = re.compile(r"[^\n]+\n([0-9]{1,18})\n[^\n]+\n\n[^\n]+\n")
# Workers wait for one another this long; each holds the file for one short write.
_FILE_LOCK_TIMEOUT_S = 5.0


class RememberedHeads:
    """Signed heads in a file.

    Heads are appended, each into space that was taken before its commit: a full disk refuses a request before anything
    is charged. A crash while appending damages the last head only, and a damaged head is not read. Several
    workers append in any order, so the newest head is the one with the largest size, wherever it stands. A lock beside
    the file keeps workers from appending while another one rewrites it.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        """Name the file; `shared` means that other processes use it too."""
        self._path = path
        # thread_local=False: made in the thread that opens the service, used by the writer's.
        lock = FileLock(f"{path}.lock", timeout=_FILE_LOCK_TIMEOUT_S, thread_local=False)
        self._lock: AbstractContextManager[object] = lock if shared else nullcontext()
        self._slot: _Slot | None = None

    def newest(self, keys: KeyHistory) -> TreeHead | None:
        """Return the largest undamaged head, or None if there is none yet.

        Raises:
            DatabaseRefused: the file cannot be read, or its largest head is not signed by one of these keys.
        """
        try:
            with self._lock:
                notes = self._read()
        except OSError as error:
            raise DatabaseRefused(
                f"{self._path} cannot be read ({error.strerror or error}); check its permissions."
            ) from error
        if not notes:
            return None
        try:
            return keys.open_head(max(notes, key=_size))
        except VerificationError as error:
            raise DatabaseRefused(
                f"The newest head in {self._path} is not one that this log's key has signed ({error}); "
                "put back the log's key."
            ) from error

    def start_anew(self, note: str) -> None:
        """Rewrite the file with one head: this one, or a larger one that another worker has written.

        Raises:
            DatabaseRefused: the file cannot be written.
        """
        try:
            with self._lock:
                self._rewrite(note)
        except OSError as error:
            raise DatabaseRefused(
                f"{self._path}, which remembers signed heads, cannot be written ({error.strerror or error}); "
                "choose another place with LABEL_SERVICE_HEADS_FOLDER."
            ) from error

    def reserve(self) -> None:
        """Make sure that there is space for the next head; call it before the commit that the head is signed after.

        Raises:
            OSError: there is no space, or the file cannot be written.
        """
        with self._lock:
            self._reserve()

    def remember(self, note: str) -> None:
        """Write a head into the space that was reserved for it.

        The file is not synced. A power cut may lose the newest heads, which leaves an older but true file.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            self._reserve()
            assert self._slot is not None
            with self._path.open("r+b") as file:
                file.seek(self._slot.offset)
                # A separator behind it, so that the blanks of the space do not become a part of it.
                file.write((note + _SEPARATOR).encode())
            self._slot = None

    def _reserve(self) -> None:
        """Append blanks for one head, unless blanks that this process has appended are still there."""
        known = None if self._slot is None else self._slot.file
        if known is not None and known == identify_file(self._path):
            return
        if self._path.exists() and self._path.stat().st_size > _MAX_HEADS_BYTES and (notes := self._read()):
            self._rewrite(max(notes, key=_size))
        with self._path.open("ab") as file:
            # A separator on both sides, so that a head cut off by a crash does not become a part of this one.
            file.write(_SEPARATOR.encode())
            offset = file.tell()
            file.write(b" " * _SLOT_BYTES + _SEPARATOR.encode())
        self._slot = _Slot(identify_file(self._path), offset)

    def _rewrite(self, note: str) -> None:
        newest = max([*self._read(), note], key=_size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, (newest + _SEPARATOR).encode())

    def _read(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [note for note in text.split(_SEPARATOR) if _WHOLE_NOTE.fullmatch(note)]


@dataclass(frozen=True)
class _Slot:
    """Blanks that one head is to replace: the file's device and inode, and where they begin in it."""

    file: tuple[int, int] | None
    offset: int


def _size(note: str) -> int:
    """Return the size that a note claims; its signature is not checked here."""
    return int(note.split("\n", 2)[1])
