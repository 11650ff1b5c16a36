"""The oracle of active learning: asks the label service for a round's labels and keeps the answers.

A question is written to OUT/pending.json before it is asked. A run killed between question and answer asks the same
question again under the same idempotency key: nothing is chosen anew, and nothing is charged twice.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from trainer.acquisition import explain
from trainer.acquisition.state import PoolState
from trainer.errors import DataError, ServiceProtocolError
from trainer.oracle.client import LabelClient
from trainer.records.files import read_file, replace_file
from trainer.records.run_records import QueryRecord, Record, append_queries, read_queries

_PENDING_FILE = "pending.json"

log = logging.getLogger(__name__)


class _PendingQuery(Record):
    """An image to ask for, and the belief about it."""

    id: int
    reason: str
    predicted: int | None
    confidence: float | None


class _PendingBatch(Record):
    """The images of a round, to ask for together."""

    run_id: str
    round: int
    strategy: str
    queries: tuple[_PendingQuery, ...]


class LabelOracle:
    """Asks for the labels of one run and keeps them in OUT/queries.jsonl.

    Attributes:
        class_names: by class number.
        records: all answers so far, in order.
    """

    def __init__(
        self, client: LabelClient, run_id: str, out: Path, class_names: tuple[str, ...], pool_size: int
    ) -> None:
        """Read the answers so far, and ask again for a batch that was left pending; the client carries the token.

        Raises:
            DataError: a file is damaged or another run's.
            ServiceError: as `LabelClient.query`.
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
        """Number of charged answers, by the trainer's own count."""
        return sum(record.charged for record in self.records)

    def answered(self, before_round: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ids and labels of the rounds before `before_round`, int64 [L] each."""
        known = [(record.id, record.label) for record in self.records if record.round < before_round]
        pairs = torch.tensor(known, dtype=torch.long, device=device).view(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def has_answered(self, round_number: int) -> bool:
        """Tell whether a round was answered; a batch is answered whole or not at all."""
        return any(record.round == round_number for record in self.records)

    def ask(self, round_number: int, strategy: str, chosen: Tensor, state: PoolState) -> None:
        """Ask for the labels of a round that was not asked before.

        The chosen images are unlabelled indices, int64 [batch]. The state, that of the pool before asking, gives the
        guess and the reason that are recorded.

        Raises:
            ServiceError: as `LabelClient.query`.
            RecordsUnwritable: question or answer cannot be written.
        """
        queries = []
        for index in chosen.tolist():
            predicted = confidence = None
            if state.beliefs is not None:
                value, guess = state.beliefs[index].max(0)
                predicted, confidence = int(guess), min(1.0, float(value))
            reason = explain(state, index, self.class_names)
            queries.append(_PendingQuery(id=index, reason=reason, predicted=predicted, confidence=confidence))
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
                    strategy=batch.strategy,
                    label=labels[query.id].label,
                    charged=labels[query.id].charged,
                    asked_at=now,
                    **query.model_dump(),
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
        damage = "is damaged; the run cannot know what it was asking, so begin a new --out"
        batch = read_file(path, _PendingBatch.model_validate_json, damage)
        if batch is None:
            return None
        if batch.run_id != self._run_id or any(not 0 <= query.id < self._pool_size for query in batch.queries):
            raise DataError(f"{path} belongs to another run; begin a new --out")
        return batch
