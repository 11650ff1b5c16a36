"""The schedule has its shape. What the loop trains, and how it resumes: test_pretrain.py and test_finetune.py."""

from __future__ import annotations

import dataclasses

import pytest

from trainer.learning.epochs import Schedule

SCHEDULE = Schedule(
    name="x", title="x", rows=1000, batch=10, epochs=10, max_steps=None, learning_rate=0.1, warmup_steps=100
)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    """Linear over the warm-up, half the peak half-way, near zero at the end, never above the peak."""
    rates = [SCHEDULE.learning_rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[49] == pytest.approx(0.05, rel=0.01)
    assert rates[500] == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-6
    assert max(rates) <= 0.1 and rates.index(max(rates)) == 99


@pytest.mark.parametrize(
    ("rows", "max_steps", "steps"), [(1000, None, 100), (1009, None, 100), (1000, 7, 7), (50, 7, 5), (5, 7, 1)]
)
def test_an_epoch_has_the_whole_batches_of_the_pool_or_fewer(rows: int, max_steps: int | None, steps: int) -> None:
    """A limit shortens an epoch; a pool smaller than a batch is one step."""
    assert dataclasses.replace(SCHEDULE, rows=rows, max_steps=max_steps).steps == steps
