"""The memory that a run foresees, beside what its process took at its peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.datasets import make_idx_dataset
from tests.support.service_process import run_process
from trainer.profiles import SMOKE
from trainer.run.memory import Sizes, needed_bytes

# A process of its own: Linux counts the memory of the process that starts another as the other's, too.
_PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="MEMORY NOT COMPARED: the libraries of a GPU take more")
@pytest.mark.parametrize(("pool", "side"), [(2000, 28), (60, 8)])
def test_a_run_takes_no_more_memory_than_it_foresees(tmp_path: Path, pool: int, side: int) -> None:
    """Foreseen is at least what a smoke run took, and not a third more."""
    data = make_idx_dataset(tmp_path / "data", pool=pool, test=100, side=side)
    with run_process(data, tmp_path) as (_, url):
        command = [sys.executable, "-m", "trainer", "run", "--profile", "smoke", "--device", "cpu"]
        given = ["--data", str(data / "images"), "--out", str(tmp_path / "out"), "--service", url]
        done = subprocess.run([sys.executable, "-c", _PEAK, *command, *given], capture_output=True, text=True)
    text = done.stderr
    assert done.returncode == 0, text
    sizes = Sizes(pool=pool, test=100, height=side, width=side, channels=1, classes=3)
    foreseen = needed_bytes(sizes, SMOKE.with_budget(min(SMOKE.budget, pool // 2)))
    assert f"memory: about {foreseen / 2**30:.1f} GB needed" in text
    used = 1024 * int(done.stdout.splitlines()[-1])
    assert used <= foreseen <= 1.33 * used, (used / 2**30, foreseen / 2**30)
