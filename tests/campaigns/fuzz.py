"""Change evidence and receipts in one place at a time and see what `verify` accepts: `python -m tests.campaigns.fuzz`.

A changed field is dropped, exchanged, repeated, retyped or miswritten; a changed byte is flipped, cut or inserted. Each
change must be refused in a sentence, or leave what the documents say as it was, or be of a kind that
`docs/verifying.md` lists (`IGNORED`). Anything else, and any error but `VerificationError`, is a finding.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from label_service.log.entries import canonical_json
from label_service.log.kept_answers import parse_json, read_receipts
from label_service.log.merkle import VerificationError
from label_service.log.signed_note import Verifier
from label_service.log.verify import read_bundle, verify
from label_service.rotation import rotate_key
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.services import run_service

# What `verify` does not look at: a sentence of `docs/verifying.md`, and the places that it is about. A place is the
# path of names to it, without the numbers of list items; the fields of one line of receipts begin with `line`.
IGNORED = {
    "A line that is missing, stands twice, or stands in another place.": r"lines",
    "`at`, `call` and `request` of a line: the client's own notes.": r"line\.(at|call|request)\b.*",
    "Fields that it does not know.": r"line(\.answer(\.labels|\.dataset)?)?\.unknown",
    "`label_name`, and all of `dataset` but `pool_size`.": (
        r"line\.answer(\.labels)?\.label_name\b.*|line\.answer\.dataset\.(?!pool_size\b).*"
    ),
    "`opened_at` and `sealed_at`.": r"line\.answer\.(opened|sealed)_at\b.*",
    "An earlier head that is missing.": r"bundle\.heads",
    "Further signature lines of a signed tree head.": r"(bundle|line\.answer\.receipt)\.checkpoint\.further",
}
_BYTES_OF_JSON = b'"0,:[]{}\\ \n\x00\x80\xff-.eE'
_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 10**30, 1.5, "", "x", "\ud800", "\x1b[31m", [], {}, [None], {"x": 1}, [[]], {"id": 1},
)  # fmt: skip


@dataclass(frozen=True)
class Documents:
    """A log's evidence, the lines of a client's receipts, and the pinned key."""

    bundle: dict[str, Any]
    lines: list[dict[str, Any]]
    key: Verifier


@dataclass
class Tally:
    """What became of the changes.

    Attributes:
        refused: refused in a sentence.
        same: accepted, and the documents say the same as before.
        ignored: accepted and listed, by sentence.
        findings: anything else.
    """

    refused: int = 0
    same: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """Number of changes tried."""
        return self.refused + self.same + self.ignored.total() + len(self.findings)


def make_documents(folder: Path) -> Documents:
    """Let a real service answer all that it has receipts for, as a trainer would keep it.

    The log's key is replaced on the way, and the first one is the pinned one.

    Args:
        folder: empty, for data and database.
    """
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    lines: list[dict[str, Any]] = []

    def keep(call: str, answer: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in answer.items() if name != "token"}
        request = {"idempotency_key": "k", "ids": [1]}
        lines.append({"at": "2026-01-31T12:00:00+00:00", "call": call, "request": request, "answer": kept})
        return answer

    settings = Settings(data=make_idx_dataset(folder / "data"), other_data=True, database_url=url, port=0)
    with run_service(settings) as running:
        client, key = running.client, running.service.log.verifier
        run = keep(
            "run-opened", client.post("/v1/runs", json={"name": "r", "budget": 9, "evaluation_budgets": [3, 9]}).json()
        )
        token = {"Authorization": f"Bearer {run['token']}"}
        client.get("/label/9")
        for ids, idempotency_key in (([1, 2], "a"), ([3], "b"), ([2, 3], "c"), ([4, 5, 6], "d"), ([1, 2], "a")):
            headers = token | {"Idempotency-Key": idempotency_key}
            keep("query", client.post("/v1/labels:query", json={"ids": ids}, headers=headers).json())
    rotate_key(settings)
    with run_service(settings) as running:
        client = running.client
        for label_id in (7, 8, 4):
            keep("query", client.get(f"/label/{label_id}", headers=token).json())
        client.get("/label/9999", headers=token)
        client.post("/v1/labels:query", json={"ids": [20, 21, 22]}, headers=token)
        for budget, idempotency_key in ((3, "e"), (9, "f"), (3, "e")):
            body = {"predictions": [budget % 3] * 50, "budget": budget}
            headers = token | {"Idempotency-Key": idempotency_key}
            keep("evaluation", client.post(f"/v1/runs/{run['run_id']}/evaluations", json=body, headers=headers).json())
        client.get("/label/10")
        keep("seal", client.post(f"/v1/runs/{run['run_id']}:seal", headers=token).json())
        bundle = client.get("/v1/log/evidence").json()
    return Documents(bundle, lines, key)


def fuzz(documents: Documents, changes: int, seed: int, folder: Path) -> Tally:
    """Try changes and judge each.

    Args:
        documents: the honest ones.
        changes: how many.
        seed: of the choice of changes.
        folder: for the changed files.
    """
    rng, tally = random.Random(seed), Tally()
    bundle_path, receipts_path = folder / "evidence.json", folder / "receipts.jsonl"
    texts = {
        bundle_path: json.dumps(documents.bundle).encode(),
        receipts_path: _lines(documents.lines),
    }
    for path, text in texts.items():
        path.write_bytes(text)
    evidence, kept = read_bundle(bundle_path), read_receipts(receipts_path)
    verify(evidence, documents.key, kept)
    for _ in range(changes):
        path = rng.choice((bundle_path, receipts_path))
        honest: Any = documents.bundle if path == bundle_path else documents.lines
        what, text = _change(rng, honest, texts[path], lines=path == receipts_path)
        if text == texts[path]:
            continue
        path.write_bytes(text)
        try:
            if path == bundle_path:
                verify(read_bundle(path), documents.key, kept)
            else:
                verify(evidence, documents.key, read_receipts(path))
        except VerificationError:
            tally.refused += 1
        except Exception as error:
            tally.findings.append(f"{what}: {type(error).__name__}: {error}")
        else:
            _judge(tally, what, honest, text, lines=path == receipts_path)
    return tally


def _judge(tally: Tally, what: str, honest: Any, text: bytes, *, lines: bool) -> None:
    """Count an accepted change by what it did to the document."""
    if lines:
        changed: Any = [parse_json(line) for line in text.decode().removesuffix("\n").split("\n")]
        known = [canonical_json(line) for line in honest]
        rest = [line for line in changed if canonical_json(line) not in known]
        places = {"lines"} if not rest else set()
        if len(changed) == len(honest):
            pairs = list(zip(honest, changed, strict=True))
            places = {place for before, after in pairs for place in _differences("line", before, after)} or places
            if not rest:
                places = {"lines"} if any(canonical_json(a) != canonical_json(b) for a, b in pairs) else set()
        elif rest:
            places = {"more than one line"}
    else:
        places = _differences("bundle", honest, parse_json(text))
    if not places:
        tally.same += 1
        return
    for place in places:
        sentence = next((sentence for sentence, known in IGNORED.items() if re.fullmatch(known, place)), None)
        if sentence is None:
            tally.findings.append(f"{what}: accepted, and {place} is not on the list")
            return
    tally.ignored[sentence or ""] += 1


def _differences(place: str, before: Any, after: Any) -> set[str]:
    """Return the places at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = {f"{place}.{name}" for name in before.keys() - after.keys()}
        found |= {f"{place}.unknown" for _ in after.keys() - before.keys()}
        shared = before.keys() & after.keys()
        return found.union(*(_differences(f"{place}.{name}", before[name], after[name]) for name in shared))
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return set().union(*(_differences(place, *pair) for pair in zip(before, after, strict=True)))
    if isinstance(before, str) and isinstance(after, str) and (gap := before.find("\n\n")) > 0:
        signed, lines = before[: gap + 2], before[gap + 2 :].splitlines()
        if after.startswith(signed) and set(lines) < set(after[gap + 2 :].splitlines()):
            return {f"{place}.further"}
    return set() if canonical_json(before) == canonical_json(after) else {place}


def _change(rng: random.Random, honest: Any, text: bytes, *, lines: bool) -> tuple[str, bytes]:
    """Return a change in words, and the changed file."""
    if rng.random() < 0.3:
        return _change_bytes(rng, text)
    document = copy.deepcopy(honest)
    places = list(_places(document, ()))
    parent, name, path = rng.choice(places)
    value = parent[name]
    kind, changes = rng.choice(list(_changes(rng, parent, name, value).items()))
    changes()
    what = f"{kind} at {'.'.join(map(str, path))}"
    return what, _lines(document) if lines else json.dumps(document).encode()


def _places(value: Any, path: tuple[object, ...]) -> Iterator[tuple[Any, Any, tuple[object, ...]]]:
    """Yield every item of every list and object: its parent, its name or number, and its path."""
    names = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield value, name, (*path, name)
        yield from _places(value[name], (*path, name))


def _changes(rng: random.Random, parent: Any, name: Any, value: Any) -> dict[str, Callable[[], object]]:
    """Return the changes that fit a place, by their names."""

    def put(other: object) -> Callable[[], object]:
        return lambda: parent.__setitem__(name, other)

    sibling = rng.choice(list(parent if isinstance(parent, dict) else range(len(parent))))
    changes: dict[str, Callable[[], object]] = {
        "drop": lambda: parent.pop(name),
        "another value": put(rng.choice(_VALUES)),
        "a neighbour's value": put(parent[sibling]),
        "wrapped in a list": put([value]),
    }
    if isinstance(parent, list):
        changes["twice"] = lambda: parent.insert(name, value)
        changes["moved"] = lambda: parent.insert(sibling, parent.pop(name))
    else:
        changes["renamed"] = lambda: parent.__setitem__(f"{name}_", parent.pop(name))
        changes["unknown field"] = lambda: parent.__setitem__("unknown", value)
    if isinstance(value, bool):
        changes["not"] = put(not value)
        changes["as a number"] = put(int(value))
    elif isinstance(value, int | float):
        changes["one more"] = put(value + 1)
        changes["one less"] = put(value - 1)
        changes["another number"] = put(rng.randrange(-5, 300))
        changes["as text"] = put(str(value))
        changes["as yes or no"] = put(bool(value))
        changes["as a fraction"] = put(value + 0.5)
        changes["with a point"] = put(float(value))
    elif isinstance(value, str) and value:
        at = rng.randrange(len(value))
        near = chr(ord(value[at]) ^ (1 << rng.randrange(7)))
        changes["a character"] = put(value[:at] + near + value[at + 1 :])
        changes["the last character"] = put(value[:-1] + chr(ord(value[-1]) ^ (1 << rng.randrange(7))))
        changes["a character less"] = put(value[:at] + value[at + 1 :])
        changes["a character more"] = put(value[:at] + rng.choice(" \n=+A\u00e9\ud800\x1b") + value[at:])
        changes["the other case"] = put(value[:at] + value[at].swapcase() + value[at + 1 :])
        # The bits that base64 does not use, before the padding.
        changes["idle bits"] = put(re.sub(r".(?==+$)", lambda last: chr(ord(last[0]) + 1), value))
        changes["the end of a line more"] = put(f"{value}\n")
        changes["a signature more"] = put(f"{value}\N{EM DASH} witness.example AAAAAAAA\n")
    elif isinstance(value, list):
        changes["emptied"] = put([])
        changes["reversed"] = put(value[::-1])
        changes["an item more"] = put([*value, rng.choice(_VALUES)])
    return changes


def _change_bytes(rng: random.Random, text: bytes) -> tuple[str, bytes]:
    at = rng.randrange(len(text))
    kind = rng.choice(("flip", "cut", "insert", "end", "nest", "name twice", "lines moved"))
    match kind:
        case "flip":
            changed = text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :]
        case "cut":
            changed = text[:at] + text[at + rng.randrange(1, 9) :]
        case "insert":
            changed = text[:at] + bytes([rng.choice(_BYTES_OF_JSON)]) + text[at:]
        case "end":
            changed = text[:at]
        case "nest":
            depth = rng.choice((1, 2, 100_000))
            changed = text[:at] + b"[" * depth + text[at:]
        case "name twice":
            names = list(re.finditer(rb'[{,] ?("\w+": )', text))
            name = rng.choice(names)
            changed = (
                text[: name.start(1)] + name[1] + rng.choice((b"null, ", b"1, ", b'"x", ')) + text[name.start(1) :]
            )
        case _:
            lines = text.splitlines(keepends=True)
            line = lines.pop(rng.randrange(len(lines)))
            changed = b"".join([*lines[: (place := rng.randrange(len(lines) + 1))], line, *lines[place:]])
            changed = rng.choice((changed, b"".join(lines), text + line))
    return f"{kind} at byte {at}", changed


def _lines(documents: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in documents).encode()


def table(tally: Tally) -> str:
    """Return the tally as Markdown."""
    rows = [("refused in a sentence", tally.refused), ("accepted: says the same", tally.same)]
    rows += [(f"accepted: {sentence}", count) for sentence, count in sorted(tally.ignored.items())]
    lines = ["| what became of it | changes |", "|---|---|", *(f"| {what} | {count:,} |" for what, count in rows)]
    return "\n".join([*lines, "", f"{tally.changes:,} changes, {len(tally.findings)} findings."])


def main() -> None:
    """Print the tally and the findings; exit with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=25_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        documents = make_documents(Path(folder))
        tally = fuzz(documents, given.changes, given.seed, Path(folder))
    print(table(tally))
    for finding in tally.findings:
        print(finding)
    raise SystemExit(bool(tally.findings))


if __name__ == "__main__":
    main()
