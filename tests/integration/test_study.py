"""A study makes real runs over real services, and its record is believed for its evidence and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import records, study
from scripts.run import Programs
from scripts.study import Arm, Place, Study
from tests.datasets import make_idx_dataset
from tests.integration.tiny_trainer import TINY_CURVE
from trainer.profiles import PROFILES

PROGRAMS = Programs(trainer=(sys.executable, "-m", "tests.integration.tiny_trainer"))
TINY_STUDY = Study("Tiny", (Arm("default", "tiny-curve", (1, 2)), Arm("random", "tiny-curve", (1,), "random")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three runs: its folder, with data, runs and record."""
    folder = tmp_path_factory.mktemp("study")
    make_idx_dataset(folder / "data", pool=200, test=50, classes=3, side=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "tiny-curve", TINY_CURVE)
        patch.setenv("OMP_NUM_THREADS", "1")
        study.carry_out(TINY_STUDY, place(folder), PROGRAMS)
    return folder


def place(folder: Path) -> Place:
    return Place(folder / "data", folder / "runs" / "tiny", folder / "records" / "2020-01-01_tiny")


def verify(folder: Path) -> int:
    return records.main([str(folder)], PROGRAMS)


def test_a_record_has_a_table_a_picture_and_the_evidence_of_each_run(made: Path) -> None:
    """Three points a run, means over seeds, a paired difference over the seed both arms have; and it verifies."""
    record = place(made).record
    numbers = records.read_numbers(record)
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in numbers.arms] == [
        ("default", [1, 2]),
        ("random", [1]),
    ]
    assert numbers.labels == [3, 6, 18]
    table = (record / "table.md").read_text()
    first = numbers.arms[0].at(18)
    assert f"{sum(first.values()) / 2:.2f} ± " in table
    assert (record / "curve.svg").read_text().startswith("<?xml")
    assert verify(made / "records") == 0


def test_a_run_s_points_are_what_its_log_and_its_frozen_predictions_say(made: Path) -> None:
    """The trainer's result, the log's entries and the frozen files tell of the same three points, in order."""
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
    """What is chosen ahead is asked in parts: the first three are the first of six chosen at once."""
    lines = (made / "runs" / "tiny" / "default-seed1" / "trainer" / "queries.jsonl").read_text().splitlines()
    rounds = [json.loads(line)["round"] for line in lines]
    assert rounds[:6] == [0, 0, 0, 1, 1, 1]
    assert len({json.loads(line)["id"] for line in lines}) == 18


def test_weights_are_made_once_for_a_seed(made: Path) -> None:
    """Two seeds, three runs, two pretrainings; and no run holds weights of its own."""
    assert len(list((made / "runs" / "weights").iterdir())) == 2
    assert not list((made / "runs" / "tiny").glob("*/trainer/encoder.pt"))


def test_a_finished_study_makes_no_run_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command renews the record from what is there."""
    monkeypatch.setitem(PROFILES, "tiny-curve", TINY_CURVE)
    before = (place(made).record / "table.md").read_bytes()
    (place(made).record / "table.md").unlink()
    study.carry_out(TINY_STUDY, place(made), Programs(trainer=("false",)))
    assert (place(made).record / "table.md").read_bytes() == before


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
    "a missing file": (lambda record: (record / RUN / "result.json").unlink(), "is not a complete record"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_record_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], told: str
) -> None:
    """Whatever is changed, the check fails and says where."""
    shutil.copytree(made / "records", tmp_path / "records")
    damage(tmp_path / "records" / "2020-01-01_tiny")
    assert verify(tmp_path / "records") == 1
    out = capsys.readouterr().out
    assert out.startswith("FAILED")
    assert told in out


def test_no_record_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder verifies nothing, and says so."""
    assert verify(tmp_path) == 1
    assert "there is no record" in capsys.readouterr().err
