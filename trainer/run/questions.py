"""The label service as the active loop sees it: a batch of ids goes out, answers are on disk before they are used.

Before it asks, the loop writes what it is about to ask to OUT/pending.json with an idempotency key. A run killed
between question and answer asks the same again under the same key: nothing is chosen anew and nothing charged twice.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from trainer.acquisition import explain
from trainer.acquisition.state import PoolState
from trainer.errors import DataError, ServiceProtocolError
from trainer.oracle.client import LabelClient
from trainer.records.files import replace_file
from trainer.records.run_records import QueryRecord, append_queries, read_queries

_PENDING_FILE = "pending.json"

log = logging.getLogger(__name__)


class _PendingQuery(BaseModel):
    """One image about to be asked, and what was believed of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    reason: str
    predicted: int | None
    confidence: float | None


class _PendingBatch(BaseModel):
    """A round's question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    round: int
    strategy: str
    queries: tuple[_PendingQuery, ...]


class Oracle:
    """Asks the service for one run and keeps the answers in OUT/queries.jsonl."""

    def __init__(
        self, client: LabelClient, run_id: str, out: Path, class_names: tuple[str, ...], pool_size: int
    ) -> None:
        """Take up the run where its files left it; a batch left pending is asked again at once.

        Args:
            client: carries the run's token.
            run_id: the run.
            out: the run's folder.
            class_names: by class number.
            pool_size: images in the pool, N.
        """
        self._client = client
        self._run_id = run_id
        self._out = out
        self.class_names = class_names
        self._pool_size = pool_size
        self.records: list[QueryRecord] = read_queries(out)
        pending = self._read_pending()
        if pending is not None:
            log.info("asking again what was pending when the run stopped (%d labels)", len(pending.queries))
            self._ask_pending(pending)

    @property
    def queries(self) -> int:
        """Charged answers received so far: the trainer's own count."""
        return sum(record.charged for record in self.records)

    def answered(self, before_round: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ids and labels, int64 [L] each, of the rounds before `before_round`."""
        known = [(record.id, record.label) for record in self.records if record.round < before_round]
        pairs = torch.tensor(known, dtype=torch.long, device=device).view(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def has_answered(self, round_number: int) -> bool:
        """Tell whether a round's labels are all here."""
        return any(record.round == round_number for record in self.records)

    def ask(self, round_number: int, strategy: str, chosen: Tensor, state: PoolState) -> None:
        """Ask for a round's labels.

        Args:
            round_number: from 0; not asked before.
            strategy: that chose them.
            chosen: int64 [batch], unlabelled indices.
            state: what they were chosen from; explains the choice.

        Raises:
            ServiceError: as `LabelClient.query`.
        """
        queries = []
        for index in chosen.tolist():
            predicted = confidence = None
            if state.beliefs is not None:
                value, guess = state.beliefs[index].max(0)
                predicted, confidence = int(guess), min(1.0, float(value))
            queries.append(
                _PendingQuery(
                    id=index,
                    reason=explain(state, index, self.class_names),
                    predicted=predicted,
                    confidence=confidence,
                )
            )
        batch = _PendingBatch(run_id=self._run_id, round=round_number, strategy=strategy, queries=tuple(queries))
        replace_file(self._out / _PENDING_FILE, batch.model_dump_json() + "\n")
        self._ask_pending(batch)

    def _ask_pending(self, batch: _PendingBatch) -> None:
        answer = self._client.query(
            [query.id for query in batch.queries], idempotency_key=f"{batch.run_id}-round-{batch.round}"
        )
        labels = {label.id: label for label in answer.labels}
        first = sum(record.round < batch.round for record in self.records)
        now = datetime.now(UTC)
        append_queries(
            self._out,
            [
                QueryRecord(
                    order=first + offset,
                    round=batch.round,
                    id=query.id,
                    strategy=batch.strategy,
                    reason=query.reason,
                    predicted=query.predicted,
                    confidence=query.confidence,
                    label=labels[query.id].label,
                    charged=labels[query.id].charged,
                    asked_at=now,
                )
                for offset, query in enumerate(batch.queries)
            ],
        )
        self.records = read_queries(self._out)
        (self._out / _PENDING_FILE).unlink(missing_ok=True)
        if answer.queries != self.queries:
            raise ServiceProtocolError(
                f"the label service counts {answer.queries} queries of this run where the trainer received "
                f"{self.queries}; somebody else is asking under the run's token, so its count cannot be trusted"
            )

    def _read_pending(self) -> _PendingBatch | None:
        path = self._out / _PENDING_FILE
        try:
            batch = _PendingBatch.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path} is damaged; the run cannot know what it was asking, so begin a new --out"
            ) from error
        if batch.run_id != self._run_id or any(not 0 <= query.id < self._pool_size for query in batch.queries):
            raise DataError(f"{path} belongs to another run; begin a new --out")
        return batch
