"""Settings, errors, metrics, profiles, parts, exit codes and strategies: the documentation has those of the code."""

import os
import re
import subprocess
import sys

from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import all_problems
from label_service.metrics import Metrics
from label_service.settings import Settings
from tests.docs import ROOT, rows, section
from trainer import errors
from trainer.acquisition import STRATEGIES
from trainer.profiles import ABLATIONS, PROFILES

SERVICE, TRAINER = "docs/service.md", "docs/trainer.md"


def test_every_setting_is_in_the_guide_with_its_default():
    """Names, order and defaults."""
    described = {row[0].strip("`"): row[1].strip("`") for row in rows(SERVICE, "Settings")}
    assert list(described) == [f"LABEL_SERVICE_{name.upper()}" for name in Settings.model_fields]
    for shown, field in zip(described.values(), Settings.model_fields.values(), strict=True):
        assert shown in (
            ("no limit", "none") if field.default in (None, "") else (str(field.default), str(field.default).lower())
        )


def test_every_setting_is_in_the_help_of_serve():
    """`serve --help` names each setting's variable and, except for the secret, its flag."""
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output
    for name, field in Settings.model_fields.items():
        assert f"LABEL_SERVICE_{name.upper()}" in text
        assert (f"--{name.replace('_', '-')} " in text) == (name != "registration_token")
        assert field.description


def test_every_error_is_in_the_guide_with_its_status():
    """Codes and statuses; each code stands for one class that says what it means."""
    described = [(row[0].strip("`"), int(row[1])) for row in rows(SERVICE, "Errors")]
    assert described == [(problem.code, problem.status) for problem in all_problems()]
    assert len({code for code, _ in described}) == len(described) > 20
    assert all(problem.__doc__ and 400 <= problem.status < 600 for problem in all_problems())


def test_every_metric_is_in_the_guide():
    """Under the name that Prometheus sees."""
    families = Metrics().registry.collect()
    served = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    assert sorted(row[0].strip("`") for row in rows(SERVICE, "Metrics")) == sorted(served)


def test_every_profile_is_in_the_guide_as_it_is():
    """Budget, rounds, encoder and epochs of pretraining."""
    described = rows(TRAINER, "Profiles")
    assert [row[0].strip("`") for row in described] and len(described) == len(PROFILES)
    for name, budget, rounds, encoder, pretraining, _ in described:
        profile = PROFILES[name.strip("`")]
        assert (budget, rounds) == (str(profile.budget), ", ".join(map(str, profile.budgets)))
        assert pretraining.startswith(f"{profile.pretrain.epochs} epochs")
        resnet = profile.encoder.backbone == "resnet18"
        assert ("ResNet-18" if resnet else "-".join(map(str, profile.encoder.widths))) in encoder
    assert all(f"| `{part}` |" in section(TRAINER, "Profiles") for part in ABLATIONS)


def subclasses(base):
    """Yield every error below one, those of `trainer.errors` alone."""
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


def test_every_exit_code_is_in_the_guide():
    """Each error has a code of its own, and none that shells use."""
    described = {name: int(row[0]) for row in rows(TRAINER, "Exit codes") for name in re.findall(r"`(\w+)`", row[1])}
    raised = [error for error in subclasses(errors.TrainerError) if error is not errors.ServiceError]
    known = [errors.TrainerError, errors.ServiceError, *raised]
    assert described == {error.__name__: error.exit_code for error in known}
    codes = {error.exit_code for error in raised}
    assert len(codes) == len(raised) > 10
    assert not {0, 1, 2, 130} & codes


def test_every_strategy_is_in_the_guide():
    """A reader finds what each of them asks for."""
    assert {row[0].strip("`") for row in rows(TRAINER, "Query strategies")} == set(STRATEGIES)


def test_the_example_of_a_strategy_keeps_what_every_strategy_promises(tmp_path):
    """The guide's text, in a file of its own, passes the suite that all strategies pass."""
    (source,) = re.findall(r"```python\n(.*?)```", section(TRAINER, "Another query strategy"), re.DOTALL)
    (tmp_path / "mine.py").write_text(source)
    options = ("-q", "-p", "no:cacheprovider", "-k", "own", "tests/unit/trainer/acquisition/test_strategies.py")
    own = os.environ | {"LABELMETER_STRATEGY": str(tmp_path / "mine.py")}
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 15
