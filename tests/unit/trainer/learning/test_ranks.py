"""A batch has a part for each rank, and a serving rank is silent; what ranks compute: the integration tests."""

from __future__ import annotations

import logging

import pytest
import torch

from trainer.errors import ConfigError
from trainer.learning.ranks import by_rows, everywhere, parts_by_rank
from trainer.records.progress import progress


def test_a_batch_is_split_evenly() -> None:
    """No two ranks' parts differ by more than one row, and together they are the batch."""
    parts = parts_by_rank(torch.arange(10), 4)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_too_many_processes_for_a_batch_are_refused() -> None:
    """Normalisation needs two rows in each part."""
    with pytest.raises(ConfigError, match="3 processes are too many for 5 images a step"):
        parts_by_rank(torch.arange(5), 3)


def test_a_process_alone_calls_functions_as_they_are() -> None:
    """Nothing is sent or split where no other process is."""
    rows = torch.arange(6)

    @everywhere("own")
    def add(first: int, *, own: int = 0) -> int:
        return first + own

    assert add(1, own=2) == 3
    assert by_rows(lambda rows, factor: (rows * factor,), rows, 3)[0].tolist() == [0, 3, 6, 9, 12, 15]


def test_a_serving_rank_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Two bars in one terminal would overwrite each other; the items come all the same."""
    moments = iter(range(0, 1000, 100))
    logging.disable()
    try:
        assert list(progress("abc", 3, "working", clock=lambda: next(moments))) == ["a", "b", "c"]
    finally:
        logging.disable(logging.NOTSET)
    assert capsys.readouterr() == ("", "")
    assert next(moments) == 0, "it does not even look at the time"
