"""The run's records survive a kill, name their fields, and refuse other values."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.errors import DataError, RecordsUnwritable
from trainer.records import run_records as records
from trainer.records.files import OWNER_ONLY, append_lines, read_lines
from trainer.records.run_records import (
    EvaluationResult,
    QueryRecord,
    RoundRecord,
    RunResult,
    wilson_interval,
)


def query(order: int, image: int | None = None, label: int = 3) -> QueryRecord:
    """Make one query record."""
    return QueryRecord(
        order=order,
        round=order // 10,
        id=1000 + order if image is None else image,
        strategy="margin",
        reason="margin 0.03 between shirt and coat",
        predicted=6,
        confidence=0.51,
        label=label,
        charged=True,
        asked_at=datetime(2026, 1, 1, 12, 0, order % 60, tzinfo=UTC),
    )


def result(**changes: object) -> RunResult:
    """Make a run's result whose counts agree, with some fields changed."""
    fields: dict[str, object] = {
        "run_id": "r1",
        "seed": 0,
        "profile": "cpu",
        "budget": 500,
        "queries_counted_by_trainer": 500,
        "queries_in_log": 500,
        "distinct_labels_in_log": 500,
        "distinct_labels_revealed_to_anybody": 501,
        "evaluation": EvaluationResult.from_counts(9012, 10000),
        "stage_seconds": {"pretrain": 300.5},
        "dataset": {"name": "fashion-mnist", "official": True},
        "versions": {"torch": "2"},
    }
    return RunResult.model_validate(fields | changes)


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_queries_come_back_as_they_were_written(tmp_path: Path) -> None:
    """What is appended in two batches is read as one ordered list, field by field the same."""
    batch = [query(order) for order in range(5)]
    assert records.append_queries(tmp_path, batch[:2]) == batch[:2]
    assert records.append_queries(tmp_path, batch[2:]) == batch[2:]
    assert records.read_queries(tmp_path) == batch


def test_every_line_is_strict_json_with_the_documented_fields(tmp_path: Path) -> None:
    """A reader with jq finds one JSON object a line with the promised names."""
    records.append_queries(tmp_path, [query(0)])
    line = json.loads((tmp_path / "queries.jsonl").read_text())
    assert list(line) == [
        *("order", "round", "id", "strategy", "reason"),
        *("predicted", "confidence", "label", "charged", "asked_at"),
    ]
    assert line["asked_at"] == "2026-01-01T12:00:00Z"


def test_a_missing_file_reads_as_nothing(tmp_path: Path) -> None:
    """A run that has not begun has no records, and that is no error."""
    assert records.read_queries(tmp_path) == []
    assert records.read_metrics(tmp_path) == []
    assert records.read_rounds(tmp_path) == []
    assert records.read_result(tmp_path) is None


def test_a_torn_last_line_is_dropped_and_cut_off_by_the_next_append(tmp_path: Path) -> None:
    """Whatever part of the last line a kill left, the lines before it are kept and the next line is whole."""
    whole = query(1).model_dump_json().encode() + b"\n"
    for cut in range(len(whole)):
        folder = tmp_path / str(cut)
        records.append_queries(folder, [query(0)])
        with (folder / "queries.jsonl").open("ab") as file:
            file.write(whole[:cut])
        assert records.read_queries(folder) == [query(0)]
        records.append_queries(folder, [query(1)])
        assert records.read_queries(folder) == [query(0), query(1)]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    """The search for the last newline goes back over more than one block."""
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"a":1}\n' + b"x" * 200_000)
    append_lines(path, ['{"b":2}'])
    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n'


def test_a_batch_half_written_before_a_kill_is_completed_without_repeats(tmp_path: Path) -> None:
    """A replayed batch adds only the lines that the file lacks."""
    batch = [query(order) for order in range(6)]
    records.append_queries(tmp_path, batch[:4])
    assert records.append_queries(tmp_path, batch) == batch[4:]
    assert records.append_queries(tmp_path, batch) == []
    assert records.read_queries(tmp_path) == batch


def test_an_answer_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    """Another image or another label under a recorded order is an error, and the file stays as it was."""
    records.append_queries(tmp_path, [query(0)])
    before = (tmp_path / "queries.jsonl").read_bytes()
    for other in (query(0, image=7), query(0, label=9)):
        with pytest.raises(DataError, match="another run"):
            records.append_queries(tmp_path, [other])
    with pytest.raises(DataError, match="one is missing"):
        records.append_queries(tmp_path, [query(2)])
    assert (tmp_path / "queries.jsonl").read_bytes() == before


def test_a_damaged_line_in_the_middle_is_named_not_skipped(tmp_path: Path) -> None:
    """Damage that no kill explains is reported with file and line number."""
    records.append_queries(tmp_path, [query(0), query(1)])
    path = tmp_path / "queries.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(DataError, match=r"line 1 of .*queries\.jsonl is damaged"):
        records.read_queries(tmp_path)


def test_an_order_that_is_missing_from_the_file_is_reported(tmp_path: Path) -> None:
    """A deleted line in the middle is found."""
    records.append_queries(tmp_path, [query(order) for order in range(3)])
    path = tmp_path / "queries.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(DataError, match="order 2 in line 2 where 1 belongs"):
        records.read_queries(tmp_path)


def test_bytes_that_are_not_text_are_reported(tmp_path: Path) -> None:
    """A line that is not UTF-8 is damage."""
    (tmp_path / "rounds.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8 at byte 0"):
        records.read_rounds(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_reported_by_reader_and_writer(tmp_path: Path) -> None:
    """Both directions give the trainer's own errors, not the system's."""
    (tmp_path / "queries.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        records.read_queries(tmp_path)
    with pytest.raises(RecordsUnwritable, match="cannot be written"):
        append_lines(tmp_path / "queries.jsonl", ["{}"])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """When the system takes a part of a line and then no more, the part is removed and the error advises the user."""
    path = tmp_path / "queries.jsonl"
    append_lines(path, ['{"a":1}'])
    done = run_python(
        """
        import resource, sys
        from pathlib import Path
        from trainer.errors import RecordsUnwritable
        from trainer.records.files import append_lines
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        try:
            append_lines(Path(sys.argv[1]), ["x" * 100])
        except RecordsUnwritable as error:
            print(error)
        """,
        path,
    )
    assert "cannot be written" in done.stdout and "--resume" in done.stdout, done.stderr
    assert path.read_text() == '{"a":1}\n'


def test_a_writer_killed_at_any_moment_leaves_a_readable_file(tmp_path: Path) -> None:
    """After kill -9 the file holds the first lines without a gap, and the run goes on from there."""
    program = """
        import sys
        from pathlib import Path
        from datetime import UTC, datetime
        from trainer.records.run_records import QueryRecord, append_queries
        for order in range(100000):
            append_queries(Path(sys.argv[1]), [QueryRecord(order=order, round=0, id=order, strategy="s", reason="r",
                           label=1, charged=True, asked_at=datetime.now(UTC))])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(command) as writer:
        deadline = time.monotonic() + 60
        while not (tmp_path / "queries.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        writer.send_signal(signal.SIGKILL)
    kept = records.read_queries(tmp_path)
    assert kept
    records.append_queries(tmp_path, [query(len(kept))])
    assert len(records.read_queries(tmp_path)) == len(kept) + 1


def test_a_file_for_the_owner_only_is_narrowed_even_if_it_existed(tmp_path: Path) -> None:
    """Receipts hold labels, so an existing file becomes 0600 too."""
    path = tmp_path / "receipts.jsonl"
    path.touch(mode=0o644)
    append_lines(path, ["{}"], mode=OWNER_ONLY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_break_inside_a_line_is_refused(tmp_path: Path) -> None:
    """One record can never become two lines."""
    with pytest.raises(ValueError, match="line break"):
        append_lines(tmp_path / "a.jsonl", ["a\nb"])
    assert read_lines(tmp_path / "a.jsonl") == []


def test_a_field_that_a_record_does_not_have_is_refused() -> None:
    """A record never loses a field without an error."""
    with pytest.raises(ValidationError):
        RoundRecord.model_validate({"round": 1, "labels": 50, "net_accuracy": 0.75})


def test_rounds_are_read_in_order_and_the_later_line_counts(tmp_path: Path) -> None:
    """A round written twice around a kill is one round."""
    for number, labels in ((0, 30), (1, 50), (0, 31)):
        records.append_round(tmp_path, RoundRecord(round=number, labels=labels))
    assert [(row.round, row.labels) for row in records.read_rounds(tmp_path)] == [(0, 31), (1, 50)]


def test_the_result_is_read_as_written_and_leaves_no_draft(tmp_path: Path) -> None:
    """result.json is replaced whole: no temporary file is left beside it."""
    assert records.write_result(tmp_path, result()) == tmp_path / "result.json"
    records.write_result(tmp_path, result(seed=1))
    assert records.read_result(tmp_path) == result(seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_damaged_result_is_refused_with_the_path(tmp_path: Path) -> None:
    """A cut result.json is an error that names the file."""
    (tmp_path / "result.json").write_text('{"run_id": "r1"')
    with pytest.raises(DataError, match=r"result\.json is damaged"):
        records.read_result(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"queries_in_log": 499}, {"queries_counted_by_trainer": 501}, {"distinct_labels_in_log": 499}],
    ids=["log counts fewer", "trainer counts more", "an id was charged twice"],
)
def test_counts_agree_only_when_all_three_are_equal(changes: dict[str, object]) -> None:
    """The trainer's count, the log's count and the distinct labels must be one number."""
    assert result().counts_agree
    assert not result(**changes).counts_agree


def test_wilson_interval_has_the_published_values() -> None:
    """Newcombe (Statistics in Medicine 17, 1998, table I): 81 of 263 and 15 of 148, 0 of 20 and 1 of 29."""
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(correct: int, total: int) -> None:
    """Counts that no sample can have are a ValueError."""
    with pytest.raises(ValueError, match="a proportion needs"):
        wilson_interval(correct, total)


@pytest.mark.parametrize(
    ("noted", "words"),
    [(("float32", "float32"), "float32"), (("float32", "bfloat16"), "bfloat16 and float32"), (("",), ""), ((), "")],
    ids=["one", "both", "not noted", "no points"],
)
def test_the_arithmetic_of_a_run_is_that_of_its_points(noted: tuple[str, ...], words: str) -> None:
    """A run that was gone on with on another machine names both; results from before it was noted name none."""
    evaluation = EvaluationResult.from_counts(9012, 10000)
    points = [
        {"labels": at, "evaluation": evaluation, "stage_seconds": {}, "arithmetic": arithmetic}
        for at, arithmetic in enumerate(noted, 1)
    ]
    assert result(points=tuple(points)).arithmetic == words
