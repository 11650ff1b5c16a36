"""The trainer against a real service when something is wrong: one sentence, the right code, nothing asked or lost."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.support.datasets import make_idx_dataset
from tests.support.services import RunningService
from tests.support.tiny_trainer import TINY, use_one_thread
from tests.support.trainer_runs import run_to_end, settings_for
from trainer.cli import app
from trainer.errors import CountsDisagree, ServiceProtocolError
from trainer.oracle.answers import LogSummary
from trainer.oracle.client import LabelClient
from trainer.profiles import PROFILES
from trainer.records.run_records import QUERIES_FILE
from trainer.run import active_loop, evaluate, pipeline
from trainer.run.session import read_ticket


class Killed(BaseException):
    """The process ends here: no code of the trainer catches it."""


@pytest.fixture(scope="module", autouse=True)
def tiny_profile() -> Iterator[None]:
    """Make the tiny profile known, on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny", TINY)
        patch.setattr(pipeline, "use_all_cores", use_one_thread)
        yield


@pytest.fixture(scope="module")
def half_done(shared_service: RunningService, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in the middle of its last round's first phase; copy it before use."""
    out = tmp_path_factory.mktemp("half") / "out"

    def save_and_die(
        path: Path, state: dict[str, Any], save: Callable[..., None] = active_loop.save_checkpoint
    ) -> None:
        save(path, state)
        if state["half_done"] is not None:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active_loop, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            run_to_end(settings_for(out, tiny_data, shared_service))
    return out


def command(name: str, out: Path, data: Path, service: RunningService, *more: str) -> list[str]:
    """Write a command of the tiny profile."""
    given = [name, "--out", str(out), "--data", str(data / "images"), "--service", service.base_url]
    return [*given, "--profile", "tiny", "--device", "cpu", "--patience-s", "5", *more]


def fail(code: int, arguments: list[str]) -> str:
    """Run a command that must fail with a code, and return its one sentence."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, (done.exit_code, done.stderr, done.exception)
    assert "Traceback" not in done.output + done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
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
        (["--resume", "--seed", "2"], "seed 1, now 2"),
        (["--resume", "--budget", "9"], "budget 18, now 9"),
        (["--resume", "--strategy", "random"], "strategy uncertain-clusters, now random"),
        (["--resume", "--profile", "smoke"], "profile tiny, now smoke; budget 18, now 60"),
        ([], "already holds a run; add --resume"),
    ],
)
def test_folder_of_other_settings_is_refused_untouched(
    more: list[str], message: str, half_done: Path, shared_service: RunningService, tiny_data: Path
) -> None:
    """Exit code 79, the setting named, nothing asked, every file as it was."""
    before, entries = contents(half_done), len(shared_service.entries())
    assert message in fail(79, command("run", half_done, tiny_data, shared_service, *more))
    assert (contents(half_done), len(shared_service.entries())) == (before, entries)


def test_resume_with_other_images_is_refused(
    half_done: Path, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Another data set of the same sizes is recognised by its content."""
    other = make_idx_dataset(tmp_path / "other", seed=1)
    assert "images in --data" in fail(79, command("run", half_done, other, shared_service, "--resume"))
    assert "holds other images" in fail(65, ["report", "--out", str(half_done), "--data", str(other / "images")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": 150}, "has labels of 200 pool and 50 test images, but --data holds 150 and 50"),
        ({"seed": 1}, "has the labels of other images"),
    ],
)
def test_service_of_another_data_set_is_refused(
    given: dict[str, int], message: str, shared_service: RunningService, tmp_path: Path
) -> None:
    """No run is opened where the labels belong to other images."""
    other = make_idx_dataset(tmp_path / "other", **given)
    entries = len(shared_service.entries())
    assert message in fail(65, command("run", tmp_path / "out", other, shared_service))
    assert len(shared_service.entries()) == entries


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
    assert f"{out / name}" in fail(code, command("run", out, tiny_data, shared_service, "--resume"))
    assert len(shared_service.entries()) == entries


@pytest.mark.parametrize("kind", ["damaged", "foreign"])
def test_weights_that_do_not_fit_open_no_run(
    kind: str, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """finetune refuses damaged weights, and those of another encoder, before a run is opened."""
    weights = tmp_path / "encoder.pt"
    if kind == "damaged":
        weights.write_bytes(b"\x80\x02 no weights")
    else:
        torch.save({"encoder": {"layer": torch.zeros(3)}, "identity": "x"}, weights)
    entries = len(shared_service.entries())
    arguments = command("finetune", tmp_path / "out", tiny_data, shared_service, "--pretrained", str(weights))
    assert str(weights) in fail(79, arguments)
    assert len(shared_service.entries()) == entries


def test_evaluation_before_fine_tuning_has_ended_is_refused(
    half_done: Path, shared_service: RunningService, tiny_data: Path
) -> None:
    """The one evaluation is not spent on a run that has no predictions yet."""
    arguments = ["evaluate", "--out", str(half_done), "--data", str(tiny_data / "images")]
    assert "holds no predictions yet" in fail(65, [*arguments, "--service", shared_service.base_url])


def test_finetuning_starts_from_the_weights_it_was_given(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `pretrain`'s file through the command line to the student: every weight arrives, a changed one changed."""
    pretrained = tmp_path / "pretrain"
    arguments = ["pretrain", "--out", str(pretrained), "--data", str(tiny_data / "images")]
    done = CliRunner().invoke(app, [*arguments, "--profile", "tiny", "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
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
            CliRunner().invoke(app, command("finetune", out, tiny_data, shared_service, "--pretrained", str(weights)))
    for state, given in zip(begun, (saved, changed), strict=True):
        carried = [key for key in state if not key.startswith("classifier.")]
        assert len(carried) > 10
        assert all(torch.equal(state[key], given["encoder"][key]) for key in carried)
    assert not torch.equal(begun[0][name], begun[1][name])


def test_token_stays_in_its_file(shared_service: RunningService, tiny_data: Path, tmp_path: Path) -> None:
    """After a whole verbose run the token is in run.json (mode 0600) and nowhere else, and the receipts are private."""
    out = tmp_path / "out"
    done = CliRunner().invoke(app, command("run", out, tiny_data, shared_service, "--verbose"))
    assert done.exit_code == 0, done.stderr
    ticket = read_ticket(out)
    assert ticket is not None
    assert stat.S_IMODE((out / "run.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "receipts.jsonl").stat().st_mode) == 0o600
    assert [path for path, content in contents(out).items() if ticket.token.encode() in content] == ["run.json"]
    assert ticket.token not in (out / "trainer.log").read_text() + done.stdout + done.stderr
    assert "queries counted by the trainer: 18\nqueries in the service's log:   18\n" in done.stdout


def test_somebody_else_asking_under_the_token_is_noticed(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that the trainer did not ask for stops the run at its next question."""
    out, original = tmp_path / "out", LabelClient.query

    def query_and_be_robbed(self: LabelClient, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if answer.queries == 6:
            ticket = read_ticket(out)
            assert ticket is not None
            taken = next(label_id for label_id in range(200) if label_id not in {label.id for label in answer.labels})
            headers = {"Authorization": f"Bearer {ticket.token}"}
            assert shared_service.client.get(f"/label/{taken}", headers=headers).status_code == 200
        return answer

    monkeypatch.setattr(LabelClient, "query", query_and_be_robbed)
    with pytest.raises(ServiceProtocolError, match="somebody else is asking under the run's token"):
        run_to_end(settings_for(out, tiny_data, shared_service))


@pytest.mark.parametrize("whose", ["the trainer's", "the service's"])
def test_counts_that_disagree_end_the_run_with_an_error(
    whose: str, shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line less in queries.jsonl, or one query more in the log: the error names both counts."""
    out, freeze, summarise = tmp_path / "out", evaluate.freeze_predictions, LabelClient.log_summary

    def freeze_and_lose_a_line(folder: Path, *rest: Any) -> None:
        freeze(folder, *rest)
        lines = (folder / QUERIES_FILE).read_text().splitlines(keepends=True)
        (folder / QUERIES_FILE).write_text("".join(lines[:-1]))

    def summary_with_one_more(self: LabelClient) -> LogSummary:
        document = json.loads(summarise(self).model_dump_json())
        for run in document["runs"]:
            run["queries"] += 1
        return LogSummary.model_validate_json(json.dumps(document))

    if whose == "the trainer's":
        monkeypatch.setattr(pipeline, "freeze_predictions", freeze_and_lose_a_line)
        message = "the trainer counted 17 queries, the log 18"
    else:
        monkeypatch.setattr(LabelClient, "log_summary", summary_with_one_more)
        message = "the trainer counted 18 queries, the log 19"
    with pytest.raises(CountsDisagree, match=message):
        run_to_end(settings_for(out, tiny_data, shared_service))
