"""The evidence of a run: the log's key, pinned before the first query, and a bundle, saved after the last.

The bundle is checked by `label_service verify`, a process of its own that reads three files and nothing else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from scripts.errors import RunError
from trainer.errors import printable
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.records.files import replace_file

KEY_FILE = "log-key.txt"
BUNDLE_FILE = "evidence.json"
LOG_FILE = "query-log.ndjson"
SUMMARY_FILE = "query-log-summary.json"
# The longest wait for the next part of an answer; the service is on this machine.
EXPORT_TIMEOUT_S = 60.0


def pin_key(url: str, out: Path) -> None:
    """Save the log's public key, or check that it is the saved one or says to have replaced it.

    Whether the saved key has signed that, the trainer checks, and `verify`.

    Raises:
        RunError: the service has another key than when the run began, or does not answer.
    """
    answer = json.loads(_get(url, "/v1/log/key"))
    key, path = answer["key"], out / KEY_FILE
    if not path.exists():
        replace_file(path, f"{key}\n")
    elif pinned_key(out) not in [key, *(rotation["old_key"] for rotation in answer.get("rotations", []))]:
        raise RunError(f"the log's key is not the one pinned in {path}: this is another log. Choose another OUT=.")


def pinned_key(out: Path) -> str:
    """Return the key that `pin_key` saved."""
    # It becomes a word of a command line, which can hold no zero byte and not everything that a file can.
    return printable((out / KEY_FILE).read_text(errors="replace").strip())


def save_log(url: str, out: Path) -> None:
    """Save the query log as lines, as a bundle under its newest signed head, and as a summary.

    The summary is written last: where it is, the run is finished.

    Raises:
        RunError: the service does not answer.
    """
    summary = _get(url, "/v1/log/summary")
    unfinished = out / f"{BUNDLE_FILE}.part"
    with _reading(url, "/v1/log/evidence") as bundle, unfinished.open("wb") as file:
        # A long log does not fit into memory.
        file.writelines(bundle.iter_bytes())
    entries: list[str] = json.loads(unfinished.read_bytes())["entries"]
    unfinished.replace(out / BUNDLE_FILE)
    replace_file(out / LOG_FILE, "".join(f"{entry}\n" for entry in entries))
    replace_file(out / SUMMARY_FILE, summary)


def verify_run(service: Sequence[str], out: Path) -> str:
    """Verify the saved bundle with the pinned key and the trainer's receipts.

    Args:
        service: how the label service's command line is started.
        out: the results folder.

    Returns:
        What was verified, for people.

    Raises:
        RunError: the evidence does not hold; the message says why.
    """
    verdict = verify_bundle(service, out, "--receipts", str(out / "trainer" / RECEIPTS_FILE))
    if (out / LOG_FILE).read_bytes() != "".join(f"{entry}\n" for entry in _entries(out)).encode():
        raise RunError(f"{out / LOG_FILE} is not the log that {out / BUNDLE_FILE} holds. Do not trust this run.")
    return verdict


def read_entries(out: Path) -> list[dict[str, Any]]:
    """Return the entries of a saved bundle that was verified."""
    return [json.loads(entry) for entry in _entries(out)]


def _entries(out: Path) -> list[str]:
    entries: list[str] = json.loads((out / BUNDLE_FILE).read_bytes())["entries"]
    return entries


def verify_bundle(service: Sequence[str], folder: Path, *flags: str) -> str:
    """Verify a folder's bundle with its pinned key, in a process of its own; return the last line of the verdict.

    Raises:
        RunError: the evidence does not hold; the message says why.
    """
    files = [folder / BUNDLE_FILE, folder / KEY_FILE, *(Path(flag) for flag in flags if not flag.startswith("--"))]
    command = [*service, "verify", str(folder / BUNDLE_FILE), "--key", pinned_key(folder), *flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines() or ["the check printed nothing"]
    if done.returncode:
        names = " and ".join(map(str, files))
        raise RunError(printable(f"the evidence in {names} does not hold: {lines[-1]}. Do not trust this run."))
    return lines[-1]


def _get(url: str, path: str) -> bytes:
    """Return what the service answers; raises as `_reading`."""
    with _reading(url, path) as answer:
        return answer.read()


@contextmanager
def _reading(url: str, path: str) -> Iterator[httpx.Response]:
    """Ask the service, and let its answer be read as it comes.

    Raises:
        RunError: it does not answer, or not to the end.
    """
    # trust_env=False: a proxy setting must not come between two programs on one machine.
    try:
        with (
            httpx.Client(base_url=url, trust_env=False, timeout=EXPORT_TIMEOUT_S) as client,
            client.stream("GET", path) as answer,
        ):
            yield answer.raise_for_status()
    except httpx.HTTPError as error:
        raise RunError(
            f"{path} of the service cannot be read from {url} ({error}); run the same command again."
        ) from error
