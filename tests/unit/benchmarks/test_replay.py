"""The replay learns from a run's queries in their order, on the images of a re-drawn split alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import replay
from label_service.data.dataset import CARD
from tests.support.datasets import make_idx_dataset
from trainer.profiles import CPU


def evidence_of(folder: Path, asked: list[list[int]], pool_size: int) -> Path:
    """Write the evidence of a run that asked for these batches of images."""
    entries = [{"charged": len(ids), "ids": ids} for ids in asked]
    path = folder / "evidence.json"
    path.write_text(json.dumps({"pool_size": pool_size, "entries": [json.dumps(entry) for entry in entries]}))
    return path


def redrawn(folder: Path) -> Path:
    """Make a data folder that says it is re-drawn split 7."""
    make_idx_dataset(folder, pool=60, test=12, classes=10, side=12)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"redraw_seed": 7}))
    return folder


def test_queries_of_the_official_pool_are_found_again_in_the_split(tmp_path: Path) -> None:
    """Each asked image is named by its row in the split's pool, in order, once; held-out images are left out."""
    order = np.random.default_rng(7).permutation(20)
    held_out, pool = order[:4], order[4:]
    asked = [[int(pool[3]), int(held_out[1])], [], [int(pool[0]), int(pool[3]), int(pool[15])]]
    found = replay.read_queries(evidence_of(tmp_path, asked, 20), 16, 7)
    assert found.tolist() == [3, 0, 15]


def test_queries_of_a_run_on_the_split_are_taken_as_they_are(tmp_path: Path) -> None:
    """The ids of queries.jsonl are rows of the pool already."""
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps({"order": n, "id": row}) + "\n" for n, row in enumerate((5, 2, 9))))
    assert replay.read_queries(path, 16, 7).tolist() == [5, 2, 9]


def test_a_part_of_the_pool_has_the_asked_images_and_no_image_twice() -> None:
    """The asked images come first, in order, and the others are drawn by the seed."""
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1)
    split = replay.Split(images, images.flatten().long(), images[:2], torch.zeros(2, dtype=torch.long))
    asked = torch.tensor([7, 3, 29])
    part, rows = split.part(asked, 12, seed=1)
    assert part.pool_labels[rows].tolist() == [7, 3, 29]
    assert len(set(part.pool_labels.tolist())) == len(part.pool) == 12
    assert torch.equal(part.pool.flatten().long(), part.pool_labels)
    assert not torch.equal(split.part(asked, 12, seed=2)[0].pool_labels, part.pool_labels)


_BATCHES = {"batch": CPU.finetune.batch, "labelled_batch": CPU.finetune.labelled_batch}


@pytest.mark.parametrize("name", replay.VARIANTS)
def test_a_variant_changes_training_and_nothing_else(name: str) -> None:
    """Paired results differ by the training alone: rounds, graph, encoder and pretraining stay the profile's."""
    changed = replay.VARIANTS[name](CPU)
    assert changed.budgets == CPU.budgets
    unchanged = {"rounds": CPU.rounds, "finetune": changed.finetune.model_copy(update=_BATCHES)}
    assert changed.model_copy(update=unchanged) == CPU
    assert (changed == CPU) == (name == "as it is")


def test_variants_are_measured_in_pairs_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two variants learn from one run's queries; the same command reads the results that it finds."""
    data = redrawn(tmp_path / "data")
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"id": row}) + "\n" for row in range(0, 60, 3)))
    out = tmp_path / "out"
    command = f"replay --data {data} --queries {queries} --out {out} --profile smoke --rounds 10 20 --counts 20".split()
    monkeypatch.setattr("sys.argv", [*command, "--variants", "as it is", "mixup 0.75", "--images", "50"])
    assert replay.main() == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 20.")]
    # Profile smoke ends with two phases; each is measured under each variant.
    assert [line.split(" | ")[:2] for line in table] == [
        [f"| 20.{phase}", name] for phase in (1, 2) for name in ("as it is", "mixup 0.75")
    ]
    assert " | +0.00 ± 0.00 | " in table[0]
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("measured.json")}
    assert len(kept) == 2
    assert replay.main() == 0
    assert kept == {path: path.stat().st_mtime_ns for path in out.rglob("measured.json")}
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 20.")] == table


def test_official_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is no re-drawn split ends in one sentence, before any label is read."""
    data = make_idx_dataset(tmp_path / "data", pool=60, test=12, side=12)
    monkeypatch.setattr("sys.argv", f"replay --data {data} --queries none --out {tmp_path / 'out'}".split())
    assert replay.main() == 2
    assert "is no re-drawn split; make one with `prepare --redraw SEED`." in capsys.readouterr().err
