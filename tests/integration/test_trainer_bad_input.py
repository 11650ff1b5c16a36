"""The trainer against a real service when something is wrong: one sentence, the right code, nothing asked or lost."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
import torch

from tests.support.datasets import make_idx_dataset
from tests.support.services import RunningService
from tests.support.trainer_runs import Killed, after, run_and_die, run_command, run_to_end, settings_for
from trainer.errors import CountsDisagree
from trainer.oracle.answers import LogSummary
from trainer.oracle.client import LabelClient
from trainer.run import active_loop
from trainer.run.session import read_ticket

pytestmark = pytest.mark.usefixtures("tiny_profiles")


@pytest.fixture(scope="module")
def half_done(shared_service: RunningService, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in the middle of its last round's first phase; copy it before use."""
    out = tmp_path_factory.mktemp("half") / "out"
    # The third checkpoint is the first of two of that phase.
    run_and_die(settings_for(out, tiny_data, shared_service), after(active_loop, "save_checkpoint", 3))
    return out


def fail(code: int, name: str, out: Path, data: Path, service: RunningService, *more: str) -> str:
    """Run a command that must fail with a code, and return its one sentence."""
    exit_code, sentence, _ = run_command(name, out, data, service, *more)
    assert exit_code == code, sentence
    return sentence


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a run but its log, which notes the refusals."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "trainer.log"
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--resume", "--seed", "2", "--budget", "9", "--strategy", "random"],
            "seed 1, now 2; budget 18, now 9; strategy uncertain-clusters, now random",
        ),
        ([], "already holds a run; add --resume"),
    ],
)
def test_folder_of_other_settings_is_refused_untouched(
    more: list[str], message: str, half_done: Path, shared_service: RunningService, tiny_data: Path
) -> None:
    """Exit code 79, the setting named, nothing asked, every file as it was."""
    before, entries = contents(half_done), len(shared_service.entries())
    assert message in fail(79, "run", half_done, tiny_data, shared_service, *more)
    assert (contents(half_done), len(shared_service.entries())) == (before, entries)


def test_resume_with_other_images_is_refused(
    half_done: Path, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Another data set of the same sizes is recognised by its content."""
    other = make_idx_dataset(tmp_path / "other", seed=1)
    assert "images in --data" in fail(79, "run", half_done, other, shared_service, "--resume")
    assert "holds other images" in fail(65, "report", half_done, other, shared_service)


DAMAGES = {
    "run.json": (b'{"run_id": "x"', 65),
    "config.json": (b"{}", 79),
    "finetune.pt": (b"PK\x03\x04 not a checkpoint", 79),
    "stages.json": (b"[1", 65),
    "metrics.jsonl": (b'{"stage": 1}\n', 65),
    "queries.jsonl": (b'{"order": 0}\n', 65),
    "rounds.jsonl": (b"nonsense\n", 65),
    "pending.json": (b"{", 65),
    "encoder.pt": (b"", 79),
    "log-witness.json": (b'{"key": "labelmeter/x"}', 65),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_named_and_costs_no_label(
    name: str, half_done: Path, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Each file of a run, damaged: its name, a code, and not one entry more in the log."""
    content, code = DAMAGES[name]
    out = tmp_path / "out"
    shutil.copytree(half_done, out)
    (out / name).write_bytes(content)
    entries = len(shared_service.entries())
    assert f"{out / name}" in fail(code, "run", out, tiny_data, shared_service, "--resume")
    assert len(shared_service.entries()) == entries


def test_weights_of_another_encoder_open_no_run(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """finetune refuses them before a run is opened."""
    weights = tmp_path / "encoder.pt"
    torch.save({"encoder": {"layer": torch.zeros(3)}, "identity": "x"}, weights)
    entries = len(shared_service.entries())
    arguments = "finetune", tmp_path / "out", tiny_data, shared_service, "--pretrained", str(weights)
    assert str(weights) in fail(79, *arguments)
    assert len(shared_service.entries()) == entries


def test_evaluation_before_fine_tuning_has_ended_is_refused(
    half_done: Path, shared_service: RunningService, tiny_data: Path
) -> None:
    """The one evaluation is not spent on a run that has no predictions yet."""
    assert "holds no predictions yet" in fail(65, "evaluate", half_done, tiny_data, shared_service)


def test_finetuning_starts_from_the_weights_it_was_given(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `pretrain`'s file through the command line to the student: every weight arrives, a changed one changed."""
    pretrained = tmp_path / "pretrain"
    assert run_command("pretrain", pretrained, tiny_data, shared_service)[0] == 0
    saved = torch.load(pretrained / "encoder.pt", weights_only=True)
    name = "backbone.stem.0.weight"
    changed = {**saved, "encoder": {**saved["encoder"], name: saved["encoder"][name] + 1}}
    torch.save(changed, tmp_path / "changed.pt")
    begun: list[dict[str, torch.Tensor]] = []

    def remember_and_stop(encoder: torch.nn.Module, *_: object, **__: object) -> None:
        begun.append({key: value.clone() for key, value in encoder.state_dict().items()})
        raise Killed

    monkeypatch.setattr(active_loop, "FineTuner", remember_and_stop)
    for number, weights in enumerate((pretrained / "encoder.pt", tmp_path / "changed.pt")):
        out = tmp_path / str(number)
        with pytest.raises(Killed):
            run_command("finetune", out, tiny_data, shared_service, "--pretrained", str(weights))
    for state, given in zip(begun, (saved, changed), strict=True):
        carried = [key for key in state if not key.startswith("classifier.")]
        assert len(carried) > 10
        assert all(torch.equal(state[key], given["encoder"][key]) for key in carried)
    assert not torch.equal(begun[0][name], begun[1][name])


def test_token_stays_in_its_file(shared_service: RunningService, tiny_data: Path, tmp_path: Path) -> None:
    """After a whole verbose run the token is in run.json (mode 0600) and nowhere else, and the receipts are private."""
    out = tmp_path / "out"
    code, _, output = run_command("run", out, tiny_data, shared_service, "--verbose")
    assert code == 0, output
    ticket = read_ticket(out)
    assert ticket is not None
    assert stat.S_IMODE((out / "run.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "receipts.jsonl").stat().st_mode) == 0o600
    assert [path for path, content in contents(out).items() if ticket.token.encode() in content] == ["run.json"]
    assert ticket.token not in (out / "trainer.log").read_text() + output
    assert "queries counted by the trainer: 18\nqueries in the service's log:   18\n" in output


def test_counts_that_disagree_end_the_run_with_an_error(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query more in the log: the error names both counts."""
    summarise = LabelClient.log_summary

    def summary_with_one_more(self: LabelClient) -> LogSummary:
        summary = summarise(self)
        runs = tuple(run.model_copy(update={"queries": run.queries + 1}) for run in summary.runs)
        return summary.model_copy(update={"runs": runs})

    monkeypatch.setattr(LabelClient, "log_summary", summary_with_one_more)
    with pytest.raises(CountsDisagree, match="the trainer counted 18 queries, the log 19"):
        run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service))
