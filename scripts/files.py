"""A results folder: read its JSON files, and let one run at a time use it."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.errors import RunError


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Lock the results folder, so that two runs never share a database. The lock dies with this process.

    Raises:
        RunError: the folder cannot be written, or another run has locked it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise RunError(f"The results folder {out} cannot be written ({error}): choose another with OUT=.", 2) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another make run is at work in {out}: wait for it, or choose another OUT=.", 2) from error
        yield
