"""How the service's messages and its access log are written to stderr: as text, or as one JSON object a line.

What they say is decided where they are written: none has a label, a token, a header or a query string. Both formats
show the same facts.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

ACCESS_LOG = "label_service.access"


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON, ASCII, so that nothing that a client sent can break the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name == ACCESS_LOG and isinstance(record.args, Mapping):
            # Its parts have names, and the text would only repeat them.
            line |= record.args
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(log_format: Literal["text", "json"]) -> None:
    """Send the service's messages and access log to stderr, in the format that the operator chose."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if log_format == "json" else text)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    logging.getLogger("label_service").setLevel(logging.INFO)
    # The format uses none of these fields; the logging module documents that leaving them out saves time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
