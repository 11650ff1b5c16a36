"""The files of a results folder: read, written whole or not at all, and held by one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.errors import RunError


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one if there is no such file or it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


@contextlib.contextmanager
def only_one_at_a_time(out: Path) -> Iterator[None]:
    """Hold the results folder, so that two runs never share a database; the lock dies with this process."""
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
