"""Jobs side by side: which cores each gets, where its output goes, and that none is left behind."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.errors import RunError
from scripts.study import jobs
from scripts.study.jobs import Job

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="ONE CORE: two jobs side by side need two")
DONE = "open('done', 'w').close()"


def job(folder, script, name="job"):
    """Make a job of a few lines of Python, which work in its folder."""
    out = folder / name
    command = (sys.executable, "-c", f"import os, sys, time; os.chdir({str(out)!r}); {script}")
    return Job(name, command, out, out / "done")


def work(count, *tasks):
    """Run jobs; return those that ended well, in the order of their ends."""
    ended = []
    jobs.work_through(count, tasks, lambda task, run_job: run_job(task), ended.append)
    return ended


def test_every_core_is_in_one_share(monkeypatch):
    """Shares differ by one core at most; one job alone is not limited."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7}, raising=False)
    assert jobs.shares(2) == [{0, 2}, {3, 5, 7}]
    assert jobs.shares(5) == [{0}, {2}, {3}, {5}, {7}]
    assert jobs.shares(1) == [None]
    with pytest.raises(RunError, match=r"^JOBS=6 is more than the cores here \(5\)"):
        jobs.shares(6)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(RunError, match="Only Linux"):
        jobs.shares(2)


@needs_two_cores
def test_each_of_two_jobs_keeps_to_its_share_and_its_own_log(tmp_path, capfd):
    """A job and its children see their cores alone; the console gets a line at each beginning and end."""
    script = f"print('cores', sorted(os.sched_getaffinity(0)), flush=True); time.sleep(0.5); {DONE}"
    ended = work(2, *(job(tmp_path, script, name) for name in "abc"))
    assert sorted(done.title for done in ended) == ["a", "b", "c"]
    middle = len(CORES) // 2
    halves = {f"cores {CORES[:middle]}\n", f"cores {CORES[middle:]}\n"}
    assert {(tmp_path / name / "output.log").read_text() for name in "ab"} == halves
    assert (tmp_path / "c/output.log").read_text() in halves
    assert jobs.cores_of(tmp_path / "a") in {(middle,), (len(CORES) - middle,)}
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 6 and all("begin" in line or "end" in line for line in lines)


def test_one_job_at_a_time_has_all_cores_and_the_console(tmp_path, capfd):
    """Nothing is hidden in a log."""
    assert len(work(1, job(tmp_path, f"print('hello', flush=True); {DONE}"))) == 1
    assert "hello" in capfd.readouterr().out
    assert not (tmp_path / "job/output.log").exists()
    assert jobs.cores_of(tmp_path / "job") == (len(CORES) or os.cpu_count(),)


@needs_two_cores
def test_a_failure_ends_the_others_and_shows_its_last_words(tmp_path, capfd):
    """The job's exit code is passed on, and what ran beside it is stopped at once."""
    patient = job(tmp_path, "open('pid', 'w').write(str(os.getpid())); time.sleep(60)", "patient")
    hasty = job(
        tmp_path, "\nwhile not os.path.exists('../patient/pid'): time.sleep(0.01)\nsys.exit('no luck')", "hasty"
    )
    started_s = time.monotonic()
    with pytest.raises(RunError, match=r"hasty did not end well(.|\n)*no luck"):
        work(2, patient, hasty)
    assert time.monotonic() - started_s < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "patient/pid").read_text()), 0)
    assert "FAILED hasty" in capfd.readouterr().out


@needs_two_cores
def test_two_tasks_that_need_one_thing_have_it_made_once(tmp_path, capfd):
    """A task may run several jobs, and may wait for another task's; if that one fails, the waiting one begins none."""
    lock, shared = threading.Lock(), job(tmp_path, "sys.exit('no luck')", "shared")

    def make(name, run_job):
        with lock:
            if not shared.result.exists():
                run_job(shared)
        run_job(job(tmp_path, DONE, name))

    with pytest.raises(RunError, match="shared did not end well"):
        jobs.work_through(2, ["a", "b"], make, print)
    assert capfd.readouterr().out.count("begin") == 1
    shared = job(tmp_path, DONE, "shared")
    jobs.work_through(2, ["a", "b"], make, print)
    assert sorted(line.split()[3] for line in capfd.readouterr().out.splitlines() if "begin" in line) == [
        "a",
        "b",
        "shared",
    ]


def test_a_job_without_its_result_did_not_end_well(tmp_path):
    """An exit code of 0 is not enough, and what waits is not begun."""
    with pytest.raises(RunError, match="job did not end well"):
        work(1, job(tmp_path, "pass"), job(tmp_path, DONE, "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("there", "noted"),
    [
        ({}, [2]),
        ({"cores.json": '{"cores": [1]}', "work": ""}, [1, 2]),
        ({"cores.json": '{"cores": [1]}', "done": ""}, [1]),
        ({"work": ""}, []),
        ({"done": ""}, []),
    ],
)
def test_cores_are_noted_of_work_done_and_only_if_all_of_it_is_known(tmp_path, monkeypatch, there, noted):
    """Work gone on with on others has both numbers; a look at what is finished is no work; older work has none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    folder = tmp_path / "job"
    for name, text in there.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    work(1, job(tmp_path, DONE))
    assert list(jobs.cores_of(folder)) == noted
    assert (folder / "cores.json").exists() == bool(noted)
    if noted:
        assert json.loads(Path(folder / "cores.json").read_text()) == {"cores": noted}
