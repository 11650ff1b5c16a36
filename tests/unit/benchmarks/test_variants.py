"""Variants of a profile are run whole on a development split, in pairs, and go on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import variants
from benchmarks.redrawn import load_split
from label_service.data.dataset import CARD
from tests.support.datasets import make_idx_dataset
from trainer.profiles import CPU
from trainer.records.run_records import read_queries


def redrawn(folder: Path) -> Path:
    """Make a data folder that says it is re-drawn split 7."""
    make_idx_dataset(folder, pool=60, test=12, classes=10, side=12)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"redraw_seed": 7}))
    return folder


_BATCHES = {"batch": CPU.finetune.batch, "labelled_batch": CPU.finetune.labelled_batch}


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_changes_training_and_nothing_else(name: str) -> None:
    """Paired results differ by the training alone: rounds, graph, encoder and pretraining stay the profile's."""
    changed = variants.VARIANTS[name](CPU)
    assert changed.budgets == CPU.budgets
    unchanged = {"rounds": CPU.rounds, "finetune": changed.finetune.model_copy(update=_BATCHES)}
    assert changed.model_copy(update=unchanged) == CPU
    assert (changed == CPU) == (name == "as it is")


def test_variants_are_run_in_pairs_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two variants of one seed ask for the same images at first; killed after a round, one goes on, asking no more."""
    data, out = redrawn(tmp_path / "data"), tmp_path / "out"
    command = f"variants --data {data} --out {out} --profile smoke --budget 20 --counts 7 --seeds 1".split()
    monkeypatch.setattr("sys.argv", [*command, "--variants", "as it is", "mixup 0.75"])
    measure, moments = variants._measure, []

    def measure_once(*arguments: object) -> variants.Measured:
        moments.append(arguments)
        if len(moments) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(variants, "_measure", measure_once)
    with pytest.raises(KeyboardInterrupt):
        variants.main()
    assert variants.main() == 0
    # Two points of two variants; the one that was lost is measured again.
    assert len(moments) == 5
    table = [
        line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(("| 7 ", "| 20 "))
    ]
    assert table == [[f"| {labels}", name] for labels in (7, 20) for name in ("as it is", "mixup 0.75")]
    folders = sorted(folder for folder in out.iterdir() if "seed1" in folder.name)
    asked = [[record.id for record in read_queries(folder)] for folder in folders]
    assert [len(set(ids)) for ids in asked] == [20, 20]
    assert asked[0][:13] == asked[1][:13]
    monkeypatch.setattr(variants, "_measure", lambda *_: pytest.fail("a finished variant was run again"))
    assert variants.main() == 0


def test_what_is_believed_is_counted_without_the_labels_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every image of the pool asked for but one, its belief alone decides."""
    data, out = redrawn(tmp_path / "data"), tmp_path / "out"
    command = f"variants --data {data} --out {out} --profile smoke --budget 59 --seeds 1 --variants".split()
    monkeypatch.setattr("sys.argv", [*command, "as it is"])
    assert variants.main() == 0
    (measured,) = out.glob("as-it-is-*/measured.jsonl")
    row = json.loads(measured.read_text())
    assert row["labels"] == 59 and row["pool"] in (0.0, 100.0)


def test_a_share_of_the_answers_is_wrong_and_the_truth_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of 60 labels is changed, to other classes; the same again the next time."""
    labels = torch.arange(60) % variants.CLASSES
    changed = variants._partly_wrong(labels, 0.25)
    assert int((changed != labels).sum()) == 15
    assert int(changed.min()) >= 0 and int(changed.max()) < variants.CLASSES
    assert torch.equal(changed, variants._partly_wrong(labels, 0.25))
    data, out = redrawn(tmp_path / "data"), tmp_path / "out"
    command = f"variants --data {data} --out {out} --profile smoke --budget 20 --seeds 1 --wrong 1 --variants".split()
    monkeypatch.setattr("sys.argv", [*command, "as it is"])
    assert variants.main() == 0
    (folder,) = out.glob("as-it-is-*")
    truth = load_split(data)[1]
    assert all(record.label != int(truth[record.id]) for record in read_queries(folder))


def test_official_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is no re-drawn split ends in one sentence, before any label is read."""
    data = make_idx_dataset(tmp_path / "data", pool=60, test=12, side=12)
    monkeypatch.setattr("sys.argv", f"variants --data {data} --out {tmp_path / 'out'}".split())
    assert variants.main() == 2
    assert "is no re-drawn split; make one with `prepare --redraw SEED`." in capsys.readouterr().err
