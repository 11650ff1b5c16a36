"""A stand-in for `python -m trainer run`: asks for labels 0 to 9, one at a time, and goes on after a kill.

FAKE_TRAINER=fail ends with code 65 after half of them, FAKE_TRAINER=away with 69 (no service), and FAKE_TRAINER=slow
takes a while for each.
"""

import argparse
import hashlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

from trainer.records.run_records import EvaluationResult

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["run"])
parser.add_argument("--service")
parser.add_argument("--data", type=Path)
parser.add_argument("--out", type=Path)
parser.add_argument("--profile", default="stand-in")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--budget", type=int, default=10)
parser.add_argument("--device")
parser.add_argument("--log-key")
parser.add_argument("--strategy")
parser.add_argument("--target", type=float)
parser.add_argument("--pretrained", type=Path)
parser.add_argument("--resume", action="store_true")
given = parser.parse_args()

queries = given.out / "queries.jsonl"
if given.out.exists() != given.resume:
    sys.exit("--resume and the state of --out do not fit")
given.out.mkdir(exist_ok=True)
seen = {
    "environment": sorted(os.environ),
    "registration_token": os.environ.get("TRAINER_REGISTRATION_TOKEN"),
    "data": [path.name for path in given.data.iterdir()],
    "of": given.data.name,
    "pid": os.getpid(),
    "log_key": given.log_key,
    "strategy": given.strategy,
    "pretrained": None if given.pretrained is None else str(given.pretrained),
}
(given.out / "seen.json").write_text(json.dumps(seen))


def post(path, **body):
    """Ask the service, and keep its answer."""
    request = urllib.request.Request(given.service + path, json.dumps({"run": "run-1", **body}).encode())
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    with (given.out / "receipts.jsonl").open("a") as file:
        file.write(json.dumps({"answer": answer}) + "\n")
    return answer


if not given.resume:
    name = f"{given.profile} seed {given.seed}"
    post("/v1/runs", op="run-opened", outcome="opened", budget=given.budget, detail={"name": name})
kept = queries.read_text().splitlines() if queries.exists() else []
for label_id in range(len(kept), given.budget):
    (label,) = post("/v1/labels:query", ids=[label_id])["labels"]
    if os.environ.get("FAKE_TRAINER") == "slow":
        time.sleep(0.2)
    if os.environ.get("FAKE_TRAINER") == "fail" and label_id == 5:
        print("the fifth image is upside down", file=sys.stderr)
        sys.exit(65)
    if os.environ.get("FAKE_TRAINER") == "away" and label_id == 5:
        sys.exit(69)
    with queries.open("a") as file:
        query = {"order": label_id, "round": 0, **label, "strategy": "stand-in", "reason": "it is next"}
        file.write(json.dumps(query | {"charged": True, "asked_at": "2026-01-01T00:00:00Z"}) + "\n")
predictions = [0] * 10000
digest = hashlib.sha256(json.dumps(predictions, separators=(",", ":")).encode()).hexdigest()
detail = {"correct": 9062, "total": 10000, "evaluated_budget": None, "predictions_sha256": digest}
post("/v1/runs/run-1/evaluations", op="evaluation", outcome="evaluated", budget=given.budget, detail=detail)
counted = {"queries_counted_by_trainer": given.budget, "queries_in_log": given.budget}
counted |= {"distinct_labels_in_log": given.budget, "distinct_labels_revealed_to_anybody": given.budget}
evaluation = EvaluationResult.from_counts(9062, 10000).model_dump()
point = {"labels": given.budget, "stage_seconds": {"pretrain": 61.0, "finetune": 4.4}}
result = {"run_id": "run-1", "seed": given.seed, "profile": given.profile, "budget": given.budget}
result |= {"evaluation": evaluation, "stage_seconds": point["stage_seconds"], "dataset": {}, "versions": {}} | counted
result["points"] = [point | {"evaluation": evaluation}]
(given.out / "predictions.json").write_text(json.dumps(point | {"predictions": predictions}))
(given.out / "report.html").write_text("<p>report</p>")
profile = {"name": given.profile, "strategy": given.strategy, "rounds": [{"labels": given.budget}], "working_px": 32}
(given.out / "config.json").write_text(json.dumps({"profile": profile, "seed": given.seed, "target": given.target}))
(given.out / "result.json").write_text(json.dumps(result))
