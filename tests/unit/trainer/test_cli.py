"""The command line on bad input: one sentence on stderr, an exit code, no traceback, and nothing begun."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.datasets import make_idx_dataset
from tests.support.fake_label_service import FakeLabelService, answer_bytes, answer_json
from trainer.acquisition import STRATEGIES
from trainer.cli import app
from trainer.options import RunOptions
from trainer.profiles import ABLATIONS, PROFILES

TEST_FILE = "t10k-images-idx3-ubyte.gz"
DATA, CONFIG, USAGE, RESUME, UNAVAILABLE, PROTOCOL = 65, 78, 2, 79, 69, 76


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of few images."""
    return make_idx_dataset(tmp_path_factory.mktemp("cli") / "data", pool=40, test=10)


def fail(code: int, *arguments: object) -> str:
    """Run a command that must fail with a code, and return its one sentence."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.exit_code, done.stderr, done.exception)
    assert "Traceback" not in done.output + done.stderr
    if code == USAGE:
        return done.stderr
    assert done.stdout == ""
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


@pytest.mark.parametrize(
    ("code", "arguments", "told"),
    [
        (CONFIG, ["--profile", "huge"], "no profile 'huge'; choose one of cpu, gpu, curve, brief, graph, paper, smoke"),
        (CONFIG, ["--strategy", "guess"], "no query strategy 'guess'; choose one of badge, coverage-margin, entropy"),
        (CONFIG, ["--device", "tpu"], "device 'tpu' cannot be used here; choose auto, cpu or cuda"),
        (CONFIG, ["--device", "meta"], "device 'meta' cannot be used here; choose auto, cpu or cuda"),
        (CONFIG, ["--service", "localhost:8000"], "is no http URL"),
        (CONFIG, ["--service", "http://foo..example:8000"], "names no host that can be looked up"),
        (USAGE, ["--budget", "0"], "Invalid value for '--budget'"),
        (USAGE, ["--budget", "many"], "Invalid value for '--budget'"),
        (USAGE, ["--sedd", "1"], "No such option"),
    ],
)
def test_setting_without_meaning_is_named(
    code: int, arguments: list[str], told: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says what was given and what could be."""
    # Rich draws usage errors in a box as wide as the terminal.
    monkeypatch.setenv("COLUMNS", "200")
    given = ["--profile", "smoke", "--device", "cpu", *arguments]
    assert told in fail(code, "run", "--out", tmp_path / "out", "--data", data / "images", *given)


@pytest.mark.parametrize("command", ["run", "finetune", "evaluate", "report", "compare"])
def test_help_can_be_read_at_80_columns(command: str) -> None:
    """No line is longer, and what an option means has more than half of the line."""
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "│" not in done.stdout


def test_help_names_every_option_profile_and_strategy_and_loads_no_torch() -> None:
    """The list is made from the declarations; PyTorch takes seconds to load, and help needs none of it."""
    code = "import sys; from trainer.cli import app; app(sys.argv[1:], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code, "run", "--help"],
        env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.splitlines()[-1] == "False"
    flags = [f"--{name.replace('_', '-')}" for name in RunOptions.model_fields]
    # A line may end at a hyphen.
    whole = re.sub(r"-\n +", "-", shown)
    for word in (*flags, *PROFILES, *STRATEGIES, *ABLATIONS):
        assert word in whole


@pytest.mark.parametrize(("command", "folder"), [("pretrain", "runs/pretrain"), ("run", "runs/run")])
def test_options_come_from_the_flag_else_the_environment_else_the_default(
    command: str, folder: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag counts more than its variable; an empty variable counts as none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINER_DATA", str(data / "images"))
    monkeypatch.setenv("TRAINER_PROFILE", "huge")
    monkeypatch.setenv("TRAINER_BUDGET", "")
    assert "no profile 'huge'" in fail(CONFIG, command)
    assert "no profile 'tiny'" in fail(CONFIG, command, "--profile", "tiny")
    assert (tmp_path / folder / "trainer.log").exists()
    monkeypatch.setenv("TRAINER_OUT", "elsewhere")
    fail(CONFIG, command)
    assert (tmp_path / "elsewhere" / "trainer.log").exists()


@pytest.mark.parametrize(
    ("command", "flag"), [("report", "--out"), ("evaluate", "--out"), ("finetune", "--pretrained")]
)
def test_option_that_must_be_given_is_named(command: str, flag: str, tmp_path: Path) -> None:
    """A command that reads what another one made is told where it is."""
    assert f"Invalid value for '{flag}': it must be given" in fail(USAGE, command)


@pytest.mark.parametrize("command", ["pretrain", "run"])
def test_data_folder_without_whole_images_is_named(command: str, tmp_path: Path) -> None:
    """Nothing is begun on them, and the label file that `prepare` made is not read as images."""
    data = make_idx_dataset(tmp_path / "data", pool=40, test=10)
    (data / "images" / TEST_FILE).write_bytes((data / "labels" / "t10k-labels-idx1-ubyte.gz").read_bytes())
    told = f"{TEST_FILE} holds labels; the trainer takes image files only"
    out = tmp_path / "out"
    assert told in fail(DATA, command, "--out", out, "--data", data / "images", "--profile", "smoke", "--device", "cpu")
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("command", ["pretrain", "run", "evaluate", "report"])
def test_out_that_is_a_file_is_refused(command: str, data: Path, tmp_path: Path) -> None:
    """The file is left as it was."""
    (tmp_path / "out").write_text("mine")
    assert "is a file; name a folder" in fail(CONFIG, command, "--out", tmp_path / "out", "--data", data / "images")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_folder_without_a_run_has_nothing_to_show(command: str, data: Path, tmp_path: Path) -> None:
    """A folder that is not there is not made; an empty one holds no run."""
    given = ["--data", data / "images"]
    assert "there is no folder" in fail(DATA, command, "--out", tmp_path / "none", *given)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no run that asked the label service" in fail(DATA, command, "--out", tmp_path / "empty", *given)


def test_missing_weights_are_named(data: Path, tmp_path: Path) -> None:
    """--pretrained that is not there, or is a folder."""
    for weights in (tmp_path / "none.pt", tmp_path):
        given = ["--pretrained", weights, "--out", tmp_path / "out", "--data", data / "images", "--device", "cpu"]
        assert "there are no pretrained weights at" in fail(DATA, "finetune", *given)


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        (answer_bytes(200, b"<html>hello</html>", "text/html"), PROTOCOL, "is not what a label service says"),
        (answer_json(503, {"code": "log-not-writable", "detail": "Later."}), UNAVAILABLE, "did not answer for 0 s"),
    ],
)
def test_what_is_no_label_service_is_told(fault: object, code: int, told: str, data: Path, tmp_path: Path) -> None:
    """HTML, garbage, or a service that is never ready: one sentence, and nothing was trained before it."""
    with FakeLabelService(pool_size=40) as service:
        service.fail("/readyz", *[fault] * 20)  # type: ignore[list-item]
        service.fail("/v1/dataset", *[fault] * 20)  # type: ignore[list-item]
        weights = tmp_path / "encoder.pt"
        make_weights(weights)
        given = ["--pretrained", weights, "--data", data / "images", "--service", service.url, "--profile", "smoke"]
        given += ["--patience-s", "0.2", "--device", "cpu", "--out", tmp_path / "out"]
        assert told in fail(code, "finetune", *given)
        assert service.paths("/v1/runs") == []


def make_weights(path: Path) -> None:
    """Save a smoke encoder as `pretrain` would."""
    import torch

    from trainer.learning.checkpoint import save_checkpoint
    from trainer.learning.pretrain import new_encoder
    from trainer.profiles import SMOKE

    encoder = new_encoder(SMOKE.encoder, 2, 1, torch.device("cpu"))
    save_checkpoint(path, {"encoder": encoder.state_dict(), "identity": "test"})


@pytest.mark.slow
def test_service_that_is_down_is_told_by_the_real_program(data: Path, tmp_path: Path) -> None:
    """`python -m trainer run` in a process of its own: one line on stderr, exit code 69, no pretraining begun."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    command = [sys.executable, "-m", "trainer", "run", "--service", url, "--patience-s", "0.2", "--profile", "smoke"]
    command += ["--data", str(data / "images"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    assert done.stderr.startswith(f"error: the label service at {url} did not answer for 0 s")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "encoder.pt").exists()


def test_version_is_the_packages() -> None:
    """It stands in one place, the package's metadata."""
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"labelmeter-trainer {metadata.version('labelmeter')}\n")
