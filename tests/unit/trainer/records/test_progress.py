"""What the trainer reports while it works, and that times and metrics survive a resume."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import RecordsUnwritable
from trainer.records.progress import (
    MetricWriter,
    StageClock,
    duration,
    overall_line,
    progress,
    read_stages,
    setup_logging,
)
from trainer.records.run_records import read_metrics


@dataclass
class FakeClock:
    """Time that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_log_file_keeps_everything_and_grows_over_sessions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sessions append to one file, with times in UTC; the console gets the short form without debug lines."""
    for session in (1, 2):
        with setup_logging(tmp_path / "out"):
            logging.getLogger("trainer.somewhere").debug("detail %d", session)
            logging.getLogger("trainer.somewhere").info("began %d", session)
            logging.getLogger("trainer.somewhere").warning("slow %d", session)
    lines = (tmp_path / "out" / "trainer.log").read_text().splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO trainer\.somewhere: began 1", lines[1])
    assert capsys.readouterr().err.splitlines() == ["began 1", "warning: slow 1", "began 2", "warning: slow 2"]


def test_verbose_shows_debug_lines_until_the_end_of_the_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--verbose brings the details to the console; after an error too, nothing is written any more."""
    with pytest.raises(KeyboardInterrupt), setup_logging(tmp_path, verbose=True):
        logging.getLogger("trainer").debug("detail")
        raise KeyboardInterrupt
    logging.getLogger("trainer").debug("too late")
    assert capsys.readouterr().err == "detail\n"
    assert "too late" not in (tmp_path / "trainer.log").read_text()


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """An OUT that is a file is refused by name."""
    (tmp_path / "out").touch()
    with pytest.raises(RecordsUnwritable, match=r"trainer\.log cannot be written"), setup_logging(tmp_path / "out"):
        pass


def test_without_a_terminal_lines_are_rare_and_tell_the_time_left(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred steps of one second at a line every thirty: three lines, nothing on the console itself."""
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    seen = []
    for item in progress(range(100), 100, "pretrain", line_every_s=30, clock=clock):
        seen.append(item)
        clock.now += 1
    assert seen == list(range(100))
    assert caplog.messages == [
        "pretrain: 30% (30 of 100), 1 min 10 s left",
        "pretrain: 60% (60 of 100), 40 s left",
        "pretrain: 90% (90 of 100), 10 s left",
    ]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_with_the_time_left_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar names the work and the total."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), 3, "embedding")) == [0, 1, 2]
    assert "embedding" in terminal.getvalue() and "/3" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (308, "5 min 8 s"),
        (3599.7, "1 h 0 min"),
        (7620, "2 h 7 min"),
    ],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    """Seconds, minutes, hours, rounded before they are split."""
    assert duration(seconds) == words


def test_seconds_add_up_by_stage_and_over_resumes(tmp_path: Path) -> None:
    """A second clock on the same folder goes on where the first stopped."""
    clock = FakeClock()
    first = StageClock(tmp_path, clock)
    with first.stage("pretrain"):
        clock.now += 10
    clock.now += 1000
    second = StageClock(tmp_path, clock)
    with second.stage("pretrain"):
        clock.now += 5
    with second.stage("finetune"):
        clock.now += 2
    assert second.seconds == {"pretrain": 15, "finetune": 2}
    assert json.loads((tmp_path / "stages.json").read_text()) == {"pretrain": 15, "finetune": 2}


def test_an_inner_stage_stops_the_outer_one(tmp_path: Path) -> None:
    """Waiting for labels inside the active loop is counted once."""
    clock = FakeClock()
    stages = StageClock(tmp_path, clock)
    with stages.stage("active"):
        clock.now += 3
        with stages.stage("labels"):
            clock.now += 4
        clock.now += 1
    assert stages.seconds == {"active": 4, "labels": 4}


def test_a_saved_stage_survives_a_kill(tmp_path: Path) -> None:
    """What was saved in the middle of a stage is there though the stage never ended; an error ends a stage properly."""
    clock = FakeClock()
    stages = StageClock(tmp_path, clock)
    with pytest.raises(KeyboardInterrupt), stages.stage("pretrain"):
        clock.now += 7
        stages.save()
        assert read_stages(tmp_path) == {"pretrain": 7}
        clock.now += 2
        raise KeyboardInterrupt
    assert read_stages(tmp_path) == {"pretrain": 9}


def test_metrics_reach_the_file_and_tensorboard(tmp_path: Path) -> None:
    """The same numbers are in metrics.jsonl and in TensorBoard's events, and wall time goes on after a resume."""
    clock = FakeClock(100)
    with MetricWriter(tmp_path, clock) as writer:
        clock.now += 2.5
        writer.write("pretrain", 1, 0.5, {"loss": 2.0, "rate": float("nan"), "gap": float("-inf")})
    clock.now = 5000
    with MetricWriter(tmp_path, clock) as writer:
        clock.now += 1
        writer.write("pretrain", 2, 1, {"loss": 1.5})
    assert [(row.step, row.epoch, row.wall_s, row.values) for row in read_metrics(tmp_path)] == [
        (1, 0.5, 2.5, {"loss": 2.0, "rate": None, "gap": None}),
        (2, 1, 3.5, {"loss": 1.5}),
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("pretrain/loss")] == [(1, 2.0), (2, 1.5)]


def test_images_and_curves_reach_tensorboard(tmp_path: Path) -> None:
    """The images of a round, grey or in colour, and the accuracies by number of labels."""
    with MetricWriter(tmp_path) as writer:
        writer.write_images("queries", 1, np.zeros((3, 8, 8), dtype=np.uint8))
        writer.write_images("queries", 2, np.zeros((2, 8, 8, 3), dtype=np.uint8))
        writer.write_images("queries", 3, np.zeros((0, 8, 8), dtype=np.uint8))
        writer.write_point("accuracy", 40, {"own_estimate": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.width, event.height) for event in events.Images("queries")] == [(1, 24, 8), (2, 16, 8)]
    assert [(event.step, event.value) for event in events.Scalars("accuracy/own_estimate")] == [(40, 0.75)]
    assert read_metrics(tmp_path) == []


def test_the_line_about_the_whole_run_is_logged_once_for_each_place(caplog: pytest.LogCaptureFixture) -> None:
    """Where stderr is no terminal, a new guess of the time left alone is no new line."""
    with caplog.at_level(logging.INFO), overall_line() as show:
        for text in (
            "round 1 of 3, 0 of 60 labels",
            "round 1 of 3, 0 of 60 labels, 8 s left",
            "round 1 of 3, 0 of 60 labels, 7 s left",
            "round 2 of 3, 20 of 60 labels, 5 s left",
        ):
            show(text)
    assert caplog.messages == ["round 1 of 3, 0 of 60 labels", "round 2 of 3, 20 of 60 labels, 5 s left"]
