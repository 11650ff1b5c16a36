"""One request to the label service and its answer, for the files that keep both as evidence.

OUT/receipts.jsonl holds the accepted answers and OUT/receipts-refused.jsonl those that the witness refused. Both may
hold labels, so only their owner can read them. Neither ever holds a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer.records.files import OWNER_ONLY, append_lines

RECEIPTS_FILE = "receipts.jsonl"
REFUSED_FILE = "receipts-refused.jsonl"


@dataclass(frozen=True)
class Exchange:
    """A request and its answer.

    Attributes:
        call: `run-opened`, `query`, `evaluation`, `seal` or `log-key`.
        request: What identifies the request.
        raw: Body of the answer, JSON.
    """

    call: str
    request: Mapping[str, object]
    raw: bytes

    def keep(self, path: Path, **more: str) -> None:
        """Append the exchange, with further fields, to a JSON-lines file (mode 0600), and wait until the disk has it.

        Raises:
            RecordsUnwritable: The file cannot be written.
        """
        answer = json.loads(self.raw)
        if isinstance(answer, dict):
            # The token of a new run belongs in run.json and nowhere else.
            answer.pop("token", None)
        line = {"at": datetime.now(UTC).isoformat(), "call": self.call, "request": dict(self.request), **more}
        append_lines(path, [json.dumps(line | {"answer": answer}, separators=(",", ":"))], mode=OWNER_ONLY)
