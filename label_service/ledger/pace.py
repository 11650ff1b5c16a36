"""Rate limits in the memory of one worker: how fast each run, or each group of runs, may go."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from label_service.errors import TooManyRequests
from label_service.ledger.limits import TokenBucket


@dataclass
class Pace:
    """One rate limit: a bucket for each key.

    Attributes:
        size: what flows in each period, and the most that can be saved up; None for no limit.
        period_s: length of the period.
        refusal: the sentence of the refusal, without the time to wait.
    """

    size: int | None
    period_s: float
    refusal: str
    _buckets: dict[str, TokenBucket] = field(default_factory=dict, init=False)

    def refuse(self, key: str, amount: int = 1) -> TooManyRequests | None:
        """Take an amount, or return the refusal. It is no entry of the log, or it would fill what it protects."""
        if self.size is None:
            return None
        now_s = time.monotonic()
        bucket = self._buckets.get(key) or TokenBucket(self.size, float(self.size), now_s, self.period_s)
        self._buckets[key], wait_s = bucket.take(amount, now_s)
        if not wait_s:
            return None
        return TooManyRequests(
            f"{self.refusal}; try again in {wait_s:.0f} s.", headers={"Retry-After": f"{wait_s:.0f}"}
        )
