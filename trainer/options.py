"""The trainer's options, declared once: the command line, the environment and `make run` take them from here.

This module imports no PyTorch, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainer.acquisition import STRATEGIES
from trainer.profiles import ABLATIONS, PROFILES


class ExperimentOptions(BaseModel):
    """What is learned, and how. `make run` takes these options too and passes them on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = Field(
        "auto",
        description=f"Profile: {', '.join(PROFILES)}. NAME-without-PART leaves a part out: {', '.join(ABLATIONS)}. "
        "auto takes the profile that the pretrained weights were made with, else gpu where CUDA is found, else cpu.",
    )
    seed: int = Field(1, description="Seed of everything random; the same seed asks for the same labels.")
    budget: int | None = Field(None, ge=1, description="Labels to ask for in all. Empty: the profile's number.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N. auto takes CUDA where it is found.")
    rounds: str | None = Field(
        None,
        pattern=r"^\d{1,9}(,\d{1,9})*$",
        description="Numbers of labels at which to ask, in all, such as 20,40,100; the last is the budget. Empty: the "
        "profile's.",
    )
    strategy: str | None = Field(
        None,
        description=f"How to choose what to ask: {', '.join(STRATEGIES)}; or your own by its file (./mine.py), as "
        "package.module:function, or skactiveml:CLASS. Empty: the profile's.",
    )
    pretrained: Path | None = Field(
        None, description="Weights that `pretrain` made (its encoder.pt). Empty: pretrain here."
    )
    class_prior: Literal["balanced", "estimated"] | None = Field(
        None,
        description="balanced: all classes are equally frequent; estimated: their shares are estimated from the labels "
        "paid for. Empty: balanced where the data set declares it, else estimated.",
    )
    working_size: int | None = Field(
        None,
        ge=16,
        le=224,
        description="Longest side, in pixels, at which images are learned from; larger images are reduced to it. "
        "Empty: the profile's, 32.",
    )
    features: Path | None = Field(
        None,
        description="Own features: a NumPy file of numbers, one row an image, the pool first and then the test images.",
    )
    features_use: Literal["alone", "beside"] = Field(
        "alone", description="Whether own features take the place of ours (alone) or stand beside them."
    )
    target: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Stop asking when the run's own estimate, which reads no test label, reaches this accuracy, such "
        "as 0.9. Empty: spend the whole budget.",
    )


class RunOptions(ExperimentOptions, BaseSettings):
    """All options of the trainer's commands. Each is also an environment variable: `TRAINER_` and its name.

    Without `out`, a command works in runs/COMMAND.
    """

    # env_ignore_empty: `TRAINER_BUDGET=` in a compose file means "not set".
    model_config = SettingsConfigDict(env_prefix="TRAINER_", env_ignore_empty=True, extra="forbid", frozen=True)

    out: Path = Field(Path("runs/run"), description="Folder for weights, queries, logs and the report of this run.")
    data: Path = Field(
        Path("data/images"),
        description="Images-only folder: the `images` folder that `label_service prepare` makes.",
    )
    service: str = Field("http://127.0.0.1:8000", description="Address of the label service.")
    registration_token: str | None = Field(
        None, repr=False, description="The operator's token, where opening a run needs one."
    )
    log_key: str | None = Field(
        None,
        description="Public key that the service's log must be signed with. Empty: trust the first one that is seen.",
    )
    track: Literal["mlflow", "wandb"] | None = Field(
        None, description="Copy metrics and report to MLflow or Weights & Biases as well. Empty: to neither."
    )
    patience_s: float = Field(300.0, description="Seconds to wait for a service that does not answer.")
    resume: bool = Field(False, description="Go on with what the folder holds; nothing is asked twice.")
    verbose: bool = Field(False, description="Show details on the console too.")
