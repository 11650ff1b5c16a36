"""The commands of the page on own data, run on tiny sources of each form."""

import csv
import shlex
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from label_service.data import idx
from label_service.data.dataset import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from tests.docs import ROOT, commands, section

CLASSES = ("cat", "dog", "owl")
PAGE = section("docs/own-data.md", "One example of each source")
EXAMPLES = {line.partition("--from ")[2].split()[0]: line for line in commands(PAGE)}


def arrays(count, seed):
    """Return random pictures in mixed order and their labels."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 12, 12), dtype=np.uint8), generator.permutation(np.arange(count) % 3)


TRAIN, TEST = arrays(90, 0), arrays(30, 1)


def write_pictures(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_idx(folder, classes=3):
    folder.mkdir(parents=True)
    for names, (images, labels) in (((TRAIN_IMAGES, TRAIN_LABELS), TRAIN), ((TEST_IMAGES, TEST_LABELS), TEST)):
        (folder / names[0]).write_bytes(idx.to_bytes(images))
        (folder / names[1]).write_bytes(
            idx.labels_to_bytes(np.arange(len(labels)) % classes if classes > 3 else labels)
        )


def write_hugging_face(folder):
    datasets = pytest.importorskip("datasets", reason="EXAMPLE NOT RUN: install labelmeter with its extra huggingface")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    parts = {
        name: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}, features=features
        )
        for name, (images, labels) in (("train", TRAIN), ("test", TEST))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.DatasetDict(parts).save_to_disk(str(folder))


def make_source(given, folder):
    """Write what an example reads."""
    if given == "pictures":
        write_pictures(folder / given / "train", *TRAIN)
        write_pictures(folder / given / "test", *TEST)
    elif given == "undivided":
        write_pictures(folder / given, *TRAIN)
    elif given == "table.csv":
        write_pictures(folder / "photos", *TRAIN)
        with (folder / given).open("w", newline="") as file:
            rows = [(path.relative_to(folder), path.parent.name) for path in sorted(folder.rglob("*.png"))]
            csv.writer(file).writerows([("path", "label"), *rows])
    elif given == "arrays.npz":
        np.savez(folder / given, x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0], y_test=TEST[1])
    elif given.startswith("torchvision:MNIST:"):
        write_idx(folder / given.rpartition(":")[2] / "MNIST" / "raw", classes=10)
    elif given == "saved":
        write_hugging_face(folder / given)
    else:
        write_idx(folder / given)


@pytest.mark.parametrize("given", EXAMPLES)
def test_the_example_of_each_source_prepares_it(given, tmp_path):
    """As the page has it, without a network."""
    make_source(given, tmp_path)
    words = [sys.executable, *shlex.split(EXAMPLES[given])[1:]]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("10 classes" if "MNIST" in given else "3 classes") in done.stdout + done.stderr


def test_there_is_an_example_of_each_source():
    """Each row of the table has one."""
    sources = section("docs/own-data.md", "Your own data").partition("| `--from` |")[2].partition("\n\n")[0]
    assert 5 < sources.count("\n| `") <= len(EXAMPLES)
