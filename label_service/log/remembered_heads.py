"""Signed heads, remembered outside the database's folder, so that a database put back to an older state is noticed.

Each head is its note, between separators; nothing else is in the file.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock

from label_service.errors import DatabaseRefused
from label_service.log.checkpoint import Checkpoint, Verifier
from label_service.log.merkle import VerificationError

# Heads are remembered one after the other; beyond this the file is begun anew.
_MAX_HEADS_BYTES = 1_000_000
_SEPARATOR = "\x00\n"
# A note of three lines and a signature, to its last newline: whatever else stands between separators was torn.
_WHOLE_HEAD = re.compile(r"[^\n]+\n([0-9]{1,18})\n[^\n]+\n\n[^\n]+\n")
# Workers wait for one another this long; each holds the file for one short write.
_FILE_LOCK_TIMEOUT_S = 5.0


class RememberedHeads:
    """The file that remembers signed heads, outside the database's folder.

    Heads are appended, so that a crash in the middle costs the last one at most: a torn one is not read. Workers append
    in whatever order they come, so the newest head is the largest one, wherever it stands; a lock beside the file keeps
    them from appending to a file that another one is replacing.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        """Name the file; `shared` says that other processes use it too."""
        self._path = path
        # thread_local=False: made in the thread that opens the service, used by the writer's.
        lock = FileLock(f"{path}.lock", timeout=_FILE_LOCK_TIMEOUT_S, thread_local=False)
        self._lock: AbstractContextManager[object] = lock if shared else nullcontext()

    def newest(self, verifier: Verifier) -> Checkpoint | None:
        """Return the largest head that is whole, or None if there is none yet.

        Raises:
            DatabaseRefused: the file cannot be read, or its largest whole head is not this key's.
        """
        try:
            with self._lock:
                whole = self._whole()
        except OSError as error:
            raise DatabaseRefused(
                f"{self._path} cannot be read ({error.strerror or error}); check its permissions."
            ) from error
        if not whole:
            return None
        try:
            return Checkpoint.open(max(whole, key=_size), verifier)
        except VerificationError as error:
            raise DatabaseRefused(
                f"The newest head in {self._path} is not one that this log's key has signed ({error}); "
                "if the key was replaced, so was the log."
            ) from error

    def begin(self, note: str) -> None:
        """Begin the file anew with one head, whole or not at all: this one, or a larger one of another worker.

        Raises:
            DatabaseRefused: it cannot be written.
        """
        try:
            with self._lock:
                self._begin(note)
        except OSError as error:
            raise DatabaseRefused(
                f"{self._path}, which remembers signed heads, cannot be written ({error.strerror or error}); "
                "choose another place with LABEL_SERVICE_HEADS_FOLDER."
            ) from error

    def remember(self, note: str) -> None:
        """Append a head. It is not synced: a power cut may forget the newest ones, which only makes the file older."""
        with self._lock:
            with self._path.open("a", encoding="utf-8") as file:
                # A separator on both sides: what a full disk cut off before is not taken for a part of this one.
                file.write(_SEPARATOR + note + _SEPARATOR)
                full = file.tell() > _MAX_HEADS_BYTES
            if full:
                self._begin(note)

    def _begin(self, note: str) -> None:
        kept = max([*self._whole(), note], key=_size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(self._path.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(kept + _SEPARATOR)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def _whole(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [head for head in text.split(_SEPARATOR) if _WHOLE_HEAD.fullmatch(head)]


def _size(note: str) -> int:
    """Read what size a whole head says it has; its signature is another matter."""
    return int(note.split("\n", 2)[1])
