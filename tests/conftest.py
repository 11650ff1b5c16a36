"""Shared by all tests: shapes written in the losses' signatures are checked while the tests run, and only then."""

import os

import jaxtyping

# Has to stand before anything imports the module; a wrong shape is then a jaxtyping.TypeCheckError.
jaxtyping.install_import_hook("trainer.learning.losses", "beartype.beartype")


def pytest_xdist_auto_num_workers() -> int:
    """Count the workers of `-n auto`: three for two cores, because many tests wait for processes of their own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, cores * 3 // 2)
