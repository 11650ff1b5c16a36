"""One question to the label service and its answer as it came, for the files that keep both as evidence.

OUT/receipts.jsonl holds what was accepted and OUT/receipts-refused.jsonl what the witness refused. Both may hold
labels, so only their owner reads them; neither ever holds a token.
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
    """A question and its answer.

    Attributes:
        call: What was asked for: `run-opened`, `query`, `evaluation`, `seal` or `log-key`.
        request: What identifies the question.
        raw: The answer's body, JSON.
    """

    call: str
    request: Mapping[str, object]
    raw: bytes

    def keep(self, path: Path, **more: str) -> None:
        """Append it to a file, on the disk before this returns.

        Args:
            path: JSON-lines file, mode 0600.
            more: Further fields of the line, such as why it was refused.

        Raises:
            RecordsUnwritable: The file cannot be written.
        """
        answer = json.loads(self.raw)
        if isinstance(answer, dict):
            # The token of a run that was opened is in run.json and nowhere else.
            answer.pop("token", None)
        line = {"at": datetime.now(UTC).isoformat(), "call": self.call, "request": dict(self.request), **more}
        append_lines(path, [json.dumps(line | {"answer": answer}, separators=(",", ":"))], mode=OWNER_ONLY)
