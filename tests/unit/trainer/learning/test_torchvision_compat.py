"""torchvision works beside any build of torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter, which has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )


def compiled_operators_load() -> bool:
    """Ask the dynamic linker, without the module under test, whether torchvision's own operators load."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    libraries = list(Path(spec.origin).parent.glob("_C*.so"))
    program = f"import torch; torch.ops.load_library({str(libraries[0])!r})" if libraries else "raise SystemExit(1)"
    return run_python(program).returncode == 0


def test_operators_are_declared_only_where_the_real_ones_do_not_load() -> None:
    """Compiled operators that work are left alone; a declared operator still fails when it is called."""
    done = run_python(
        """
        import torch
        from trainer.learning import torchvision_compat
        from torchvision.ops import nms
        try:
            nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
            works = True
        except (NotImplementedError, RuntimeError):
            works = False
        print(not hasattr(torchvision_compat, "_operators"), works)
        """
    )
    real = compiled_operators_load()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{real} {real}"


def test_a_plain_import_fails_exactly_where_operators_are_declared() -> None:
    """The twin: without the module, torchvision does not import beside a CPU-only torch."""
    plain = run_python("import torchvision")
    if compiled_operators_load():
        assert plain.returncode == 0, plain.stderr
    else:
        assert "torchvision::nms does not exist" in plain.stderr
