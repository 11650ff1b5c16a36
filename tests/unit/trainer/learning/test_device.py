"""The device is found or refused with a sentence, and each purpose has its own randomness."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.errors import ConfigError
from trainer.learning import device as device_module
from trainer.learning.device import (
    arithmetic_on,
    derived_seed,
    generator_for,
    has_bfloat16,
    mixed_precision,
    pick_device,
    use_all_cores,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_a_gpu_if_there_is_one(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA where it is available, else the CPU; the word `cpu` overrides."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device().type == ("cuda" if there else "cpu")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["gpu", "tpu9", "", "cuda:99", "cpu cuda"])
def test_a_device_that_is_not_here_is_refused_in_a_sentence(wanted: str) -> None:
    """Misspelt or absent: the sentence names it and what to choose."""
    with pytest.raises(ConfigError, match=f"device '{wanted}' .*choose") as caught:
        pick_device(wanted)
    assert "\n" not in str(caught.value)


def test_threads_are_as_many_as_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that may use three cores of many gets three threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    try:
        use_all_cores()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx2 avx512f", False), ("avx512_bf16", True), ("amx_bf16 amx_tile", True), (None, False)],
)
def test_bfloat16_is_used_where_the_processor_multiplies_it(
    flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor's flags decide; a system without the file computes in float32."""
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(device_module, "_CPUINFO", cpuinfo)
    assert has_bfloat16(CPU) is expected
    with mixed_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if expected else torch.float32)
    assert str(product.dtype) == f"torch.{arithmetic_on(CPU)}"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_processes_without_a_gpu_for_each_are_refused(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one GPU would wait for each other."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="each of 2 processes needs a GPU of its own, and 1 are here"):
        pick_device(wanted)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` in the second of two processes on a machine with two GPUs."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda:1")


def test_processes_on_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, two processes would wait for each other's threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(device_module, "available_cores", lambda: 7)
    try:
        for processes, threads in (("1", 7), ("2", 3), ("9", 1)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
            use_all_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_seeds_of_unlike_purposes_are_unlike() -> None:
    """Seed, purpose and number all matter, none collide, and each fits torch's generator."""
    seeds = [
        derived_seed(seed, purpose, number)
        for seed in range(5)
        for purpose in ("pretrain", "select", "final-0")
        for number in range(10)
    ]
    assert len(set(seeds)) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_derived_seed_never_changes() -> None:
    """The value is the same in every process and release: recorded runs can be repeated."""
    assert derived_seed(0, "pretrain", 0) == 968_435_689_401_912_117


def test_a_generator_is_fresh_for_each_purpose() -> None:
    """Two generators of one purpose draw the same numbers."""
    first = torch.rand(5, generator=generator_for(CPU, 3, "round", 1))
    assert torch.equal(torch.rand(5, generator=generator_for(CPU, 3, "round", 1)), first)
    assert not torch.equal(torch.rand(5, generator=generator_for(CPU, 3, "round", 2)), first)


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    """In a separate process, because it cannot be undone: glibc can do it, other libraries cannot."""
    took = subprocess.run(
        [sys.executable, "-c", "from trainer.learning.device import keep_freed_memory; print(keep_freed_memory())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert took.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
