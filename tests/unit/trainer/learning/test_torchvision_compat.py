"""torchvision works beside any build of torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter: what is imported in this one must not help it."""
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


def test_a_resnet_and_the_second_transforms_run_after_the_cure() -> None:
    """`resnet18` computes and `transforms.v2` crops in a process that imported torchvision through the module."""
    done = run_python(
        """
        import torch
        from trainer.learning.torchvision_compat import torchvision
        from torchvision.models import resnet18
        from torchvision.transforms import v2
        logits = resnet18(num_classes=10).eval()(torch.zeros(1, 3, 32, 32))
        view = v2.RandomResizedCrop(14, antialias=True)(torch.zeros(1, 28, 28, dtype=torch.uint8))
        grid = torchvision.utils.make_grid(torch.zeros(4, 1, 8, 8))
        print(tuple(logits.shape), tuple(view.shape), grid.ndim)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 10) (1, 14, 14) 3"


def test_operators_are_declared_only_where_the_real_ones_do_not_load() -> None:
    """The cure stays out of the way of an install whose compiled operators work, and a declared one still fails."""
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
        print(torchvision_compat.DECLARED is None, works)
        """
    )
    real = compiled_operators_load()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{real} {real}"


def test_the_cure_is_needed_exactly_where_it_is_applied() -> None:
    """A plain `import torchvision` fails where the module declares operators: the twin that shows the cure does it."""
    plain = run_python("import torchvision")
    if compiled_operators_load():
        assert plain.returncode == 0, plain.stderr
    else:
        assert "torchvision::nms does not exist" in plain.stderr
