"""`make run PROFILE=smoke` for real: both programs, the real images, the real database, kills included."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from label_service.data.dataset import FILES, find_file
from label_service.data.sources import DEBIAN_FOLDER, DEBIAN_PACKAGE

ROOT = Path(__file__).parents[2]
HAS_DATA = all(find_file(DEBIAN_FOLDER, name) for name in FILES)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.timeout(900),  # the first test pays for the whole run
    pytest.mark.skipif(not HAS_DATA, reason=f"NO REAL DATA: install the Debian package {DEBIAN_PACKAGE}"),
]


def start(folder, out, *variables):
    """Start `make run` on the real data in a process group of its own, with the environment these tests run in."""
    # --old-file: whoever runs the tests has made the environment; make must not change it under them.
    make = ["make", "--no-print-directory", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed", "run"]
    return subprocess.Popen(
        [*make, "PROFILE=smoke", f"DATA={folder / 'data'}", f"OUT={folder / out}", *variables],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def make_run(folder, out, *variables):
    """Run it to its end; return the exit code and everything it printed."""
    process = start(folder, out, *variables)
    printed, _ = process.communicate(timeout=600)
    return process.returncode, printed


def read_ids(out):
    """Return the queried ids in order, and the labels they got."""
    lines = (out / "trainer" / "queries.jsonl").read_text().splitlines()
    return [(record["id"], record["label"]) for record in map(json.loads, lines)]


def read_log(out):
    return [json.loads(line) for line in (out / "query-log.ndjson").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the real data, prepared from Debian's package."""
    folder = tmp_path_factory.mktemp("make-run")
    prepare = [sys.executable, "-m", "label_service", "prepare", "--data", folder / "data", "--from", DEBIAN_FOLDER]
    subprocess.run(prepare, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """A smoke run to its end: the folder of all runs, and what was printed."""
    code, printed = make_run(folder, "finished")
    assert code == 0, printed[-5000:]
    return folder, printed


def test_smoke_run_ends_with_counts_that_agree(finished):
    """The closing table has the same number of queries from the trainer and from the log, and says so."""
    folder, printed = finished
    table = dict(line.strip().split("  ", 1) for line in printed.splitlines() if line.startswith("  ") and "  " in line)
    table = {name: value.strip() for name, value in table.items()}
    asked = len(read_ids(folder / "finished"))
    assert asked > 0
    assert table["queries counted by the trainer"] == f"{asked:,}"
    assert table["queries of the run, by the log"] == f"{asked:,}"
    assert table["distinct labels of the run, by the log"] == f"{asked:,}"
    assert table["labels revealed to anybody else"] == "0"
    assert "95% interval" in table["test accuracy, by the log"]
    assert table["data set"] == "Fashion-MNIST"
    assert "The trainer's count and the log's agree." in printed
    assert Path(table["report"]).is_file()
    Path(table["report"]).unlink()
    again = [sys.executable, "-m", "trainer", "report", "--out", folder / "finished", "--data", folder / "data/images"]
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    assert Path(table["report"]).is_file()


def test_closing_table_has_the_rows_that_the_guide_shows(finished):
    """docs/running.md shows a table of the default run; its names are those of a real one, in order."""
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs/running.md").read_text(), re.DOTALL)
    printed = finished[1]
    shown_rows, printed_rows = (
        [re.split(r" {2,}", line.strip())[0] for line in table.splitlines() if line.startswith("  ")]
        for table in (shown, printed[printed.index("  data set") :])
    )
    (newer,) = re.findall(r"Newer versions print three rows more: (.+)", (ROOT / "docs/running.md").read_text())
    newer_rows = re.findall(r"`(.+?)`", newer)
    # `report` stands among the times and again among the files.
    assert newer_rows == [row for row in printed_rows[: printed_rows.index("evaluate")] if row not in shown_rows[:14]]
    assert shown_rows == [
        row for n, row in enumerate(printed_rows) if row not in newer_rows or n > printed_rows.index("evaluate")
    ]


def test_documented_command_verifies_the_run_and_finds_a_changed_one(finished, tmp_path):
    """Offline, from three files; with one label's entry changed the same command names it and exits with 1."""
    folder, printed = finished
    page = (ROOT / "docs/verifying.md").read_text()
    (command,) = re.findall(r"^\$ (python -m label_service verify .+ --receipts .+)$", page, re.MULTILINE)
    out = shutil.copytree(folder / "finished", tmp_path / "finished")
    (shown,) = re.findall(r"verify (\S+)/evidence\.json", command)
    command = command.replace("python ", f"{sys.executable} ", 1).replace(shown, str(out))
    verify = partial(subprocess.run, ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    done = verify()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("verified with ")
    assert f"{done.stdout.splitlines()[-1]} (" in printed
    bundle = json.loads((out / "evidence.json").read_text())
    at = next(seq for seq, entry in enumerate(bundle["entries"]) if '"outcome":"revealed"' in entry)
    bundle["entries"][at] = bundle["entries"][at].replace('"charged":', '"charged":1')
    (out / "evidence.json").write_text(json.dumps(bundle))
    done = verify()
    assert done.returncode == 1
    assert done.stdout.startswith(f"not verified: entry {at}: ")


def test_finished_run_prints_its_table_again(finished):
    """The same command on a finished folder takes no training and exits with 0."""
    folder, first = finished
    begin = time.monotonic()
    code, printed = make_run(folder, "finished")
    assert code == 0
    assert "holds a finished run" in printed
    assert printed[printed.index("  data set") :] == first[first.index("  data set") :]
    assert time.monotonic() - begin < 30


def test_changed_count_fails_the_command(finished):
    """The twin: one query less in the trainer's result, and make fails and names both numbers."""
    folder, _ = finished
    shutil.copytree(folder / "finished", folder / "tampered")
    path = folder / "tampered" / "trainer" / "result.json"
    result = json.loads(path.read_text())
    asked = result["queries_counted_by_trainer"]
    path.write_text(json.dumps(result | {"queries_counted_by_trainer": asked - 1}))
    code, printed = make_run(folder, "tampered")
    assert code != 0
    assert f"{asked - 1} queries counted by the trainer in result.json, but {asked} charged in the log" in printed


# The first is in the middle of pretraining, before anything but the settings is saved; the second between two rounds.
@pytest.mark.parametrize("moment", ["config.json", "queries.jsonl"])
def test_run_killed_with_everything_ends_with_the_same_queries(finished, moment):
    """kill -9 of make, service and trainer at once; the same command goes on to the queries of an unbroken run."""
    folder, _ = finished
    out = f"killed-at-{moment}"
    process = start(folder, out)
    deadline = time.monotonic() + 600
    while not (folder / out / "trainer" / moment).exists():
        assert process.poll() is None, process.communicate()[0][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / out / "trainer" / "result.json").exists(), "the run ended before it was killed"
    code, printed = make_run(folder, out)
    assert code == 0, printed[-5000:]
    assert read_ids(folder / out) == read_ids(folder / "finished")
    entries = [entry for entry in read_log(folder / out) if entry["op"] == "query"]
    assert sum(entry["charged"] for entry in entries) == len(read_ids(folder / "finished"))
    assert [entry["outcome"] for entry in entries].count("replayed") <= 1


def test_cut_file_of_own_data_is_one_sentence(folder):
    """A data folder with one file cut short is refused before anything is started, with make's non-zero exit."""
    cut = folder / "cut"
    shutil.copytree(DEBIAN_FOLDER, cut)
    victim = cut / "train-labels-idx1-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:10_000])
    process = start(folder, "never", f"DATA={cut}")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "train-labels-idx1-ubyte.gz is cut short or damaged" in printed
    assert "Traceback" not in printed
    assert not (folder / "never" / "trainer").exists()
