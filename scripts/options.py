"""The variables of `make run`, `make study` and `make leaderboard`: `NAME=value` words, declared here and nowhere else.

    python -m scripts.options    list them

What `make run` passes on to the trainer is declared in `trainer/options.py`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from scripts.errors import RunError
from scripts.study.studies import studies
from trainer.options import ExperimentOptions

# The Makefile's own variables: they may stand beside those of a target.
MAKEFILE_VARIABLES = {"VENV", "PIP_ARGS", "PYTHON", "PYTEST_ARGS"}
# The flag before make's MAKEOVERRIDES, which has all words in a single string.
FROM_MAKE = "--from-make"

Options = TypeVar("Options", bound=BaseModel)


def _words(given: object) -> object:
    return given.split() if isinstance(given, str) else given


class MakeRunOptions(ExperimentOptions):
    """What `make run` takes."""

    data: Path | None = Field(
        None,
        description="Data: a folder made by `label_service prepare`, or what its --from takes: class folders of "
        "pictures, IDX files, CSV, NPZ. Empty: Fashion-MNIST, which is fetched.",
    )
    out: Path | None = Field(
        None, description="Folder of results. Empty: runs/PROFILE-seedSEED and what else differs from the default."
    )
    port: int = Field(0, description="Port of the label service; 0 takes a free one.")

    @property
    def folder(self) -> Path:
        """The folder of results."""
        if self.out is not None:
            return self.out
        parts = [self.profile, f"seed{self.seed}"]
        parts += [str(self.budget)] if self.budget is not None else []
        parts += [f"rounds{self.rounds}"] if self.rounds is not None else []
        # A plug-in's name may be a path.
        parts += [re.sub(r"[^A-Za-z0-9]+", "-", self.strategy).strip("-")] if self.strategy is not None else []
        parts += [f"target{self.target}"] if self.target is not None else []
        parts += [self.class_prior] if self.class_prior is not None else []
        parts += [f"at{self.working_size}px"] if self.working_size is not None else []
        parts += [f"by-{self.features.stem}"] if self.features is not None else []
        parts += ["and-ours"] if self.features_use == "beside" else []
        parts += [f"on-{self.data.resolve().name}"] if self.data is not None else []
        return Path("runs") / "-".join(parts)

    def trainer_flags(self) -> list[str]:
        """Return the trainer's options that differ from its defaults, as its command line takes them."""
        changed = self.model_dump(include=set(ExperimentOptions.model_fields), exclude_defaults=True)
        return [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", str(value))]


class StudyOptions(BaseModel):
    """What `make study` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str = Field("learning-curve", description=f"Which study: {', '.join(studies((1,)))}.")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_words)] = Field(
        (1, 2, 3, 4, 5), min_length=1, description="Seeds, as one quoted word."
    )
    data: Path | None = Field(None, description="Prepared folder of data. Empty: Fashion-MNIST.")
    runs: Path | None = Field(None, description="Folder of its runs. Empty: runs/studies/STUDY.")
    record: Path | None = Field(
        None,
        description="Folder of its record, which may have some of the runs. Empty: records/DATE_STUDY, with the date "
        "on which the study began.",
    )
    take_from: Path | None = Field(
        None, description="Another record; its runs with the same settings are taken over instead of made again."
    )
    jobs: int = Field(1, ge=1, description="Runs at a time, each on its share of the cores.")


class LeaderboardOptions(BaseModel):
    """What `make leaderboard` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        ("uncertain-clusters", "margin", "random"),
        min_length=1,
        description="Query strategies to compare, as one quoted word: names, files (./mine.py), "
        "package.module:function or skactiveml:CLASS. The others are compared with the first.",
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_words)] = Field(
        (1, 2, 3), min_length=1, description="Seeds, as one quoted word; each strategy is run with each."
    )
    profile: str = Field(
        "graph-without-hcl", description="Profile of the trainer. The default trains no network: some minutes a run."
    )
    budget: int | None = Field(None, ge=1, description="Labels in all. Empty: the profile's number.")
    rounds: str | None = Field(
        None, pattern=r"^\d{1,9}(,\d{1,9})*$", description="Numbers of labels at which to ask. Empty: the profile's."
    )
    data: Path | None = Field(None, description="Prepared folder of data. Empty: Fashion-MNIST.")
    runs: Path = Field(Path("runs/leaderboard"), description="Folder of its runs and records.")
    jobs: int = Field(1, ge=1, description="Runs at a time, each on its share of the cores.")


def read_options(kind: type[Options], arguments: Sequence[str]) -> Options:
    """Read `NAME=value` words; a word without a value counts as not given.

    Args:
        kind: the options that may be given.
        arguments: the words, or `FROM_MAKE` and make's MAKEOVERRIDES.

    Raises:
        RunError: a name is not known, or a value cannot be used; the message names the known ones, or the value.
    """
    words = split_overrides(arguments[1]) if arguments[:1] == [FROM_MAKE] else arguments
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    known = [name.upper() for name in kind.model_fields]
    for name in given:
        if name not in (*known, *MAKEFILE_VARIABLES):
            raise RunError(f"there is no variable {name}; the known ones are {', '.join(known)}.", 2)
    try:
        return kind.model_validate({name.lower(): given[name] for name in known if given.get(name)})
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0]).upper()
        raise RunError(f"{name}={given[name]} cannot be used: {fault['msg']}.", 2) from error


def split_overrides(text: str) -> list[str]:
    r"""Split make's MAKEOVERRIDES: `OUT=my\ runs SEED=3` is two words.

    In a value, make puts a backslash before each blank and each backslash, and writes each `$` twice.
    """
    words = re.findall(r"(?:\\.|[^\s\\])+", text)
    return [re.sub(r"\\(.)", r"\1", word).replace("$$", "$") for word in words]


def describe(kind: type[BaseModel]) -> str:
    """Write a paragraph for each variable: its name, its default, what it means."""
    paragraphs = []
    for name, field in kind.model_fields.items():
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{name.upper()}={'' if default is None else default}  {field.description}"
        paragraphs.append(textwrap.fill(text, 116, initial_indent="    ", subsequent_indent="        "))
    return "\n".join(paragraphs)


if __name__ == "__main__":
    print(f"  make run takes\n{describe(MakeRunOptions)}\n\n  make study takes\n{describe(StudyOptions)}")
    print(f"\n  make leaderboard takes\n{describe(LeaderboardOptions)}")
