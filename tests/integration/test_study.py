"""A study makes real runs over real services, and its record is believed for its evidence and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from label_service.log.merkle import MerkleTree, leaf_hash
from label_service.log.signed_note import SigningKey
from label_service.log.tree_head import TreeHead
from scripts.errors import RunError
from scripts.run import Programs
from scripts.study import __main__ as study
from scripts.study import predictions, record_writer, records, tables, verify_records
from scripts.study.studies import Arm, Study
from scripts.study.workspace import Workspace
from tests.support.datasets import make_idx_dataset
from tests.support.tiny_run import PROGRAMS, TINY_STUDY
from tests.support.tiny_trainer import TINY_CURVE
from trainer.learning.device import arithmetic_on
from trainer.profiles import PROFILES

# Programs that make nothing: a study that starts one of them fails.
NOTHING = Programs(trainer=("false",), run=("false",))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three runs: its folder, with data, runs and record."""
    folder = tmp_path_factory.mktemp("study")
    make_idx_dataset(folder / "data", pool=200, test=50, classes=3, side=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny-curve", TINY_CURVE)
        patch.setenv("OMP_NUM_THREADS", "1")
        study.carry_out(TINY_STUDY, workspace(folder), PROGRAMS)
    return folder


def workspace(folder: Path) -> Workspace:
    return Workspace(folder / "data", folder / "runs" / "tiny", folder / "records" / "2020-01-01_tiny")


@pytest.fixture
def tiny_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tiny profile in this process, as the tiny trainer has it in its own."""
    monkeypatch.setitem(PROFILES, "tiny-curve", TINY_CURVE)


@pytest.fixture
def clone(made: Path, tmp_path: Path, tiny_profile: None) -> Path:
    """The finished study as a fresh clone has it: data and record, and nothing of its runs."""
    for name in ("data", "records"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def take_out(record: Path, arm: str, seed: int) -> None:
    """Take a run out of a record."""
    described = json.loads((record / "record.json").read_text())
    for written in described["arms"]:
        if written["name"] == arm:
            written["runs"] = [run for run in written["runs"] if run["seed"] != seed]
    described["arms"] = [written for written in described["arms"] if written["runs"]]
    (record / "record.json").write_text(json.dumps(described))
    shutil.rmtree(records.folder_of(record, arm, seed))
    record_writer.renew(record)


def verify(folder: Path) -> int:
    """Verify a record, or all of a folder, with the data beside the records."""
    data = next(parent / "data" for parent in (folder, *folder.parents) if (parent / "data").exists())
    return verify_records.main([str(folder), str(data)], PROGRAMS)


def test_a_record_has_a_table_a_picture_and_the_evidence_of_each_run(made: Path) -> None:
    """Three points a run, means over seeds, a paired difference over the seed both arms have; and it verifies."""
    record = workspace(made).record
    results = records.read_results(record)
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in results.arms] == [
        ("default", [1, 2]),
        ("random", [1]),
    ]
    assert results.labels == [3, 6, 18]
    table = (record / "table.md").read_text()
    first = results.arms[0].percent_at(18)
    assert f"{sum(first.values()) / 2:.2f} ± " in table
    assert (record / "curve.svg").read_text().startswith("<?xml")
    assert verify(made / "records") == 0


def test_a_run_s_points_are_what_its_log_and_its_frozen_predictions_say(made: Path) -> None:
    """The trainer's result, the log's entries and the frozen files have the same three points, in order."""
    out = made / "runs" / "tiny" / "default-seed1"
    result = json.loads((out / "trainer" / "result.json").read_text())
    assert [point["labels"] for point in result["points"]] == [3, 6, 18]
    assert result["points"][-1]["evaluation"] == result["evaluation"]
    for labels in (3, 6):
        frozen = json.loads((out / "trainer" / f"predictions-at-{labels}.json").read_text())
        assert (frozen["labels"], len(frozen["predictions"])) == (labels, 50)
    assert json.loads((out / "trainer" / "predictions.json").read_text())["labels"] == 18
    seconds = [sum(point["stage_seconds"].values()) for point in result["points"]]
    assert seconds == sorted(seconds)


def test_the_first_labels_are_those_of_a_larger_first_round(made: Path) -> None:
    """What is chosen ahead is asked in parts: the first three labels are the first of six chosen together."""
    lines = (made / "runs" / "tiny" / "default-seed1" / "trainer" / "queries.jsonl").read_text().splitlines()
    rounds = [json.loads(line)["round"] for line in lines]
    assert rounds[:6] == [0, 0, 0, 1, 1, 1]
    assert len({json.loads(line)["id"] for line in lines}) == 18


def test_weights_are_made_once_for_a_seed(made: Path) -> None:
    """Two seeds, three runs, two pretrainings; and no run holds weights of its own."""
    assert len(list((made / "runs" / "weights").iterdir())) == 2
    assert not list((made / "runs" / "tiny").glob("*/trainer/encoder.pt"))


def test_a_finished_study_makes_no_run_again(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record alone says so, and the same command makes its table and picture again from what is there."""
    record, before = workspace(clone).record, contents(clone)
    (record / "table.md").unlink()
    (record / "curve.svg").unlink()
    study.carry_out(TINY_STUDY, workspace(clone), NOTHING)
    assert contents(clone) == before
    assert "has 3 of 3 runs" in capsys.readouterr().out


def test_a_fresh_clone_makes_only_the_runs_that_the_record_lacks(clone: Path) -> None:
    """What the record has stays as it is, byte for byte; the new run stands beside it, and all of it verifies."""
    record = workspace(clone).record
    whole = records.read_results(record)
    take_out(record, "default", 2)
    held = contents(record / "runs")
    assert verify(clone / "records") == 0
    study.carry_out(TINY_STUDY, workspace(clone), PROGRAMS)
    assert [path.name for path in (clone / "runs" / "tiny").iterdir()] == ["default-seed2"]
    assert held.items() <= contents(record / "runs").items()
    results = records.read_results(record)
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in results.arms] == [
        ("default", [1, 2]),
        ("random", [1]),
    ]
    # The same seed, weights and configuration: the same accuracies as before.
    assert [arm.percent_at(18) for arm in results.arms] == [arm.percent_at(18) for arm in whole.arms]
    assert verify(clone / "records") == 0


def test_a_run_finished_just_before_a_kill_is_put_into_the_record(
    made: Path, clone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run whose files are there and which the record does not count yet is checked again, and not made again."""
    shutil.copytree(made / "runs", clone / "runs")
    take_out(workspace(clone).record, "random", 1)
    before = contents(clone / "runs" / "tiny" / "random-seed1" / "trainer")
    study.carry_out(TINY_STUDY, workspace(clone), replace(PROGRAMS, trainer=("false",)))
    assert "holds a finished run" in capfd.readouterr().out
    assert contents(clone / "runs" / "tiny" / "random-seed1" / "trainer") == before
    assert contents(workspace(clone).record) == contents(workspace(made).record)


def test_other_seeds_are_added_to_what_the_record_has(clone: Path) -> None:
    """A study of fewer seeds takes nothing out of a record."""
    before = contents(clone)
    fewer = replace(TINY_STUDY, arms=(Arm("default", "tiny-curve", (2,)), TINY_STUDY.arms[1]))
    study.carry_out(fewer, workspace(clone), NOTHING)
    assert contents(clone) == before


def _beside(clone: Path) -> Workspace:
    """Another record, that may take from the finished one."""
    return replace(workspace(clone), record=clone / "records" / "2020-01-02_parts", source=workspace(clone).record)


def test_a_run_that_another_record_has_is_taken_over(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run under the name of another study's arm: nothing is made again, and the evidence comes with it."""
    parts = Study("Parts", (Arm("whole", "tiny-curve", (1, 2)), Arm("random choice", "tiny-curve", (1,), "random")))
    before = contents(workspace(clone).record)
    study.carry_out(parts, _beside(clone), NOTHING)
    assert f"whole, seed 2: taken over from {workspace(clone).record}" in capsys.readouterr().out
    assert contents(workspace(clone).record) == before
    results, source = records.read_results(_beside(clone).record), records.read_results(workspace(clone).record)
    assert [arm.name for arm in results.arms] == ["whole", "random choice"]
    assert [run.points for arm in results.arms for run in arm.runs] == [
        run.points for arm in source.arms for run in arm.runs
    ]
    assert verify(clone / "records") == 0


def test_no_run_is_taken_over_unasked(clone: Path) -> None:
    """Without TAKE_FROM= the same seeds are run again."""
    with pytest.raises(RunError):
        study.carry_out(TINY_STUDY, replace(_beside(clone), source=None), NOTHING)


def test_a_run_made_otherwise_is_not_taken_over(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another profile is another run: it has to be made."""
    _other_profile(clone, monkeypatch)
    with pytest.raises(RunError):
        study.carry_out(TINY_STUDY, _beside(clone), NOTHING)
    assert [path.name for path in (clone / "records").iterdir()] == ["2020-01-01_tiny"]


def test_a_damaged_run_is_not_taken_over(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence that does not hold is not copied under another name."""
    _forged(clone, monkeypatch)
    with pytest.raises(RunError, match="does not hold"):
        study.carry_out(TINY_STUDY, _beside(clone), NOTHING)
    assert [path.name for path in (clone / "records").iterdir()] == ["2020-01-01_tiny"]


def test_arms_with_other_points_are_compared_where_all_stand(made: Path) -> None:
    """The table has a column for the labels that every arm was evaluated at; each run's line has all its points."""
    results = records.read_results(workspace(made).record)
    short = replace(results.arms[1], runs=tuple(replace(run, points=run.points[1:2]) for run in results.arms[1].runs))
    mixed = replace(results, arms=(results.arms[0], short))
    assert mixed.labels == [6]
    assert "| | 6 |" in tables.render(mixed)
    assert "- default, seed 1" in tables.render(mixed) and "18: " in tables.render(mixed)


def _other_profile(clone: Path, patch: pytest.MonkeyPatch) -> None:
    changed = TINY_CURVE.finetune.model_copy(update={"steps": 3})
    patch.setitem(PROFILES, "tiny-curve", TINY_CURVE.model_copy(update={"finetune": changed}))


def _other_data(clone: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(clone / "data")
    make_idx_dataset(clone / "data", pool=200, test=50, classes=3, side=12, seed=5)


def _field_of_another_version(clone: Path, _: pytest.MonkeyPatch) -> None:
    _in_json(f"{RUN}/config.json", lambda config: config["profile"].update(cleverness=2))(workspace(clone).record)


def _other_study(clone: Path, _: pytest.MonkeyPatch) -> None:
    _in_json("record.json", lambda record: record.update(title="Great"))(workspace(clone).record)


def _strange_arm(clone: Path, _: pytest.MonkeyPatch) -> None:
    _in_json("record.json", lambda record: record["arms"][0].update(name="other"))(workspace(clone).record)
    runs = workspace(clone).record / "runs"
    for seed in (1, 2):
        (runs / f"default-seed{seed}").rename(runs / f"other-seed{seed}")


def _forged(clone: Path, _: pytest.MonkeyPatch) -> None:
    _in_json(f"{RUN}/evidence.json", lambda bundle: bundle["entries"].pop())(workspace(clone).record)


def _unreadable(clone: Path, _: pytest.MonkeyPatch) -> None:
    (workspace(clone).record / "record.json").write_text("{")


REFUSED: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], str]] = {
    "another profile": (
        _other_profile,
        "default-seed1 was made with another configuration than today's .different: finetune.: name",
    ),
    "other data": (_other_data, "another configuration than today's .different: data."),
    "a field that is gone": (_field_of_another_version, "another configuration than today's .different: profile."),
    "another study": (_other_study, "is of another study .Great.: name another RECORD="),
    "an arm of another study": (_strange_arm, "is of another study"),
    "evidence that does not hold": (_forged, "does not hold"),
    "a file that is no record": (_unreadable, "is not a complete record"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_record_that_cannot_be_gone_on_with_is_refused_and_left_alone(
    clone: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, pytest.MonkeyPatch], None], message: str
) -> None:
    """One sentence; nothing is made, mixed or overwritten, though a run is missing."""
    take_out(workspace(clone).record, "random", 1)
    change(clone, monkeypatch)
    before = contents(clone)
    with pytest.raises(RunError, match=message) as refused:
        study.carry_out(TINY_STUDY, workspace(clone), NOTHING)
    assert "\n" not in str(refused.value)
    assert contents(clone) == before


def test_what_a_profile_says_about_itself_is_no_configuration(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other words for the same profile refuse no record."""
    monkeypatch.setitem(PROFILES, "tiny-curve", TINY_CURVE.model_copy(update={"about": "Better words."}))
    study.carry_out(TINY_STUDY, workspace(clone), NOTHING)


def test_data_that_is_not_prepared_is_refused(tmp_path: Path) -> None:
    """A wrong DATA= is one sentence, and nothing is fetched in its place."""
    with pytest.raises(RunError, match="data is no prepared folder"):
        study.carry_out(TINY_STUDY, workspace(tmp_path), NOTHING)
    assert not list(tmp_path.iterdir())


def test_the_table_says_how_a_run_was_computed(clone: Path) -> None:
    """Minutes say little without cores and arithmetic. Records from before cores were noted say nothing of them."""
    record = workspace(clone).record
    arithmetic = arithmetic_on(torch.device("cpu"))
    on = f"- default, seed 1, on {CORES} core{'s' if CORES > 1 else ''}, in {arithmetic}: "
    assert on in (record / "table.md").read_text()
    _in_json("record.json", lambda content: content["arms"][0]["runs"][0].update(cores=[1, 4]))(record)
    record_writer.renew(record)
    assert f"- default, seed 1, on 1 to 4 cores, in {arithmetic}: " in (record / "table.md").read_text()
    _in_json("record.json", lambda content: [run.pop("cores") for arm in content["arms"] for run in arm["runs"]])(
        record
    )
    record_writer.renew(record)
    table = (record / "table.md").read_text()
    assert f"- default, seed 1, in {arithmetic}: " in table and "core" not in table
    assert verify(clone / "records") == 0


def _study(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the tiny study, two runs at a time."""
    at = workspace(folder)
    options = [f"DATA={at.data}", f"RUNS={at.runs}", f"RECORD={at.record}", "JOBS=2"]
    with output.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.tiny_run", "study", *options],
            stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def _programs_at_work_in(folder: Path) -> list[str]:
    """Return the command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if str(folder) in line else []
    return found


@pytest.mark.skipif(CORES < 2, reason="ONE CORE: two runs side by side need two")
def test_runs_side_by_side_are_stopped_together_and_go_on(made: Path, tmp_path: Path) -> None:
    """SIGTERM ends every program of a study; the same command finishes it, with the results of runs in a row."""
    shutil.copytree(made / "data", tmp_path / "data")
    process = _study(tmp_path, tmp_path / "first.txt")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs" / "tiny").glob("*/trainer/queries.jsonl")):
        assert process.poll() is None, (tmp_path / "first.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "the same command goes on from here" in (tmp_path / "first.txt").read_text()
    assert _programs_at_work_in(tmp_path) == []

    assert _study(tmp_path, tmp_path / "second.txt").wait(200) == 0, (tmp_path / "second.txt").read_text()
    record = workspace(tmp_path).record
    results, alone = records.read_results(record), records.read_results(workspace(made).record)
    assert [[run.points[-1].correct for run in arm.runs] for arm in results.arms] == [
        [run.points[-1].correct for run in arm.runs] for arm in alone.arms
    ]
    shares = {CORES // 2, CORES - CORES // 2}
    assert {number for arm in results.arms for run in arm.runs for number in run.cores} <= shares
    assert all(run.cores for arm in results.arms for run in arm.runs)
    assert verify(tmp_path / "records") == 0

    # Weights were made once for each seed, and the console has only whole lines, for each beginning and end.
    assert len(list((tmp_path / "runs" / "weights").iterdir())) == 2
    lines = (tmp_path / "second.txt").read_text().splitlines()
    assert sum("  end    run " in line for line in lines) == 3
    assert all(line.startswith("[study] ") for line in lines[:-1] if line)
    assert "make run" not in "".join(lines[:-1])
    assert "trainer's count and the log's agree" in (tmp_path / "runs/tiny/random-seed1/output.log").read_text()


def _in_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(record: Path) -> None:
        path = record / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def _better_entry(bundle: Any) -> None:
    """Raise an accuracy in the evidence itself."""
    for index, text in enumerate(bundle["entries"]):
        entry = json.loads(text)
        if entry["op"] == "evaluation":
            entry["detail"]["correct"] += 1
            bundle["entries"][index] = json.dumps(entry, separators=(",", ":"), sort_keys=True)


def _more_right(result: Any) -> None:
    result["points"][-1]["evaluation"]["correct"] += 1


RUN = "runs/default-seed1"


def _another_seed_s_log(record: Path) -> None:
    """Let one good run stand for two seeds."""
    shutil.copytree(record / RUN, record / "runs/default-seed2", dirs_exist_ok=True)
    for name in ("config.json", "result.json"):
        _in_json(f"runs/default-seed2/{name}", lambda content: content.update(seed=2))(record)


def _another_arm_s_log(record: Path) -> None:
    """Let one good run stand for two arms; both were opened under the same name."""
    for name in ("evidence.json", "log-key.txt", "result.json"):
        shutil.copyfile(record / RUN / name, record / "runs/random-seed1" / name)


def _evaluated_twice(bundle: Any) -> None:
    """Turn the second evaluation into another one of the first point."""
    entries = [json.loads(text) for text in bundle["entries"]]
    second = [seq for seq, entry in enumerate(entries) if entry["op"] == "evaluation"][1]
    entries[second]["detail"]["evaluated_budget"] = 3
    bundle["entries"] = [json.dumps(entry, separators=(",", ":"), sort_keys=True) for entry in entries]


def _predictions(change: Callable[[list[list[int]]], object]) -> Callable[[Path], None]:
    """Change the published predictions of a run."""

    def damage(record: Path) -> None:
        path = record / RUN / "predictions.jsonl.gz"
        points = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        change(points)
        lines = (json.dumps(point, separators=(",", ":")) + "\n" for point in points)
        path.write_bytes(gzip.compress("".join(lines).encode()))

    return damage


def _other_accuracies(record: Path) -> None:
    """Let every point have one right prediction fewer, in a log that was signed again and all that agrees with it."""
    key = SigningKey.generate("labelmeter/forged")
    bundle = json.loads((record / RUN / "evidence.json").read_text())
    entries = [json.loads(text) for text in bundle["entries"]]
    for entry in entries:
        entry["log_id"] = "forged"
        if entry["op"] == "evaluation":
            entry["detail"]["correct"] -= 1
    texts = [json.dumps(entry, separators=(",", ":"), sort_keys=True) for entry in entries]
    head = TreeHead.sign(key, len(texts), MerkleTree(leaf_hash(text.encode()) for text in texts).root())
    bundle |= {"key": key.verifier.vkey, "checkpoint": head.note, "entries": texts, "heads": []}
    (record / RUN / "evidence.json").write_text(json.dumps(bundle))
    (record / RUN / "log-key.txt").write_text(key.verifier.vkey)
    result = json.loads((record / RUN / "result.json").read_text())
    for point in result["points"]:
        point["evaluation"]["correct"] -= 1
    (record / RUN / "result.json").write_text(json.dumps(result))
    record_writer.renew(record)


def _another_gallery(record: Path) -> None:
    shutil.copyfile(record / "runs/random-seed1/asked.png", record / RUN / "asked.png")


def _never_opened(bundle: Any) -> None:
    bundle["entries"] = [text for text in bundle["entries"] if '"run-opened"' not in text]


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a number in the table": (
        lambda record: (record / "table.md").write_text((record / "table.md").read_text().replace("(2)", "(5)")),
        "is not what the evidence adds up to",
    ),
    "an accuracy in a result": (_in_json(f"{RUN}/result.json", _more_right), "the log has other evaluations"),
    "an accuracy in a log": (_in_json(f"{RUN}/evidence.json", _better_entry), "the log has other evaluations"),
    "a log without its last entry": (
        _in_json(f"{RUN}/evidence.json", lambda bundle: bundle["entries"].pop()),
        "does not hold",
    ),
    "a result without its class names": (
        _in_json(f"{RUN}/result.json", lambda result: result["dataset"].pop("class_names")),
        "it is damaged (KeyError: 'class_names')",
    ),
    "another key": (
        lambda record: shutil.copyfile(record / "runs/default-seed2/log-key.txt", record / RUN / "log-key.txt"),
        "is pinned",
    ),
    "a run left out": (
        _in_json("record.json", lambda record: record["arms"][0]["runs"].pop()),
        "has runs that it does not count",
    ),
    "a run counted twice": (
        _in_json("record.json", lambda record: record["arms"][0]["runs"].append(record["arms"][0]["runs"][0])),
        "counts one seed of default twice",
    ),
    "a run under another arm's name": (
        _in_json("record.json", lambda record: record["arms"][1].update(strategy="margin")),
        "not as its record says",
    ),
    "a log of another seed": (_another_seed_s_log, "has the log of a run opened as ('tiny-curve seed 1', 18"),
    "a log of another arm": (_another_arm_s_log, "counts one log for two runs"),
    "a log of another budget": (
        _in_json(f"{RUN}/config.json", lambda config: config["profile"]["rounds"].pop()),
        "has the log of a run opened as ('tiny-curve seed 1', 18",
    ),
    "a point evaluated twice": (_in_json(f"{RUN}/evidence.json", _evaluated_twice), "evaluates 3 labels a second time"),
    "a run never opened": (_in_json(f"{RUN}/evidence.json", _never_opened), "its run was never opened"),
    "a point of the picture": (
        lambda record: (record / "curve.svg").write_text((record / "curve.svg").read_text().replace("\nL ", "\nM ", 1)),
        "curve.svg is not what the evidence draws",
    ),
    "no picture at all": (lambda record: (record / "curve.svg").write_text("<svg/>"), "is not what the evidence draws"),
    "a missing picture": (lambda record: (record / "curve.svg").unlink(), "curve.svg"),
    "a prediction": (
        _predictions(lambda points: points[1].__setitem__(0, 2 - points[1][0] or 1)),
        "does not hold the predictions that the log has with 6 labels",
    ),
    "a point without predictions": (_predictions(lambda points: points.pop()), "does not have one line for each"),
    "predictions that are no file of gzip": (
        lambda record: (record / RUN / "predictions.jsonl.gz").write_text("[1]"),
        "predictions.jsonl.gz cannot be read",
    ),
    "predictions thrown away": (
        lambda record: (record / RUN / "predictions.jsonl.gz").unlink(),
        "is not what the evidence adds up to",
    ),
    "accuracies signed anew by who holds the key": (_other_accuracies, "predictions are right, and the log has "),
    "images of another run": (_another_gallery, "asked.png does not show the images that the log has"),
    "official images by its own word": (
        _in_json(f"{RUN}/result.json", lambda result: result["dataset"].update(official=True)),
        "is wrong about whether its images are the official ones",
    ),
    "a record nested too deep": (
        lambda record: (record / RUN / "evidence.json").write_text("[" * 100_000),
        "is not a complete record",
    ),
    "a file that is no text": (lambda record: (record / "table.md").write_bytes(b"\xff"), "can't decode byte"),
    "a missing file": (lambda record: (record / RUN / "result.json").unlink(), "is not a complete record"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_record_is_named(
    clone: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    """Whatever is changed, the check fails and says where."""
    damage(workspace(clone).record)
    assert verify(clone / "records") == 1
    out = capsys.readouterr().out
    assert out.startswith("FAILED")
    assert message in out


def test_a_picture_of_another_matplotlib_is_not_compared(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Versions of Matplotlib write the same curve in other bytes: that is printed, and is no failure."""
    picture = workspace(clone).record / "curve.svg"
    picture.write_text(re.sub(r"Matplotlib v[0-9.]+", "Matplotlib v1.0.0", picture.read_text()))
    assert verify(clone / "records") == 0
    assert "; its picture was drawn by another Matplotlib and was not compared\n" in capsys.readouterr().out


def test_predictions_are_published_as_the_log_has_them(made: Path) -> None:
    """What the records' page tells an outsider to do: unpack, take a line, hash it, compare with the entry."""
    run = workspace(made).record / RUN
    entries = [json.loads(text) for text in json.loads((run / "evidence.json").read_text())["entries"]]
    signed = [entry["detail"]["predictions_sha256"] for entry in entries if entry["op"] == "evaluation"]
    lines = gzip.decompress((run / "predictions.jsonl.gz").read_bytes()).splitlines()
    assert [hashlib.sha256(line).hexdigest() for line in lines] == signed
    assert len(signed) == 3


def test_a_record_says_whether_its_accuracies_were_recounted(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the labels, without them, and a record that has published nothing; each prints what it stands for."""
    record = workspace(clone).record
    assert verify(record) == 0
    out = capsys.readouterr().out
    assert "3 runs; accuracies recounted from the published predictions and the public labels\n" in out
    assert f"  default: 3 labels {tables.mean_and_sd(list(_percents(record).values()))}, 6 labels " in out
    assert verify(clone / "records") == 0
    assert capsys.readouterr().out == out
    assert verify_records.main([str(record)], PROGRAMS) == 0
    assert "cannot be recounted: no folder here has the labels of synthetic bars\n" in capsys.readouterr().out
    for name in records.PUBLISHED:
        (record / RUN / name).unlink()
    record_writer.renew(record)
    assert verify(record) == 0
    assert "2 runs recounted from their predictions, of the others by the log; no predict" in capsys.readouterr().out
    for path in [path for name in records.PUBLISHED for path in record.rglob(name)]:
        path.unlink()
    record_writer.renew(record)
    assert verify(record) == 0
    assert "3 runs; accuracies by the log; no predictions published\n" in capsys.readouterr().out


def _percents(record: Path) -> dict[int, float]:
    return records.read_results(record).arms[0].percent_at(3)


def test_a_run_whose_files_are_not_those_of_its_log_is_not_recorded(made: Path, tmp_path: Path) -> None:
    """Predictions of the trainer's folder are compared with the signed evaluations before they are published."""
    trainer = shutil.copytree(made / "runs/tiny/random-seed1/trainer", tmp_path / "trainer")
    arms = records.read_results(workspace(made).record).arms
    points = next(arm for arm in arms if arm.name == "random").runs[0].points
    predictions.write(trainer, points, tmp_path / "predictions.jsonl.gz")
    frozen = trainer / "predictions-at-3.json"
    content = json.loads(frozen.read_text())
    frozen.write_text(json.dumps(content | {"predictions": content["predictions"][::-1]}))
    with pytest.raises(RunError, match=r"at-3.json does not hold the predictions that were evaluated with 3 labels"):
        predictions.write(trainer, points, tmp_path / "predictions.jsonl.gz")


def test_a_folder_that_is_no_record_is_no_success(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a good record too: whatever lies in the folder of records claims something."""
    (clone / "records" / "2026-01-01_miracle").mkdir()
    (clone / "records" / "2026-01-01_miracle" / "table.md").write_text("99.9%")
    assert verify(clone / "records") == 1
    assert "FAILED    " in capsys.readouterr().out


def test_what_others_got_from_a_run_s_log_is_in_the_table(clone: Path) -> None:
    """The run's line has the labels and the accuracies that its log gave to others."""

    def another_run_s(bundle: Any) -> None:
        own = [json.loads(text) for text in bundle["entries"]]
        others = [
            entry | {"run": "run-other"} for entry in own if entry["outcome"] in ("opened", "revealed", "evaluated")
        ]
        bundle["entries"] += [json.dumps(entry) for entry in others]

    _in_json(f"{RUN}/evidence.json", another_run_s)(workspace(clone).record)
    table = tables.render(records.read_results(workspace(clone).record))
    assert "; 18 labels on its log were given to others; 3 accuracies on its log were told to others (" in table


def test_no_record_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder verifies nothing, and says so."""
    assert verify_records.main([str(tmp_path)], PROGRAMS) == 1
    assert "there is no record" in capsys.readouterr().err
