"""A run's folder: its configuration, and its run at the label service.

OUT/config.json  profile, seed, images: a run resumes only under these
OUT/run.json     the run's id and bearer token at the label service; only the owner can read it
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.config import Profile
from trainer.errors import DataError, ResumeError
from trainer.oracle.answers import DatasetInfo
from trainer.oracle.client import LabelClient
from trainer.records.files import OWNER_ONLY, read_file, replace_file
from trainer.records.run_records import Record

if TYPE_CHECKING:
    # The command line loads this module for its help, which must not wait for PyTorch.
    from trainer.images.data import ImageSet

CONFIG_FILE = "config.json"
# Names the version of a plug-in that failed: only such a one may be replaced in the middle of a run.
_FAILED_FILE = "strategy-failed.json"
_RUN_FILE = "run.json"
# The data, by the beginning of its name, and the profiles that the own estimate of the accuracy was measured on.
_CALIBRATED_DATA, _CALIBRATED_PROFILES = "Fashion-MNIST", ("cpu", "curve")


class RunConfig(Record):
    """The configuration that a run's folder was begun with.

    Attributes:
        profile: The profile in full.
        seed: Seed of everything random.
        images: Fingerprint of the image set.
        pretrained: SHA-256 of weights given from outside, None when the run pretrains itself.
        class_prior: `balanced` or `estimated` as asked for; None as the data set declares.
        own_features: SHA-256 of the user's own features, None without.
        target: Stop the queries at this accuracy, by the run's own estimate; None for the whole budget.
        strategy_sha256: Of the query strategy's content where it is a plug-in.
    """

    profile: Profile
    seed: int
    images: str
    pretrained: str | None = None
    target: float | None = None
    strategy_sha256: str | None = None
    class_prior: Literal["balanced", "estimated"] | None = None
    own_features: str | None = None

    def class_prior_for(self, dataset: DatasetInfo) -> Literal["balanced", "estimated"]:
        """Return how the classes' shares are known: as asked for, else as the data set declares."""
        return self.class_prior or ("balanced" if dataset.declares_balance else "estimated")

    def estimate_is_calibrated_for(self, dataset: DatasetInfo) -> bool:
        """Tell whether the run's own estimate of its accuracy means something on this data."""
        return dataset.name.startswith(_CALIBRATED_DATA) and self.profile.name in _CALIBRATED_PROFILES

    @property
    def identity(self) -> str:
        """SHA-256 of the configuration; not of the plug-in, which may be corrected after it failed."""
        return hashlib.sha256(self.model_dump_json(exclude={"strategy_sha256"}).encode()).hexdigest()


class _FailedStrategy(Record):
    """The version of a plug-in that failed."""

    sha256: str | None


class RunTicket(Record):
    """The run of a folder at the label service; the token stays out of `repr`."""

    run_id: str
    token: str = Field(repr=False)
    dataset: DatasetInfo


def begin_or_resume(out: Path, config: RunConfig, *, resume: bool) -> None:
    """Write OUT/config.json, or check that the folder was begun with this configuration.

    Raises:
        ResumeError: The folder holds a run and `resume` is false, or the run was begun with another configuration.
        RecordsUnwritable: The folder cannot be written.
    """
    path = out / CONFIG_FILE
    if not path.exists():
        replace_file(path, config.model_dump_json(indent=2) + "\n")
        return
    if not resume:
        raise ResumeError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    former = read_config(out)
    is_new = former.strategy_sha256 != config.strategy_sha256 and _may_be_replaced(out, former.strategy_sha256)
    if is_new:
        # Each query names the version that chose it, so queries.jsonl tells where the new one began.
        former = former.model_copy(update={"strategy_sha256": config.strategy_sha256})
    different = _differences(former, config)
    if different:
        raise ResumeError(
            f"{out} was begun with other settings ({'; '.join(different)}); resume it with those, or choose another "
            "--out"
        )
    if is_new:
        replace_file(path, config.model_dump_json(indent=2) + "\n")
    (out / _FAILED_FILE).unlink(missing_ok=True)


def note_failed_strategy(out: Path, sha256: str | None) -> None:
    """Note that this version of a plug-in failed.

    Raises:
        RecordsUnwritable: It cannot be written.
    """
    replace_file(out / _FAILED_FILE, _FailedStrategy(sha256=sha256).model_dump_json() + "\n")


def _may_be_replaced(out: Path, sha256: str | None) -> bool:
    """Tell whether this version of a plug-in has failed in this run."""
    damage = "is damaged; remove it and resume with the strategy that the run was begun with"
    failed = read_file(out / _FAILED_FILE, _FailedStrategy.model_validate_json, damage)
    return failed is not None and failed.sha256 == sha256


def read_config(out: Path) -> RunConfig:
    """Read the configuration that a folder was begun with.

    Raises:
        ResumeError: The folder holds no run, or its configuration is damaged.
    """
    damage = "cannot be read; restore it or choose another --out"
    config = read_file(out / CONFIG_FILE, RunConfig.model_validate_json, damage, error=ResumeError)
    if config is None:
        raise ResumeError(f"{out} holds no run; begin one with `python -m trainer run`")
    return config


def _differences(former: RunConfig, now: RunConfig) -> list[str]:
    """Name the settings that differ, in the words of the command line; empty when none does."""
    former_profile, profile = former.profile, now.profile
    compared = [
        ("profile", former_profile.name, profile.name),
        ("seed", former.seed, now.seed),
        ("budget", former_profile.budget, profile.budget),
        ("strategy", former_profile.strategy, profile.strategy),
        ("the strategy's content", (former.strategy_sha256 or "none")[:12], (now.strategy_sha256 or "none")[:12]),
        ("target", "none" if former.target is None else former.target, "none" if now.target is None else now.target),
        ("working size", former_profile.working_px, profile.working_px),
        ("class prior", former.class_prior or "as declared", now.class_prior or "as declared"),
        ("--features", (former.own_features or "none")[:12], (now.own_features or "none")[:12]),
        ("their use", former_profile.graph.own_features or "none", profile.graph.own_features or "none"),
        ("images in --data", former.images[:12], now.images[:12]),
        ("--pretrained", (former.pretrained or "none")[:12], (now.pretrained or "none")[:12]),
    ]
    if former_profile.name == profile.name and former_profile.budget == profile.budget:
        compared.append(("rounds", _listed(former_profile), _listed(profile)))
    found = [f"{name} {begun}, now {given}" for name, begun, given in compared if begun != given]
    if not found and former != now:
        # Two versions of the trainer have different profiles under one name.
        inner = [name for name in Profile.model_fields if getattr(former_profile, name) != getattr(profile, name)]
        found = [f"profile {profile.name} had other values of {', '.join(inner)}"]
    return found


def _listed(profile: Profile) -> str:
    return ",".join(map(str, profile.budgets))


def read_ticket(out: Path) -> RunTicket | None:
    """Read the run of a folder, None before it was opened.

    Raises:
        DataError: The file is damaged.
    """
    damage = "is damaged, and with it the run's token; begin a new --out"
    return read_file(out / _RUN_FILE, RunTicket.model_validate_json, damage)


def open_or_take_up_run(
    out: Path, client: LabelClient, images: ImageSet, *, name: str, profile: Profile, registration_token: str | None
) -> RunTicket:
    """Open a run at the label service and keep its token, unless the folder has one already.

    The profile's budget is the most labels that the run may be charged, and its evaluation budgets are declared.

    Raises:
        DataError: The service has the labels of other images.
        ServiceError: The service refuses or does not answer.
    """
    ticket = read_ticket(out)
    check_dataset(client.dataset() if ticket is None else ticket.dataset, images)
    if ticket is not None:
        return ticket
    opened = client.open_run(
        name, profile.budget, profile.evaluation_budgets or None, registration_token=registration_token
    )
    ticket = RunTicket(run_id=opened.run_id, token=opened.token, dataset=opened.dataset)
    replace_file(out / _RUN_FILE, ticket.model_dump_json() + "\n", mode=OWNER_ONLY)
    return ticket


def check_dataset(dataset: DatasetInfo, images: ImageSet) -> None:
    """Check that the service has the labels of these images.

    Raises:
        DataError: It has those of others.
    """
    pool_size, test_size = len(images.pool), len(images.test)
    if (pool_size, test_size) != (dataset.pool_size, dataset.test_size):
        raise DataError(
            f"the label service has labels of {dataset.pool_size} pool and {dataset.test_size} test images, but "
            f"--data holds {pool_size} and {test_size}; both must come from one `prepare`"
        )
    # Two re-drawn splits have the same sizes and other images. None: the service has label files alone.
    if dataset.fingerprint not in (None, images.fingerprint):
        raise DataError(
            f"the label service has the labels of other images ({dataset.name}) than --data holds, though as many; "
            "both must come from one `prepare`"
        )
