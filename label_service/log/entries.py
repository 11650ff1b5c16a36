"""Log entries: their kinds, their outcomes, and their exact bytes.

The bytes of an entry are its canonical JSON: keys sorted, no white space, ASCII only. The service stores, serves and
exports these bytes and never rebuilds them from other columns, so that their hash stays the same.
`label_service.ledger.append` writes the fields, and `docs/service.md` describes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

ENTRY_VERSION = 2

# The run that requests without a token belong to.
GUEST = "guest"

# `token-created` and `token-revoked` concern no run; like `budget-changed`, they stand under the guest's.
Op = Literal[
    "run-opened", "run-sealed", "budget-changed", "token-created", "token-revoked", "key-rotated", "query", "evaluation"
]

# What the entry of a run says that the operator's registration token opened; no team's token has this name.
REGISTRATION = "registration"

# Outcomes of requests that were granted; any other outcome is the code of the error that refused the request.
DONE = ("opened", "sealed", "changed", "created", "revoked", "rotated", "revealed", "replayed", "evaluated")


# Made once: making it takes a third of the time of writing an entry.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Entry:
    """A stored entry: its number and its exact bytes."""

    seq: int
    data: bytes


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the one byte string that stands for a JSON value: sorted keys, compact, ASCII."""
    return _ENCODER.encode(value).encode("ascii")


def canonical_sha256(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the SHA-256 of the byte string that stands for a JSON value, in lower-case hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def now() -> str:
    """Return the time as RFC 3339 in UTC with microseconds, such as 2026-01-31T12:00:00.000000Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
