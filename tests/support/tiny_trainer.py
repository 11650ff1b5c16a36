"""The real trainer with a further profile, `tiny`: all stages in seconds on a pool of 200 images.

    python -m tests.support.tiny_trainer run --profile tiny …

Everything else is `python -m trainer`. TINY_TRAINER_KILL_AT=N ends the process by SIGKILL right after the Nth
checkpoint of fine-tuning, as a power cut would. TINY_TRAINER_KILL_RANK=R ends that one of several processes in its
seventh training step, in the second round.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from trainer import cli
from trainer.config import EncoderConfig, PhaseConfig, RoundConfig
from trainer.learning import checkpoint, ranks
from trainer.profiles import PROFILES, SMOKE
from trainer.run import active_loop, pipeline

KILL_AT = "TINY_TRAINER_KILL_AT"
KILL_RANK = "TINY_TRAINER_KILL_RANK"
# Four steps of pretraining, two of the first round.
_STEPS_BEFORE = 6

TINY = SMOKE.model_copy(
    update={
        "name": "tiny",
        "about": "For tests.",
        "rounds": (
            RoundConfig(labels=6, phases=(PhaseConfig(epochs=1, soft=1.0),)),
            RoundConfig(labels=12, phases=(PhaseConfig(epochs=1, soft=1.0),)),
            RoundConfig(labels=18, phases=(PhaseConfig(epochs=2, soft=1.0), PhaseConfig(epochs=1, consistency=1.0))),
        ),
        "pool_limit": None,
        "encoder": EncoderConfig(widths=(8, 8), projection=8),
        "pretrain": SMOKE.pretrain.model_copy(update={"epochs": 2, "steps": 2, "batch": 16}),
        "finetune": SMOKE.finetune.model_copy(update={"steps": 2, "batch": 16, "labelled_batch": 8}),
    }
)
# The same with two more points of a learning curve.
TINY_CURVE = TINY.model_copy(
    update={
        "name": "tiny-curve",
        "rounds": (
            RoundConfig(labels=3, chosen_ahead=6, evaluated=True),
            TINY.rounds[0].model_copy(update={"evaluated": True}),
            *TINY.rounds[1:],
        ),
    }
)
# Checkpoints of one run of TINY: a round's phase, the next round's, two epochs and one of the final phases.
CHECKPOINTS = 5


def use_one_thread() -> None:
    """Replace `use_all_cores`: so small a network waits for its threads longer than it computes."""
    torch.set_num_threads(1)


def _kill_after(wanted: int) -> None:
    saves = 0

    def save_and_die(path: Path, state: dict[str, Any]) -> None:
        nonlocal saves
        checkpoint.save_checkpoint(path, state)
        saves += 1
        if saves == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    active_loop.save_checkpoint = save_and_die


def _kill_in_step() -> None:
    learn, steps = ranks.RankReplica.learn, 0

    def learn_or_die(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > _STEPS_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(*arguments)

    ranks.RankReplica.learn = learn_or_die  # type: ignore[method-assign]


def main() -> None:
    """Run the command line with `tiny` among the profiles."""
    PROFILES.update({"tiny": TINY, "tiny-curve": TINY_CURVE})
    pipeline.use_all_cores = use_one_thread
    ranks.use_all_cores = use_one_thread
    if KILL_AT in os.environ:
        _kill_after(int(os.environ[KILL_AT]))
    if KILL_RANK in os.environ and os.environ[KILL_RANK] == os.environ.get("RANK"):
        _kill_in_step()
    cli.main()


if __name__ == "__main__":
    main()
