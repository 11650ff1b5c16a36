"""`make run` with the tiny trainer, and `make study` of tiny runs, as programs of their own.

python -m tests.support.tiny_run [NAME=value …]            what scripts.run takes
python -m tests.support.tiny_run study [NAME=value …]      what scripts.study takes; STUDY=tiny
python -m tests.support.tiny_run leaderboard [NAME=value …]   what scripts.study.leaderboard takes
"""

from __future__ import annotations

import sys

from scripts import run
from scripts.run import Programs
from scripts.study.studies import Arm, Study

PROGRAMS = Programs(
    trainer=(sys.executable, "-m", "tests.support.tiny_trainer"),
    run=(sys.executable, "-m", "tests.support.tiny_run"),
)
TINY_STUDY = Study("Tiny", (Arm("default", "tiny-curve", (1, 2)), Arm("random", "tiny-curve", (1,), "random")))


def main() -> int:
    """Do as `make run` or `make study` would."""
    if sys.argv[1:2] not in (["study"], ["leaderboard"]):
        return run.main(sys.argv[1:], PROGRAMS)
    # Only here: `make run` itself loads no PyTorch, and each run of a test starts one.
    from scripts.study import __main__ as study
    from scripts.study import leaderboard
    from tests.support.tiny_trainer import TINY_CURVE
    from trainer.profiles import PROFILES

    PROFILES["tiny-curve"] = TINY_CURVE
    if sys.argv[1] == "leaderboard":
        return leaderboard.main(["PROFILE=tiny-curve", *sys.argv[2:]], PROGRAMS)
    study.studies = lambda _seeds: {"tiny": TINY_STUDY}
    return study.main(["STUDY=tiny", *sys.argv[2:]], PROGRAMS)


if __name__ == "__main__":
    sys.exit(main())
