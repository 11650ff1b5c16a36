"""A stand-in for `python -m label_service`: as little of prepare, serve, the log and verify as `make run` needs.

FAKE_SERVICE=die makes `serve` end at once with some last words; FAKE_KEY is the key of its log.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = os.environ.get("FAKE_KEY", "stand-in+0+key")


def prepare(options):
    source = options.source or options.data
    name = source.name if options.source else "stand-in data"
    for part in ("images", "labels"):
        (options.data / part).mkdir(parents=True, exist_ok=True)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.idx")}
    card = options.data / "dataset.json"
    if options.redraw is not None:
        print("re-drawn under", options.redraw, "from", options.redraw_from, flush=True)
    if not card.exists():
        card.write_text(json.dumps({"name": name, "files": files, "redraw_seed": None}))


def summary(log):
    entries = [json.loads(line) for line in log.splitlines()]
    ids = {label_id for entry in entries for label_id in entry["ids"]}
    counts = {"queries": sum(entry["charged"] for entry in entries), "evaluations": 1, "entries": len(entries)}
    run = {"run_id": "run-1", "distinct_labels": len(ids), **counts}
    return {"runs": [run], "distinct_labels_revealed_to_anybody": len(ids), **counts}


class Handler(BaseHTTPRequestHandler):
    log = Path()

    def do_GET(self):
        content = self.log.read_bytes() if self.log.exists() else b""
        bundle = {"key": KEY, "entries": content.decode().splitlines()}
        answers = {"/v1/log/evidence": bundle, "/v1/log/key": {"key": KEY}, "/v1/log/summary": summary(content)}
        self._answer(json.dumps(answers.get(self.path, {})).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "op" in asked:
            self._append(asked | {"ids": [], "charged": 0})
            return
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        held = {i for entry in map(json.loads, lines) if entry["run"] == asked["run"] for i in entry["ids"]}
        new = [i for i in asked["ids"] if i not in held]
        entry = {"op": "query", "run": asked["run"], "ids": asked["ids"], "charged": len(new)}
        entry["outcome"] = "revealed" if new else "replayed"
        self._append(entry, charged=len(new), labels=[{"id": i, "label": i % 3} for i in asked["ids"]])

    def _append(self, entry, **answer):
        text = json.dumps(entry)
        with self.log.open("a") as file:
            file.write(text + "\n")
        self._answer(json.dumps(answer | {"receipt": {"entry": text}}).encode())

    def _answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def serve(options):
    if os.environ.get("FAKE_SERVICE") == "die":
        sys.exit("the database is on fire")
    print("settings seen:", sorted(name for name in os.environ if name.startswith("LABEL_SERVICE_")), flush=True)
    token = os.environ.get("LABEL_SERVICE_REGISTRATION_TOKEN", "")
    print("registration token", hashlib.sha256(token.encode()).hexdigest(), flush=True)
    Handler.log = Path(options.database_url.removeprefix("sqlite:///")).with_suffix(".log")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


def verify(options):
    bundle = json.loads(options.bundle.read_text())
    if bundle["key"] != options.key:
        sys.exit("not verified: the bundle names another key")
    print(f"verified {len(bundle['entries'])} entries")


parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["prepare", "serve", "verify"])
parser.add_argument("bundle", type=Path, nargs="?")
parser.add_argument("--key")
parser.add_argument("--receipts", type=Path)
parser.add_argument("--data", type=Path)
parser.add_argument("--from", dest="source", type=Path)
parser.add_argument("--other-data", action="store_true")
parser.add_argument("--redraw", type=int)
parser.add_argument("--redraw-from")
parser.add_argument("--database-url")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
given = parser.parse_args()
{"prepare": prepare, "serve": serve, "verify": verify}[given.command](given)
