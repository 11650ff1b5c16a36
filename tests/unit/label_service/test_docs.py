"""The service's documentation names every setting, error, field and metric, and nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import all_problems
from label_service.metrics import Metrics
from label_service.settings import Settings

GUIDE = (Path(__file__).parents[3] / "docs" / "service.md").read_text()


def section(title: str) -> str:
    """Return the text of one section of the guide."""
    return GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """Return the code in the first cell of each row of a section's table."""
    return re.findall(r"^\| `([^`]+)` \|", section(title), flags=re.MULTILINE)


def test_every_setting_is_in_the_guide_with_its_default() -> None:
    """The table of settings and the code agree, defaults included."""
    rows = dict(re.findall(r"^\| `(LABEL_SERVICE_\w+)` \| ([^|]+) \|", section("Settings"), flags=re.MULTILINE))
    assert list(rows) == [f"LABEL_SERVICE_{name.upper()}" for name in Settings.model_fields]
    for name, described in Settings.model_fields.items():
        shown = rows[f"LABEL_SERVICE_{name.upper()}"].strip("`")
        default = described.default
        assert shown in (("no limit", "none") if default is None else (str(default), str(default).lower()))


def test_every_setting_is_in_the_help_of_serve() -> None:
    """`serve --help` names each setting's variable and, but for the secret, its flag."""
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output
    for name, described in Settings.model_fields.items():
        assert f"LABEL_SERVICE_{name.upper()}" in text
        assert (f"--{name.replace('_', '-')}" in text) == (name != "registration_token")
        assert described.description


def test_every_error_code_is_in_the_guide_with_its_status() -> None:
    """The table of errors and the code agree."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", section("Errors"), flags=re.MULTILINE)
    assert rows == [(problem.code, str(problem.status)) for problem in all_problems()]


def test_every_metric_is_in_the_guide() -> None:
    """The table of metrics and the registry agree."""
    kinds = {"counter": "_total"}
    metrics = Metrics()
    served = [family.name + kinds.get(family.type, "") for family in metrics.registry.collect()]
    assert sorted(first_cells("Metrics")) == sorted(served)


def test_error_codes_are_unique_and_explained() -> None:
    """Each code stands for one class, and each class says what it means."""
    codes = [problem.code for problem in all_problems()]
    assert len(codes) == len(set(codes)) > 20
    assert all(problem.__doc__ and 400 <= problem.status < 600 for problem in all_problems())
