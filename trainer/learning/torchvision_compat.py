"""Import torchvision, also beside a CPU-only torch: `from trainer.learning.torchvision_compat import torchvision`.

PyPI's wheel of torchvision is built against the CUDA build of torch. Beside a CPU-only torch its compiled operators do
not load, and its import fails because it describes two of them that nobody declared. Declaring the two, without an
implementation, lets the import pass. The trainer uses only what is plain torch; calling one of the two still fails.
"""

import torch

try:
    import torchvision
except RuntimeError:
    # Declarations last as long as this object.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
