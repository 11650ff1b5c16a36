"""Offline verification: an honest bundle passes, and a forged one is refused with the entry that was changed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from label_service.cli import app
from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey
from label_service.log.verify import verify
from label_service.settings import Settings
from tests.campaigns.fuzz import IGNORED, fuzz, make_documents
from tests.campaigns.tamper_matrix import LAST, Case, edited, honest_case, judge, trials
from tests.support.datasets import make_idx_dataset
from tests.support.services import run_service


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An honest log of twelve entries, made over HTTP."""
    return honest_case(tmp_path_factory.mktemp("honest"))


def test_an_honest_bundle_is_verified_and_counted(case: Case) -> None:
    """The verdict counts each run and the whole log, with and without receipts."""
    assert len(case.evidence.entries) == LAST + 1
    for kept in ((), case.kept):
        verdict = verify(case.evidence, case.key, kept)
        (run,) = (account for name, account in verdict.runs.items() if name != "guest")
        assert (run.queries, run.replays, run.refusals, run.evaluations, run.sealed) == (6, 1, 2, 1, True)
        assert run.labels == {1, 2, 3, 4, 5, 6} and verdict.runs["guest"].labels == {9}
        assert (len(verdict.labels), verdict.receipts, verdict.openings) == (7, len(kept), 6 if kept else 0)


def test_every_forgery_that_can_be_found_is_found_and_named(case: Case) -> None:
    """The tamper matrix: attacks by place, with and without the signing key, with and without receipts."""
    judged = [judge(trial, case.key) for trial in trials(case)]
    provable = [trial for trial in judged if trial.provable]
    assert not [(trial.attack, trial.place, trial.sentence) for trial in provable if not (trial.found and trial.named)]
    assert (len(judged), len(provable)) == (102, 83)


def test_what_cannot_be_found_is_verified(case: Case) -> None:
    """The limits: the matrix calls a forgery unprovable only if nobody could tell it from the truth."""
    unprovable = [judge(trial, case.key) for trial in trials(case) if not trial.provable]
    assert not [(trial.attack, trial.place, trial.sentence) for trial in unprovable if trial.found]
    assert not any(trial.with_receipts for trial in unprovable)


def test_an_entry_nobody_kept_a_receipt_of_is_found_by_later_heads(case: Case) -> None:
    """The guest's query comes before the run's first, so the heads in the run's receipts cover it."""
    guest = next(seq for seq, entry in enumerate(case.evidence.entries) if '"ids":[9]' in entry)
    forged = case.forge(edited(case.evidence.entries, guest, request_id="another"), signed=True)
    with pytest.raises(VerificationError, match=rf"^entry {guest}, or one of those up to"):
        verify(forged, case.key, case.kept)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"charged": 1}, "charges 1, and 2 of its ids are new"),
        ({"spent": 1}, "says 1 spent, and the entries make 2"),
        ({"budget": 7}, "says a budget of 7, and the run's is 6"),
        ({"run": "run-unknown"}, "run run-unknown was never opened"),
        ({"log_id": "log-0"}, "of another log"),
        ({"seq": 9}, "numbered 9"),
        ({"v": 3}, "of version 3"),
        ({"ids": [1, 1]}, "names an id twice"),
        ({"ids": ["1"]}, "ids are not integers"),
        ({"charged": True}, "must be a count is not"),
        ({"ts": 5}, "must be text is not"),
        ({"label_commitment": "AAAA"}, "binds another answer key"),
        ({"label_commitment": None}, "must be text is not"),
        ({"op": "gift"}, "unknown kind, gift"),
        ({"outcome": "replayed"}, "repeats an answer, and charges for it"),
        ({"outcome": "evaluated"}, "do not match|detail lacks"),
        ({"more": 1}, "not those of an entry"),
    ],
    ids=str,
)
def test_an_entry_that_breaks_the_rules_is_named(case: Case, changes: dict[str, Any], sentence: str) -> None:
    """The log is signed by the holder of the key, and `verify` refuses it without any receipt."""
    at = next(seq for seq, entry in enumerate(case.evidence.entries) if '"ids":[1,2]' in entry)
    forged = case.forge(edited(case.evidence.entries, at, **changes), signed=True)
    with pytest.raises(VerificationError, match=rf"^entry {at}: .*({sentence})"):
        verify(forged, case.key)


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An honest log of a run that declared points at two and four labels and was evaluated at both."""
    folder = tmp_path_factory.mktemp("curve")
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    settings = Settings(data=make_idx_dataset(folder / "data"), other_data=True, database_url=url, port=0)
    with run_service(settings) as running:
        client = running.client
        opened = client.post("/v1/runs", json={"name": "curve", "budget": 4, "evaluation_budgets": [2, 4]}).json()
        token = {"Authorization": f"Bearer {opened['token']}"}
        for ids in ([1, 2], [3, 4]):
            client.post("/v1/labels:query", json={"ids": ids}, headers=token).raise_for_status()
        for budget in (2, 4):
            call = f"/v1/runs/{opened['run_id']}/evaluations"
            client.post(call, json={"predictions": [0] * 50, "budget": budget}, headers=token).raise_for_status()
        client.post(f"/v1/runs/{opened['run_id']}:seal", headers=token).raise_for_status()
        evidence = Evidence.model_validate_json(client.get("/v1/log/evidence").content)
    return Case(evidence, SigningKey.load(folder / "service" / "labels.key"), ())


@pytest.mark.parametrize(
    ("seq", "field", "value", "sentence"),
    [
        (5, "evaluated_budget", 2, "it evaluates 2 labels a second time"),
        (5, "evaluated_budget", 3, "it evaluates 3 labels, a point that the run never declared"),
        (5, "evaluated_budget", None, "it evaluates None labels, a point that the run never declared"),
        (5, "evaluated_budget", [2], r"it evaluates \[2\] labels, a point that the run never declared"),
        (1, "evaluation_budgets", "24", "its evaluation budgets are not counts"),
        (1, "evaluation_budgets", [[2], 4], "its evaluation budgets are not counts"),
    ],
)
def test_each_point_of_a_curve_is_evaluated_once(
    curve: Case, seq: int, field: str, value: object, sentence: str
) -> None:
    """`verify` refuses what the service refuses, even if the holder of the key has signed it."""
    assert verify(curve.evidence, curve.key).runs.popitem()[1].evaluated_at == [2, 4]
    detail = json.loads(curve.evidence.entries[seq])["detail"] | {field: value}
    forged = curve.forge(edited(curve.evidence.entries, seq, detail=detail), signed=True)
    with pytest.raises(VerificationError, match=rf"^entry {seq}: {sentence}$"):
        verify(forged, curve.key)


def test_new_labels_after_the_end_are_named(case: Case) -> None:
    """A reveal after the evaluation and the seal breaks the rules, even if it is signed."""
    source = json.loads(next(entry for entry in case.evidence.entries if '"ids":[4,5,6]' in entry))
    newest = json.loads(case.evidence.entries[-1])["ts"]
    late = canonical_json(source | {"seq": LAST + 1, "ts": newest, "ids": [8], "charged": 1, "spent": 7}).decode()
    with pytest.raises(
        VerificationError, match=rf"^entry {LAST + 1}: it reveals new labels to an evaluated or sealed run"
    ):
        verify(case.forge([*case.evidence.entries, late], signed=True), case.key)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"v": 1}', "\N{LATIN SMALL LETTER E WITH ACUTE}", "[" * 5000])
def test_an_entry_that_is_none_is_named(case: Case, text: str) -> None:
    """Whatever the text, the error is one sentence."""
    entries = [*case.evidence.entries[:3], text, *case.evidence.entries[4:]]
    with pytest.raises(VerificationError, match=r"^entry 3: "):
        verify(case.forge(entries, signed=True), case.key)


def run_command(case: Case, folder: Path, *more: str) -> tuple[int, str]:
    """Write the case's bundle to a file and run `verify` on it."""
    bundle = folder / "evidence.json"
    if not bundle.exists():
        bundle.write_text(case.evidence.model_dump_json())
    result = CliRunner().invoke(app, ["verify", str(bundle), "--key", case.key.vkey, *more])
    return result.exit_code, result.output


def test_the_command_prints_counts_and_verified(case: Case, tmp_path: Path) -> None:
    """Exit code 0, with and without receipts."""
    code, printed = run_command(case, tmp_path)
    assert code == 0 and "12 entries, 7 distinct labels to anybody" in printed
    assert ": 6 queries, 6 distinct labels, 1 replays, 2 refusals, 1 evaluations\n" in printed
    assert printed.endswith("verified, without receipts\n")
    kept = tmp_path / "receipts.jsonl"
    lines = [{"answer": answer.model_dump()} for answer in case.kept]
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 0 and printed.endswith(f"verified with {len(case.kept)} receipts and 6 labels as committed to\n")


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), ("", "is not an evidence bundle"), ("{}", "is not an evidence")]
)
def test_a_file_that_is_no_bundle_is_refused_in_a_sentence(
    case: Case, tmp_path: Path, content: str | None, sentence: str
) -> None:
    """Exit code 1."""
    bundle = tmp_path / "evidence.json"
    if content is None:
        bundle.mkdir()
    else:
        bundle.write_text(content)
    code, printed = run_command(case, tmp_path)
    assert code == 1 and printed.startswith("not verified: ") and sentence in printed


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"answer": 1}', '{"answer": {"receipt": {"index": 1}}}', '{"answer": {}}', "[" * 100_000,
        '{"answer": {}, "answer": {}}', '{"answer": NaN}',
    ],
)  # fmt: skip
def test_damaged_receipts_are_refused_in_a_sentence(case: Case, tmp_path: Path, content: str) -> None:
    """They are not skipped, because a receipt that cannot be read proves nothing."""
    kept = tmp_path / "receipts.jsonl"
    kept.write_text(content + "\n")
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 1 and f"line 1 of {kept} is not an answer of the service" in printed


def test_receipts_that_are_empty_are_refused(case: Case, tmp_path: Path) -> None:
    """Or the verdict would say `verified` of receipts that are not there."""
    kept = tmp_path / "receipts.jsonl"
    kept.touch()
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 1 and f"{kept} holds no receipt" in printed


Answer = dict[str, Any]


def with_idle_bits(answer: Answer) -> None:
    """Write a hash of a proof in the base64 that means the same and is not canonical."""
    proof = answer["receipt"]["inclusion_proof"]
    assert proof[0].endswith("=") and decoded(proof[0][:-2] + chr(ord(proof[0][-2]) + 1) + "=") == decoded(proof[0])
    proof[0] = proof[0][:-2] + chr(ord(proof[0][-2]) + 1) + "="


def decoded(text: str) -> bytes:
    """Decode base64 as a lenient reader does."""
    return base64.b64decode(text)


@pytest.mark.parametrize(
    ("at", "change", "sentence"),
    [
        (1, lambda answer: answer.pop("labels"), "entry 3: its answer has no labels with their openings"),
        (1, lambda answer: answer.update(labels=[]), "entry 3: its answer has no labels with their openings"),
        (1, lambda answer: answer["labels"].reverse(), "entry 3: the labels of its answer are not those"),
        (1, lambda answer: answer["labels"][0].pop("opening"), "line 2 of .* is not an answer of the service"),
        (1, lambda answer: answer["labels"][0].update(charged=False), "another charged than the log"),
        (1, lambda answer: answer.update(queries=1), "another charged than the log"),
        (2, lambda answer: answer.update(remaining=1), "another remaining than the log"),
        (1, lambda answer: answer.update(run_id="guest"), "another run_id than the log"),
        (1, lambda answer: answer.pop("receipt"), "line 2 of .* is not an answer of the service"),
        (1, with_idle_bits, "is not canonical base64"),
        (1, lambda answer: answer["receipt"].update(entry="\ud800"), "leaf 3 is not in the tree"),
        (1, lambda answer: answer["receipt"].update(index=True), "line 2 of .* is not an answer"),
        (5, lambda answer: answer.update(accuracy=1.0), "entry 10: its answer has another accuracy than the log"),
        (5, lambda answer: answer.pop("accuracy"), "entry 10: its answer has another accuracy than the log"),
        (5, lambda answer: answer.update(correct=50), "entry 10: its answer has another correct than the log"),
        (6, lambda answer: answer.update(queries=5), "entry 11: its answer has another queries than the log"),
        (6, lambda answer: answer["evaluations"].clear(), "entry 11: its answer has another evaluations than the log"),
        (0, lambda answer: answer["dataset"].update(pool_size=10), "entry 1: its answer has another pool size"),
    ],
)
def test_kept_answer_that_says_something_else_than_its_entry_is_named(
    case: Case, tmp_path: Path, at: int, change: Callable[[Answer], object], sentence: str
) -> None:
    """A receipt proves an entry, so an answer that fits another one must not pass as proved."""
    answers = [answer.model_dump(exclude_unset=True) for answer in case.kept]
    change(answers[at])
    kept = tmp_path / "receipts.jsonl"
    kept.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    code, printed = run_command(case, tmp_path, "--receipts", str(kept))
    assert code == 1 and re.search(sentence, printed)


def test_size_of_the_pool_is_signed(case: Case) -> None:
    """The openings of runs name it, and a bundle cannot say another."""
    assert verify(case.evidence, case.key).signed_pool_size
    with pytest.raises(VerificationError, match="the pool has 7 labels, and the log says 200"):
        verify(case.evidence.model_copy(update={"pool_size": 7}), case.key)


def test_verdict_says_where_the_size_of_the_pool_is_not_signed(case: Case, tmp_path: Path) -> None:
    """Entries of former versions do not name it."""
    entries = [
        canonical_json(
            entry | {"detail": {name: value for name, value in entry["detail"].items() if name != "pool_size"}}
            if "detail" in entry
            else entry
        ).decode()
        for entry in map(json.loads, case.evidence.entries)
    ]
    (tmp_path / "evidence.json").write_text(case.forge(entries, signed=True).model_dump_json())
    code, printed = run_command(case, tmp_path)
    assert code == 0 and "the number of labels in the answer key is the bundle's word" in printed


@pytest.mark.parametrize("change", ["moved", "signed by another", "larger than the log", "not base64"])
def test_earlier_heads_are_checked_where_nothing_else_fails(case: Case, change: str) -> None:
    """They would name another entry than the changed one, or be the head of another log."""
    heads = [head.model_copy() for head in case.evidence.heads]
    if change == "moved":
        heads.reverse()
    elif change == "signed by another":
        heads[3] = heads[3].model_copy(update={"signature": heads[2].signature})
    elif change == "larger than the log":
        heads[-1] = heads[-1].model_copy(update={"size": 99})
    else:
        heads[3] = heads[3].model_copy(update={"signature": "x"})
    with pytest.raises(VerificationError, match=r"in order|entry .* a head was signed over|is not base64"):
        verify(case.evidence.model_copy(update={"heads": heads}), case.key)


def test_names_of_others_cannot_write_on_the_terminal(case: Case, tmp_path: Path) -> None:
    """A run may be called what its client likes, even where the holder of the key signed it."""
    (run,) = (name for name in verify(case.evidence, case.key).runs if name != "guest")
    entries = [entry.replace(run, "\\u001b[2J\\ud800") for entry in case.evidence.entries]
    (tmp_path / "evidence.json").write_text(case.forge(entries, signed=True).model_dump_json())
    code, printed = run_command(case, tmp_path)
    assert code == 0 and "\x1b" not in printed and "  ?[2J?: 6 queries" in printed


def test_key_that_cannot_be_written_is_refused_in_a_sentence(case: Case, tmp_path: Path) -> None:
    """Bytes of the command line that are no text."""
    bundle = tmp_path / "evidence.json"
    bundle.write_text(case.evidence.model_dump_json())
    key = case.key.vkey.replace("labelmeter/", "labelmeter/\udcff")
    result = CliRunner().invoke(app, ["verify", str(bundle), "--key", key])
    assert result.exit_code == 1 and "a key name must be one printable word" in result.output


def test_every_change_that_verify_accepts_is_on_the_documented_list(tmp_path: Path) -> None:
    """The short version of the campaign; its twin finds what is taken off the list."""
    documents = make_documents(tmp_path)
    tally = fuzz(documents, 1000, seed=0, folder=tmp_path)
    assert tally.findings == [] and tally.refused > 600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.campaigns.fuzz.IGNORED", {})
        assert len(fuzz(documents, 100, seed=0, folder=tmp_path).findings) > 5
    page = " ".join((Path(__file__).parents[2] / "docs" / "verifying.md").read_text().split())
    assert [sentence for sentence in IGNORED if f"- {sentence}" not in page] == []


def test_an_entry_older_than_the_one_before_is_refused(case: Case) -> None:
    """A log that commits to its test labels promises it; an older log wrote the clock as it was, and is named."""
    entries = edited(case.evidence.entries, 5, ts="2020-01-01T00:00:00.000000Z")
    with pytest.raises(VerificationError, match=r"^entry 5: it is older than the entry before it"):
        verify(case.forge(entries, signed=True), case.key)
    for seq, entry in enumerate(entries):
        document = json.loads(entry)
        document.get("detail", {}).pop("test_commitment", None)
        entries[seq] = canonical_json(document).decode()
    assert verify(case.forge(entries, signed=True), case.key).clock_set_back == (5,)
