"""Public images and labels are found by what a record says of its data, and split as the service splits them."""

import json
from pathlib import Path

import numpy as np
import pytest

from label_service.data import idx, prepare
from label_service.data.dataset import (
    OFFICIAL_CONTENT_SHA256,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    images_fingerprint,
    stored_path,
)
from label_service.data.prepare import PrepareOptions
from scripts.errors import RunError
from scripts.study import public_data
from scripts.study.public_data import DEBIAN_FOLDER, find_split
from tests.support.datasets import make_idx_dataset, read_card_json, read_test_labels

ROOT = Path(__file__).parents[4]
UNSEEN = ROOT / "records/2026-11-25_unseen-split/runs/uncertain-clusters-seed61/result.json"
needs_debian = pytest.mark.skipif(not DEBIAN_FOLDER.exists(), reason="NO DATA: needs Debian's dataset-fashion-mnist")


def dataset_of(folder, seed=None):
    card = read_card_json(folder)
    digests = {name: card["files"][stored_path(name)]["content_sha256"] for name in OFFICIAL_CONTENT_SHA256}
    return {"fingerprint": images_fingerprint(digests), "redraw_seed": seed}


def test_official_files_are_those_that_the_service_knows():
    """Two programs, one definition each, and no difference."""
    assert images_fingerprint(OFFICIAL_CONTENT_SHA256) == public_data.OFFICIAL_FINGERPRINT
    labels = tuple(OFFICIAL_CONTENT_SHA256[name] for name in (TRAIN_LABELS, TEST_LABELS))
    assert labels == public_data.OFFICIAL_LABELS_SHA256


def test_a_folder_is_found_by_its_images(tmp_path):
    """The second folder has them; a folder that is not there, or is cut short, has none."""
    data = [make_idx_dataset(tmp_path / str(seed), seed=seed) for seed in range(3)]
    found = find_split(dataset_of(data[1]), (tmp_path / "none", *data))
    assert found is not None
    assert found.test_labels.tolist() == read_test_labels(data[1])
    assert len(found.pool_images) == len(found.pool_labels) == 200
    (data[2] / stored_path(TRAIN_IMAGES)).write_bytes(b"\x1f\x8b")
    wanted = dataset_of(data[2])
    assert find_split(wanted, (data[2], data[0])) is None


def test_labels_of_many_classes_are_read(tmp_path):
    """The service keeps more than 256 classes in two bytes each."""
    images = np.zeros((600, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(600) % 300)
    card = prepare.prepare(tmp_path / "data", PrepareOptions(tmp_path / "a.npz", test_share=0.5), lambda _: None)
    found = find_split(dataset_of(tmp_path / "data"), (tmp_path / "data",))
    assert found is not None and len(card.class_names) == 300
    together = np.concatenate([found.pool_labels, found.test_labels])
    assert np.bincount(together).tolist() == [2] * 300


@needs_debian
@pytest.mark.realdata
def test_a_split_is_drawn_as_the_service_draws_it():
    """From the training images and from all; the fingerprint says which, and another seed's is refused."""
    unseen = json.loads(UNSEEN.read_text())["dataset"]
    split = find_split(unseen, (DEBIAN_FOLDER,))
    arrays = {
        name: idx.parse_labels(idx.read_content(DEBIAN_FOLDER / f"{name}.gz"), name)
        for name in (TRAIN_LABELS, TEST_LABELS)
    }
    labels = np.concatenate(list(arrays.values()))
    # Without a share, `prepare` draws as many test images as the official test set has.
    pool, test = prepare.redraw(len(labels), unseen["redraw_seed"], len(arrays[TEST_LABELS]))
    assert np.array_equal(split.test_labels, labels[test])
    assert np.array_equal(split.pool_labels, labels[pool])
    with pytest.raises(RunError, match="are not those of the re-drawn split 8"):
        find_split(unseen | {"redraw_seed": 8}, (DEBIAN_FOLDER,))
