"""The trainer's own oracle over labels in memory: no service, and nothing is proved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from trainer.oracle.answers import QueryAnswer, RevealedLabel
from trainer.records.run_records import read_queries
from trainer.run.label_oracle import LabelOracle

_RUN = "in-memory"


class _Answers:
    """Answers queries as the label service would; an image that is asked for again counts once."""

    def __init__(self, labels: Tensor, asked: set[int]) -> None:
        self._labels, self._asked = labels.tolist(), asked

    def query(self, ids: Sequence[int], *, idempotency_key: str) -> QueryAnswer:
        self._asked.update(ids)
        labels = [RevealedLabel(id=row, label=self._labels[row], label_name="", charged=True) for row in ids]
        return QueryAnswer(labels=tuple(labels), charged=len(ids), queries=len(self._asked), remaining=0, run_id=_RUN)


def oracle_in_memory(labels: Tensor, classes: int, out: Path) -> LabelOracle:
    """Make an oracle that knows the labels of a pool, int64 [N], and goes on with the answers that a folder has."""
    answers = _Answers(labels, {record.id for record in read_queries(out)})
    return LabelOracle(cast(Any, answers), _RUN, out, tuple(map(str, range(classes))), len(labels))
