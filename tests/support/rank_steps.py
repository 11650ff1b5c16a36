"""Single steps of training and evaluation, by one process or by several.

    torchrun --nproc-per-node 2 -m tests.support.rank_steps FILE

All ranks compute together, and rank 0 writes the measures to FILE.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_learning import CPU, TINY_ENCODER, RecordedMetrics, copied, finetune_config, pretrain_config
from tests.support.tiny_trainer import use_one_thread
from trainer.config import PhaseConfig
from trainer.learning import ranks
from trainer.learning.finetune import FineTuner, embed_and_predict, predict
from trainer.learning.graph import nearest_neighbours
from trainer.learning.pretrain import new_encoder, pretrain

# An odd number makes parts of different sizes.
BATCHES = (8, 9)
PHASE = PhaseConfig(epochs=1, soft=1.0, consistency=1.0, threshold=0.5, contrast=0.5)


def measure() -> dict[str, Any]:
    """Take one step of pretraining and of fine-tuning with each batch size, then evaluate 41 images."""
    use_one_thread()
    images = torch.randint(0, 256, (41, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ids = torch.arange(6)
    beliefs = torch.rand(41, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        encoder, metrics = new_encoder(TINY_ENCODER, 3, 0, CPU), RecordedMetrics()
        with tempfile.TemporaryDirectory() as out:
            config = pretrain_config(epochs=1, steps=1, batch=batch)
            pretrain(images, encoder, config, seed=0, identity="", out=Path(out), metrics=metrics)  # type: ignore[arg-type]
        pretrained = copied(encoder)
        config_ = finetune_config(steps=1, batch=batch)
        tuner = FineTuner(encoder, images, config_, seed=0, metrics=metrics)  # type: ignore[arg-type]
        tuner.train_phase(PHASE, ids, ids % 3, beliefs, name="phase")
        found[str(batch)] = {
            "losses": [row["loss"] for row in metrics.rows],
            "pretrained": pretrained,
            "student": copied(tuner.student),
            "teacher": copied(tuner.teacher),
        }
    features, predictions = embed_and_predict(tuner.teacher, images)
    found["evaluated"] = [features, predictions, predict(tuner.teacher, images)]
    found["neighbours"] = list(nearest_neighbours(features, features, 5))
    return found


def main() -> None:
    """Measure on rank 0, and serve it on the others."""
    if int(os.environ["RANK"]):
        ranks.use_all_cores = use_one_thread
        ranks.serve("cpu", 0)
        return
    with ranks.joined("cpu", 0):
        torch.save(measure(), sys.argv[1])


if __name__ == "__main__":
    main()
