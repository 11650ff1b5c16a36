"""Several processes under torchrun learn what one does, and rank 0 alone asks; if one dies, all end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support import rank_steps
from tests.support.services import RunningService
from tests.support.tiny_trainer import KILL_RANK, TINY
from tests.support.trainer_runs import (
    Outcome,
    after,
    charges_of,
    outcome_of,
    run_and_die,
    run_command,
    run_to_end,
    settings_for,
)
from tests.support.two_ranks import two_ranks
from trainer.errors import RankLost, ServiceUnavailable
from trainer.records.run_records import METRICS_FILE, RESULT_FILE, RunResult, read_metrics
from trainer.run import active_loop

pytestmark = [pytest.mark.usefixtures("tiny_profiles"), pytest.mark.slow]


@dataclass(frozen=True)
class Ended:
    """How two processes, or the torchrun that started them, ended, and all that they wrote to stderr."""

    codes: tuple[int, ...]
    stderr: str

    @property
    def sentences(self) -> list[str]:
        """What the processes themselves say of an error; below it, torchrun reports which of them ended how."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def torchrun(*command: str, **environment: str) -> Ended:
    """Run a module in two processes on the CPU, by the real torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([*launcher, *command], env=given, capture_output=True, text=True, timeout=240)
    return Ended((done.returncode,), done.stderr)


def two_processes(*command: str) -> Ended:
    """Run a module in two processes with the environment that torchrun would give them, a third of the start."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in two_ranks()
    ]
    try:
        told = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return Ended(tuple(process.returncode for process in started), "".join(told))


def run_of(out: Path, data: Path, service: RunningService | str, *more: str) -> list[str]:
    """Make the command that runs the tiny profile."""
    url = service if isinstance(service, str) else service.base_url
    given = ["--profile", "tiny", "--device", "cpu", "--patience-s", "2", "--service", url]
    return ["tests.support.tiny_trainer", "run", *given, "--out", str(out), "--data", str(data / "images"), *more]


def requests_of(service: RunningService) -> dict[str, int]:
    """Count the requests that a service has answered, by call; its metrics' own are left out."""
    counted = re.findall(
        r"^labelmeter_requests_total\{(.*)\} (\S+)$", service.client.get("/metrics").text, re.MULTILINE
    )
    return {call: int(float(count)) for call, count in counted if "/metrics" not in call}


@pytest.fixture(scope="module")
def alone(shared_service: RunningService, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run_to_end(settings_for(out, tiny_data, shared_service))
    return out


def outcome(out: Path) -> Outcome:
    """Read a finished run."""
    return outcome_of(out, result_of(out))


def result_of(out: Path) -> RunResult:
    """Read a finished run's result."""
    return RunResult.model_validate_json((out / RESULT_FILE).read_text())


def test_steps_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Losses of the first step within 1e-6 of a single process's, and so weights, features and neighbours."""
    done = two_processes("tests.support.rank_steps", str(tmp_path / "two.pt"))
    assert done.codes == (0, 0), done.stderr
    two, one = torch.load(tmp_path / "two.pt"), rank_steps.measure()
    assert all(loss > 0.1 for batch in rank_steps.BATCHES for loss in one[str(batch)]["losses"])
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)


def test_rank_0_alone_asks_and_writes(shared_service: RunningService, tiny_data: Path, tmp_path: Path) -> None:
    """Two processes send the requests that one sends, and leave the files that one leaves, with the same content."""
    before, started = requests_of(shared_service), len(shared_service.entries())
    done = torchrun(*run_of(tmp_path / "two", tiny_data, shared_service))
    assert (done.codes, done.sentences) == ((0,), []), done.stderr
    between, entries = requests_of(shared_service), len(shared_service.entries())
    code, _, output = run_command("run", tmp_path / "one", tiny_data, shared_service)
    assert code == 0, output
    after_both = requests_of(shared_service)
    by_two = {call: count - before.get(call, 0) for call, count in between.items()}
    assert sum(by_two.values()) > 5
    assert by_two == {call: count - between.get(call, 0) for call, count in after_both.items()}
    assert entries - started == len(shared_service.entries()) - entries
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    files = [{str(path.relative_to(out)) for path in out.iterdir()} for out in (tmp_path / "two", tmp_path / "one")]
    assert files[0] == files[1] and METRICS_FILE in files[0]
    losses = [
        [record.values["loss"] for record in read_metrics(out) if "loss" in record.values]
        for out in (tmp_path / "two", tmp_path / "one")
    ]
    assert len(losses[0]) == 7
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_one_alone_goes_on(
    rank: int, alone: Path, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """kill -9 of either in the second round: one sentence, no hang; a single process resumes and pays nothing twice."""
    out = tmp_path / "out"
    done = torchrun(*run_of(out, tiny_data, shared_service), **{KILL_RANK: str(rank)})
    assert done.codes == (1,)
    assert len(done.sentences) == 1, done.stderr
    assert "all of them end" in done.sentences[0] and "--resume" in done.sentences[0]
    assert f"exitcode  : {RankLost.exit_code}" in done.stderr
    result = run_to_end(settings_for(out, tiny_data, shared_service, resume=True))
    assert outcome_of(out, result) == outcome(alone)
    assert len(charges_of(shared_service, result.run_id).ids) == result.queries_in_log == TINY.budget


def test_two_processes_go_on_where_one_was_killed(
    alone: Path, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Killed in the middle of a phase, the run of one process is resumed by two to the same end."""
    out = tmp_path / "out"
    run_and_die(settings_for(out, tiny_data, shared_service), after(active_loop, "save_checkpoint", 3))
    done = two_processes(*run_of(out, tiny_data, shared_service, "--resume"))
    assert (done.codes, done.sentences) == ((0, 0), []), done.stderr
    assert outcome(out) == outcome(alone)
    assert len(charges_of(shared_service, result_of(out).run_id).ids) == TINY.budget


def test_an_error_of_rank_0_is_told_once(tiny_data: Path, tmp_path: Path) -> None:
    """No service answers: rank 0 says so, with its exit code, and the other process ends without a word."""
    done = two_processes(*run_of(tmp_path / "out", tiny_data, "http://127.0.0.1:9"))
    assert done.codes[0] == ServiceUnavailable.exit_code and done.codes[1] != 0
    assert len(done.sentences) == 1 and "127.0.0.1:9" in done.sentences[0], done.stderr
