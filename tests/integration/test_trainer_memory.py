"""The memory that a run foresees, beside what its process took at its peak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.datasets import make_idx_dataset
from tests.support.service_process import run_process
from trainer.profiles import SMOKE
from trainer.run.memory import Sizes, needed_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="MEMORY NOT COMPARED: the libraries of a GPU take more")
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="MEMORY NOT COMPARED: this system does not tell a child's peak")
@pytest.mark.parametrize(("pool", "side"), [(2000, 28), (60, 8)])
def test_a_run_takes_no_more_memory_than_it_foresees(tmp_path: Path, pool: int, side: int) -> None:
    """Foreseen is at least what a smoke run took, and not a third more."""
    data = make_idx_dataset(tmp_path / "data", pool=pool, test=100, side=side)
    with run_process(data, tmp_path) as (_, url):
        command = [sys.executable, "-m", "trainer", "run", "--profile", "smoke", "--device", "cpu"]
        given = ["--data", str(data / "images"), "--out", str(tmp_path / "out"), "--service", url]
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen([*command, *given], stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 0, text
    sizes = Sizes(pool=pool, test=100, height=side, width=side, channels=1, classes=3)
    foreseen = needed_bytes(sizes, SMOKE.with_budget(min(SMOKE.budget, pool // 2)))
    assert f"memory: about {foreseen / 2**30:.1f} GB needed" in text
    used = usage.ru_maxrss * 1024
    assert used <= foreseen <= 1.33 * used, (used / 2**30, foreseen / 2**30)
