"""Runs with a strategy of one's own against a real service: what it sees, how it fails, how the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.services import RunningService
from tests.support.trainer_runs import run_command
from trainer.records.run_records import read_queries, read_result
from trainer.run.session import read_config

pytestmark = pytest.mark.usefixtures("tiny_profiles")

GOOD = "return state.free[torch.randperm(len(state.free), generator=generator)[:batch]]"


def strategy(path: Path, body: str) -> str:
    """Write a strategy and return its name."""
    path.write_text(f"import json, torch\n\ndef select(state, batch, generator):\n    {body}\n")
    return str(path)


def test_a_broken_round_asks_nothing_and_the_corrected_file_goes_on(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Exit code 88 and one sentence; the labels of the rounds before stay, and the record names both versions."""
    out = tmp_path / "out"
    name = strategy(tmp_path / "mine.py", f"if state.round == 1: raise ValueError('not yet')\n    {GOOD}")
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", name)
    assert code == 88
    assert f"the query strategy {name} raised ValueError: not yet (mine.py, line 4); nothing was asked" in sentence
    assert [record.round for record in read_queries(out)] == [0] * 6
    before = read_config(out).strategy_sha256
    strategy(tmp_path / "mine.py", GOOD)
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", name, "--resume")
    assert code == 0, sentence
    versions = [record.strategy for record in read_queries(out)]
    assert versions[0] == f"{name}@{str(before)[:12]}" != versions[-1]
    assert len(versions) == 18 and len(set(versions)) == 2
    result = read_result(out)
    assert result is not None and result.counts_agree


def test_a_run_does_not_change_its_strategy_on_the_way(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """An edited file that had not failed is another experiment: the run refuses it, and goes on with the former one."""
    out, name = tmp_path / "out", strategy(tmp_path / "mine.py", GOOD)
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", name, "--patience-s", "1")
    assert code == 0, sentence
    strategy(tmp_path / "mine.py", f"{GOOD}  # edited")
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", name, "--resume")
    assert code == 79
    assert "the strategy's content" in sentence


def test_a_strategy_sees_the_labels_paid_for_and_no_other(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """What it is shown before each round is what queries.jsonl had then: ids, labels, round, images, embeddings."""
    out, seen = tmp_path / "out", tmp_path / "seen.jsonl"
    spy = (
        "look = [state.round, state.labels.tolist(), state.labelled.tolist(), list(state.images.shape), "
        "list(state.embeddings.shape)]\n"
        f"    with open({str(seen)!r}, 'a') as file: file.write(json.dumps(look) + '\\n')"
    )
    name = strategy(tmp_path / "spy.py", f"{spy}\n    {GOOD}")
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", name, "--rounds", "5,9,14")
    assert code == 0, sentence
    queries = read_queries(out)
    looks = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [look[0] for look in looks] == [0, 1, 2]
    for number, labels, labelled, images, embeddings in looks:
        paid = {record.id: record.label for record in queries if record.round < number}
        assert {place: label for place, label in enumerate(labels) if label != -1} == paid
        assert [place for place, known in enumerate(labelled) if known] == sorted(paid)
        assert images[0] == embeddings[0] == len(labels)
    assert [sum(record.round <= number for record in queries) for number in range(3)] == [5, 9, 14]


def test_rounds_that_make_no_sense_are_refused(shared_service: RunningService, tiny_data: Path, tmp_path: Path) -> None:
    """Before a run is opened."""
    for more, code in ((("--rounds", "9,5"), 78), (("--rounds", "0,5"), 78), (("--rounds", "5", "--budget", "9"), 78)):
        got, sentence, _ = run_command("run", tmp_path / "out", tiny_data, shared_service, *more)
        assert got == code and "rounds" in sentence


@pytest.mark.parametrize("name", ["ProbCover", "TypiClust", "UncertaintySampling"])
def test_a_whole_run_by_a_strategy_of_scikit_activeml(
    name: str, shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """From the first label to the checked count."""
    pytest.importorskip("skactiveml", reason="NO SCIKIT-ACTIVEML: install the extra `activeml`")
    out = tmp_path / "out"
    code, sentence, _ = run_command("run", out, tiny_data, shared_service, "--strategy", f"skactiveml:{name}")
    assert code == 0, sentence
    result = read_result(out)
    assert result is not None and result.counts_agree and result.queries_in_log == 18
