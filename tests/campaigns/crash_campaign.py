"""Kill the service at random moments under load and count what is lost: `python -m tests.campaigns.crash_campaign`.

All rounds use one database. In each round many clients ask for labels (single labels, batches, and again the requests
that the kill before cut off) until `kill -9` ends the service. Then the service starts again, and the campaign looks up
every acknowledged answer in the log. At the end it verifies the evidence offline with every answer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.signed_note import Verifier
from label_service.log.verify import verify
from tests.support.datasets import make_idx_dataset
from tests.support.service_process import start, stop_at_once

POOL = 60_000


@dataclass
class Tally:
    """What the campaign has seen.

    Attributes:
        answers: acknowledged answers with labels, in the order of their arrival.
        unanswered: requests that got no answer, by idempotency key: the number of the run, and the ids.
        restarts_s: time from each start of the process to its first ready answer.
        unexpected: answers that are neither labels nor a 503.
        lost: acknowledged answers whose entry is missing from the log or changed.
        unlogged: labels in answers without an entry that reveals them to the run.
        doubled: labels charged more than once to a run, and counts that contradict one another.
    """

    answers: list[dict[str, Any]] = field(default_factory=list)
    unanswered: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    restarts_s: list[float] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    lost: int = 0
    unlogged: int = 0
    doubled: int = 0


class Clients:
    """Client threads that ask for labels until the service dies."""

    def __init__(self, base_url: str, tokens: list[str], count: int, seed: int, tally: Tally, ids: list[int]) -> None:
        self._base_url, self._tokens, self._tally, self._ids = base_url, tokens, tally, ids
        self._lock, self._stop = threading.Lock(), threading.Event()
        # Requests of the round before: they are asked again first, under the same key.
        self._again = list(tally.unanswered.items())
        tally.unanswered.clear()
        self._threads = [
            threading.Thread(target=self._ask, args=(random.Random(seed * 1000 + number), f"{seed}-{number}"))
            for number in range(count)
        ]

    def start(self) -> None:
        """Start every client."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Let each client finish its current request, and wait for all of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for key, question in self._again:
            self._tally.unanswered.setdefault(key, question)

    def _question(self, rng: random.Random, name: str, number: int) -> tuple[str, tuple[int, list[int]]]:
        with self._lock:
            if self._again:
                return self._again.pop()
            kind = rng.random()
            run = rng.randrange(len(self._tokens))
            if kind < 0.2 and self._tally.answers:  # labels that a run has already: free for that run, new to others
                ids = [label["id"] for label in rng.choice(self._tally.answers)["labels"]]
            else:
                ids = [self._ids.pop() for _ in range(rng.randint(2, 10) if kind > 0.9 else 1)]
        return f"key-{name}-{number}", (run, ids)

    def _ask(self, rng: random.Random, name: str) -> None:
        with httpx.Client(base_url=self._base_url, timeout=10.0) as client:
            number = 0
            while not self._stop.is_set():
                key, (run, ids) = self._question(rng, name, number)
                number += 1
                headers = {"Authorization": f"Bearer {self._tokens[run]}", "Idempotency-Key": key}
                try:
                    answer = client.post("/v1/labels:query", json={"ids": ids}, headers=headers)
                except httpx.TransportError:
                    with self._lock:
                        self._tally.unanswered[key] = (run, ids)
                    return
                if answer.status_code == 200:
                    with self._lock:
                        self._tally.answers.append(answer.json())
                elif answer.status_code == 503:
                    with self._lock:
                        self._tally.unanswered[key] = (run, ids)
                else:
                    with self._lock:
                        self._tally.unexpected.append(f"{answer.status_code}: {answer.text[:300]}")


def check(client: httpx.Client, tally: Tally) -> int:
    """Compare every acknowledged answer with the log; return the number of entries."""
    lines = client.get("/v1/log/export.ndjson").text.splitlines()
    revealed: dict[str, Counter[int]] = {}
    charged: Counter[str] = Counter()
    for line in lines:
        entry = json.loads(line)
        charged[entry["run"]] += entry["charged"]
        if entry["outcome"] in ("revealed", "replayed"):
            seen = revealed.setdefault(entry["run"], Counter())
            new = [label_id for label_id in entry["ids"] if label_id not in seen]
            tally.doubled += len(new) != entry["charged"]
            seen.update(entry["ids"])
    for answer in tally.answers:
        receipt = answer["receipt"]
        tally.lost += receipt["index"] >= len(lines) or lines[receipt["index"]] != receipt["entry"]
        seen = revealed.get(answer["run_id"], Counter())
        tally.unlogged += sum(label["id"] not in seen for label in answer["labels"])
    for run in client.get("/v1/runs").json()["runs"]:
        distinct = len(revealed.get(run["run_id"], ()))
        tally.doubled += not run["queries"] == charged[run["run_id"]] == distinct
        tally.doubled += run["queries"] > run["budget"]
    return len(lines)


def campaign(folder: Path, rounds: int, clients: int, seed: int, show_progress: bool = True) -> tuple[Tally, int, int]:
    """Run the campaign; return the tally, the number of entries, and the number of receipts that `verify` accepted."""
    data = make_idx_dataset(folder / "data", pool=POOL, test=10, classes=10, side=1)
    rng, tally, tokens = random.Random(seed), Tally(), []
    ids = list(range(POOL))
    rng.shuffle(ids)
    key, entries, started_s = "", 0, time.monotonic()
    process: subprocess.Popen[bytes] | None = None
    for number in range(rounds + 1):
        begun_s = time.monotonic()
        process, base_url = start(data, folder)
        tally.restarts_s.append(time.monotonic() - begun_s)
        with httpx.Client(base_url=base_url, timeout=60.0) as client:
            if not tokens:
                key = client.get("/v1/log/key").json()["key"]
                opened = [client.post("/v1/runs", json={"name": "crash", "budget": POOL}).json() for _ in range(3)]
                tokens = [run["token"] for run in opened]
            entries = check(client, tally)
            if number == rounds or len(ids) < 50 * clients:
                evidence = Evidence.model_validate(client.get("/v1/log/evidence").json())
                break
        load = Clients(base_url, tokens, clients, seed + number, tally, ids)
        load.start()
        time.sleep(rng.uniform(0.02, 0.6))
        # On a slow machine every kill may come before any answer, and would then show nothing: the last one waits.
        patience_s = time.monotonic() + 30
        while number == rounds - 1 and not tally.answers and time.monotonic() < patience_s:
            time.sleep(0.01)
        stop_at_once(process)
        load.join()
        if show_progress:
            left_s = (time.monotonic() - started_s) / (number + 1) * (rounds - number - 1)
            print(f"\r{number + 1} of {rounds} rounds, {len(tally.answers)} answers, {left_s:.0f} s left ", end="")
    process.terminate()
    process.wait()
    kept = [KeptAnswer.model_validate(answer) for answer in tally.answers]
    verdict = verify(evidence, Verifier.from_vkey(key), kept)
    return tally, entries, verdict.receipts


def main() -> None:
    """Run and print a table; exit with 1 if anything was lost, doubled or unlogged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally, entries, receipts = campaign(Path(folder), given.rounds, given.clients, given.seed)
    restarts = tally.restarts_s[1:]
    for answer in tally.unexpected:
        print(f"\nunexpected: {answer}")
    print("\n| kills | clients | answers | entries | receipts verified | lost | unlogged | doubled | restart |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    print(
        f"| {len(restarts)} | {given.clients} | {len(tally.answers):,} | {entries:,} | {receipts:,} | {tally.lost} "
        f"| {tally.unlogged} | {tally.doubled} | {statistics.median(restarts):.1f} s, at most {max(restarts):.1f} s |"
    )
    raise SystemExit(bool(tally.unexpected or tally.lost or tally.unlogged or tally.doubled))


if __name__ == "__main__":
    main()
