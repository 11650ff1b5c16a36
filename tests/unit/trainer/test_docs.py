"""The trainer's documentation names every profile, exit code and strategy, and nothing that does not exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer import errors
from trainer.acquisition import FILES as STRATEGIES
from trainer.oracle.exchange import RECEIPTS_FILE, REFUSED_FILE
from trainer.oracle.witness import WITNESS_FILE
from trainer.profiles import PROFILES

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "trainer.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table in one section of the guide, without its head."""
    section = GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in table[2:]]


def subclasses(base: type[errors.TrainerError]) -> Iterator[type[errors.TrainerError]]:
    """Yield every error below one, those of `trainer.errors` alone."""
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


def test_every_profile_is_in_the_guide_with_its_budget_and_rounds() -> None:
    """The table of profiles and the code agree."""
    described = {row[0].strip("`"): (row[1], row[2]) for row in rows("Profiles")}
    assert described == {
        name: (str(profile.budget), ", ".join(map(str, profile.budgets))) for name, profile in PROFILES.items()
    }


def test_every_profile_is_described_with_its_encoder_and_epochs() -> None:
    """The sizes in the table are those of the code."""
    for name, _, _, encoder, pretraining, _ in rows("Profiles"):
        profile = PROFILES[name.strip("`")]
        assert pretraining.startswith(f"{profile.pretrain.epochs} epochs")
        resnet = profile.encoder.backbone == "resnet18"
        assert ("ResNet-18" if resnet else "-".join(map(str, profile.encoder.widths))) in encoder


def test_every_exit_code_is_in_the_guide() -> None:
    """The table of exit codes and `trainer/errors.py` agree."""
    described = {name: int(row[0]) for row in rows("Exit codes") for name in re.findall(r"`(\w+)`", row[1])}
    known = [errors.TrainerError, *subclasses(errors.TrainerError)]
    assert len(known) > 10
    assert described == {error.__name__: error.exit_code for error in known}


def test_exit_codes_are_told_apart() -> None:
    """No two errors that are raised share a code, nor take one that shells use."""
    codes = [error.exit_code for error in subclasses(errors.TrainerError) if error is not errors.ServiceError]
    assert len(codes) == len(set(codes))
    assert not {0, 1, 2, 130} & set(codes)


def test_every_strategy_is_in_the_guide() -> None:
    """A reader finds the name of each strategy."""
    for name in STRATEGIES:
        assert f"`{name}`" in GUIDE.partition("\n## Another query strategy\n")[2]


def test_a_strategy_of_one_s_own_takes_one_file_and_one_line(tmp_path: Path) -> None:
    """The guide's example, put where it says, passes the suite that all strategies pass."""
    section = GUIDE.partition("\n## Another query strategy\n")[2]
    _, source = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (line,) = re.findall(r"with the line `(.+?)` in `FILES`", section)
    for folder in ("trainer", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    strategies = tmp_path / "trainer" / "acquisition"
    (strategies / "oddity.py").write_text(source)
    names = (strategies / "__init__.py").read_text()
    (strategies / "__init__.py").write_text(names.replace("FILES = {\n", f"FILES = {{\n    {line}\n"))
    suite = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/unit/trainer/acquisition/test_strategies.py",
        "-k",
        "oddity",
    )
    done = subprocess.run([sys.executable, *suite], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 15


def test_the_files_of_receipts_and_witness_are_in_the_guide() -> None:
    """A reader finds what each of them is."""
    described = " ".join(row[0] for row in rows("Files in OUT"))
    for name in (RECEIPTS_FILE, REFUSED_FILE, WITNESS_FILE):
        assert f"`{name}`" in described


def test_every_decision_that_the_guide_links_exists() -> None:
    """No link of the guide is dead."""
    links = re.findall(r"\]\(([^)#]+)", GUIDE)
    assert links
    for link in links:
        assert (Path(__file__).parents[3] / "docs" / link).is_file(), link
