"""A run's folder: what it was begun with, whether it may go on, and which run at the service it belongs to.

OUT/config.json  profile, seed, images: a run resumes only under these
OUT/run.json     the run's id and bearer token at the label service; readable by the owner alone
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.config import Profile
from trainer.errors import DataError, RecordsUnwritable, ResumeError
from trainer.images.data import ImageSet
from trainer.oracle.answers import DatasetInfo
from trainer.oracle.client import LabelClient
from trainer.records.files import OWNER_ONLY, replace_file

CONFIG_FILE = "config.json"
_RUN_FILE = "run.json"


class RunConfig(BaseModel):
    """What a run's folder was begun with.

    Attributes:
        profile: in full.
        seed: of everything random.
        images: fingerprint of the image set.
        pretrained: SHA-256 of the weights given from outside, None when the run pretrains by itself.
        target: accuracy at which to stop asking, by the run's own estimate; None for the whole budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: Profile
    seed: int
    images: str
    pretrained: str | None = None
    target: float | None = None

    @property
    def identity(self) -> str:
        """A digest of it all."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class RunTicket(BaseModel):
    """The run at the label service that a folder belongs to; the token stays out of `repr`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    token: str = Field(repr=False)
    dataset: DatasetInfo


def begin_or_resume(out: Path, config: RunConfig, *, resume: bool) -> None:
    """Write OUT/config.json, or check that it is the one the folder was begun with.

    Raises:
        ResumeError: the folder holds a run and `resume` is false, or the run was begun with something else.
        RecordsUnwritable: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordsUnwritable(f"the folder {out} cannot be made ({error.strerror}); choose another --out") from error
    path = out / CONFIG_FILE
    if not path.exists():
        replace_file(path, config.model_dump_json(indent=2) + "\n")
        return
    if not resume:
        raise ResumeError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    former = read_config(out)
    different = _differences(former, config)
    if different:
        raise ResumeError(
            f"{out} was begun with other settings ({'; '.join(different)}); resume it with those, or choose another "
            "--out"
        )


def read_config(out: Path) -> RunConfig:
    """Read what a folder was begun with.

    Raises:
        ResumeError: there is no run in the folder, or its configuration is damaged.
    """
    path = out / CONFIG_FILE
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ResumeError(f"{out} holds no run; begin one with `python -m trainer run`") from error
    except (OSError, ValidationError) as error:
        raise ResumeError(f"{path} cannot be read; restore it or choose another --out") from error


def _differences(former: RunConfig, now: RunConfig) -> list[str]:
    """Name what differs, in the words of the command line; empty when nothing does."""
    then_profile, profile = former.profile, now.profile
    compared = [
        ("profile", then_profile.name, profile.name),
        ("seed", former.seed, now.seed),
        ("budget", then_profile.budget, profile.budget),
        ("strategy", then_profile.strategy, profile.strategy),
        ("target", "none" if former.target is None else former.target, "none" if now.target is None else now.target),
        ("images in --data", former.images[:12], now.images[:12]),
        ("--pretrained", (former.pretrained or "none")[:12], (now.pretrained or "none")[:12]),
    ]
    found = [f"{name} {then}, now {given}" for name, then, given in compared if then != given]
    if not found and former != now:
        # The names agree and the contents do not: the profile was changed between two versions of the trainer.
        inner = [name for name in Profile.model_fields if getattr(then_profile, name) != getattr(profile, name)]
        found = [f"profile {profile.name} had other values of {', '.join(inner)}"]
    return found


def read_ticket(out: Path) -> RunTicket | None:
    """Read which run a folder belongs to, None before it was opened.

    Raises:
        DataError: the file is damaged.
    """
    path = out / _RUN_FILE
    try:
        return RunTicket.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is damaged, and with it the run's token; begin a new --out") from error


def open_or_take_up_run(
    out: Path, client: LabelClient, images: ImageSet, *, name: str, profile: Profile, registration_token: str | None
) -> RunTicket:
    """Open a run at the label service and keep its token, unless the folder has one already.

    Args:
        out: the run's folder.
        client: without a token yet.
        images: must be the images that the service holds the labels of.
        name: for people who read the log.
        profile: its budget is the most labels that the run may be charged; its evaluations are declared.
        registration_token: where the service wants one.

    Raises:
        DataError: the service's data set is of other images than those here.
        ServiceError: the service refuses or is lost.
    """
    ticket = read_ticket(out)
    dataset = client.dataset() if ticket is None else ticket.dataset
    here = (len(images.pool), len(images.test))
    if here != (dataset.pool_size, dataset.test_size):
        raise DataError(
            f"the label service has labels of {dataset.pool_size} pool and {dataset.test_size} test images, but "
            f"--data holds {here[0]} and {here[1]}; both must come from one `prepare`"
        )
    # Two re-drawn splits have the same sizes and other images; None: the service was given label files alone.
    if dataset.fingerprint not in (None, images.fingerprint):
        raise DataError(
            f"the label service has the labels of other images ({dataset.name}) than --data holds, though as many; "
            "both must come from one `prepare`"
        )
    if ticket is not None:
        return ticket
    opened = client.open_run(
        name, profile.budget, profile.evaluation_budgets or None, registration_token=registration_token
    )
    ticket = RunTicket(run_id=opened.run_id, token=opened.token, dataset=opened.dataset)
    replace_file(out / _RUN_FILE, ticket.model_dump_json() + "\n", mode=OWNER_ONLY)
    return ticket
