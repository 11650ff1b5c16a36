"""The evidence of a run: the log's key, pinned before the first query; a bundle, saved after the last; its check.

The check is `label_service verify`, a process of its own that sees three files and nothing else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx

from scripts import files
from scripts.errors import RunError

KEY_FILE = "log-key.txt"
BUNDLE_FILE = "evidence.json"
LOG_FILE = "query-log.ndjson"


def pin_key(client: httpx.Client, out: Path) -> None:
    """Note the log's public key, or find that it is the one noted before.

    Raises:
        RunError: the service has another key than when the run began.
        httpx.HTTPError: the service does not answer.
    """
    key = client.get("/v1/log/key").raise_for_status().json()["key"]
    path = out / KEY_FILE
    if not path.exists():
        files.write_atomically(path, f"{key}\n".encode())
    elif path.read_text().strip() != key:
        raise RunError(f"the log's key is not the one pinned in {path}: this is another log. Choose another OUT=.")


def pinned_key(out: Path) -> str:
    """Return the key that `pin_key` noted."""
    return (out / KEY_FILE).read_text().strip()


def save_log(client: httpx.Client, out: Path) -> None:
    """Save the log twice over: as lines for counting, and under its newest signed head for verifying.

    Raises:
        httpx.HTTPError: the service does not answer.
    """
    bundle = client.get("/v1/log/evidence").raise_for_status().content
    entries: list[str] = json.loads(bundle)["entries"]
    files.write_atomically(out / BUNDLE_FILE, bundle)
    files.write_atomically(out / LOG_FILE, "".join(f"{entry}\n" for entry in entries).encode())


def verify_bundle(service: Sequence[str], out: Path) -> str:
    """Verify the saved bundle with the pinned key and the receipts that the trainer kept; say what was verified.

    Args:
        service: how the label service's command line is started.
        out: the results folder.

    Raises:
        RunError: it does not hold; the message says why.
    """
    bundle, key = out / BUNDLE_FILE, out / KEY_FILE
    if not bundle.exists() or not key.exists():
        return "none: the run was made by a version that did not sign its log"
    said = verify_file(service, bundle, pinned_key(out), "--receipts", str(out / "trainer" / "receipts.jsonl"))
    in_log, in_bundle = (_entries(out / name) for name in (LOG_FILE, BUNDLE_FILE))
    if in_log != in_bundle:
        raise RunError(f"{out / LOG_FILE} is not the log that {bundle} holds. Do not trust this run.")
    return f"{said} ({bundle})"


def verify_file(service: Sequence[str], bundle: Path, key: str, *options: str) -> str:
    """Verify a bundle in a process of its own; return the last line that it says.

    Raises:
        RunError: it does not hold; the message says why.
    """
    command = [*service, "verify", str(bundle), "--key", key, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = (done.stdout or done.stderr).strip().splitlines() or ["the check said nothing"]
    if done.returncode:
        raise RunError(f"the evidence of {bundle.parent} does not hold: {said[-1]}. Do not trust this run.")
    return said[-1]


def _entries(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    entries: list[str] = json.loads(text)["entries"] if path.name == BUNDLE_FILE else text.splitlines()
    return entries
