"""Give a working `torchvision`, also beside a CPU-only torch: `from trainer.torchvision_compat import torchvision`.

The wheel of torchvision on PyPI is built against the CUDA build of torch. Beside a CPU-only torch its compiled
operators cannot be loaded, torchvision carries on without them, and then its own import dies on
`operator torchvision::nms does not exist`, because it describes shapes of operators that nobody declared.

The cure: declare those operators, without an implementation, before the first import. The trainer uses torchvision's
networks, transforms and grids, which are plain torch; box operators are not used, and calling one still fails loudly
(`NotImplementedError`). Where the compiled operators load, as in ordinary installs, nothing is declared.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

# The operators that torchvision 0.28 describes unconditionally in torchvision/_meta_registrations.py.
_UNGUARDED_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _compiled_operators_load() -> bool:
    """Load torchvision's compiled operators if this torch can, and tell whether it could.

    Loading them here and again in torchvision is harmless: the dynamic linker maps a library once. An absent
    torchvision counts as loadable, so that the import below fails with its own, clearer message.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    for folder in spec.submodule_search_locations:
        for library in sorted([*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")]):
            try:
                torch.ops.load_library(library)
            except OSError:
                continue
            return True
    return False


def _declare_operators() -> torch.library.Library:
    """Declare torchvision's operators without implementing them; the caller keeps the library alive."""
    library = torch.library.Library("torchvision", "DEF")
    for name in _UNGUARDED_OPERATORS:
        library.define(name + _SCHEMA)
    return library


# The declarations vanish when the Library object is collected, so the module holds it for the life of the process.
# When torchvision is imported already, it works as it is and must not be touched.
DECLARED: torch.library.Library | None = (
    None if "torchvision" in sys.modules or _compiled_operators_load() else _declare_operators()
)

import torchvision  # noqa: E402 - only after the operators are declared
from torchvision import models, transforms  # noqa: E402 - the same
from torchvision.transforms import v2  # noqa: E402 - the same

__all__ = ["DECLARED", "models", "torchvision", "transforms", "v2"]
