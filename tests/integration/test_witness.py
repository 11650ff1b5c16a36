"""`label-service witness` follows a log that grows, and denounces one that shrank, forked or has another key."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from label_service import witness
from label_service.cli import PROOF_FAILED, app
from label_service.log.signed_note import Verifier
from label_service.log.tree_head import TreeHead
from label_service.settings import Settings
from tests.support.fake_label_service import FakeLabelService, answer_bytes, answer_json, drip
from tests.support.services import RunningService, run_service
from tests.support.tamper import take_backup

Make = Callable[..., Settings]


def look(url: str, heads: Path, *more: str) -> Result:
    """Look once, as the command does."""
    return CliRunner().invoke(app, ["witness", url, "--once", "--heads", str(heads), *more])


def kept(heads: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in heads.read_text().splitlines()]


def ask(running: RunningService, count: int, first: int = 0) -> None:
    for label_id in range(first, first + count):
        assert running.client.get(f"/label/{label_id}").status_code == 200


def test_a_log_that_grows_is_followed(service_settings: Make, tmp_path: Path) -> None:
    """Each larger head is kept with a proof that it begins with the one before; the same head is kept once."""
    heads = tmp_path / "heads.jsonl"
    with run_service(service_settings()) as running:
        for count in (0, 0, 3, 4):
            ask(running, count, first=10 * count)
            looked = look(running.base_url, heads)
            assert looked.exit_code == 0, looked.output
    with run_service(service_settings()) as running:
        assert look(running.base_url, heads).exit_code == 0
    lines = kept(heads)
    key = Verifier.from_vkey(lines[0]["key"])
    assert [TreeHead.open(line["checkpoint"], key).size for line in lines] == [1, 4, 8]
    assert {line["fault"] for line in lines} == {None}


@pytest.mark.parametrize(
    ("asked_again", "sentence"),
    [
        (0, "the log shrank: its key signed 6 entries before, and now 3"),
        (3, "the log was forked: there are two different trees of 6 leaves"),
        (9, "the log was forked: the tree of 12 leaves does not begin with the tree of 6"),
    ],
)
def test_an_older_copy_of_the_database_is_denounced(
    service_settings: Make, tmp_path: Path, asked_again: int, sentence: str
) -> None:
    """The operator puts an older database back with the same key, forgets the heads, and asks for other labels."""
    heads, settings = tmp_path / "heads.jsonl", service_settings()
    with run_service(settings) as running:
        ask(running, 2)
    put_back = take_backup(settings, None)
    with run_service(settings) as running:
        ask(running, 3, first=50)
        assert look(running.base_url, heads).exit_code == 0
    put_back()
    shutil.rmtree(tmp_path.with_name(f"{tmp_path.name}-heads"))
    with run_service(settings) as running:
        ask(running, asked_again, first=100)
        for _ in range(2):
            looked = look(running.base_url, heads)
            assert looked.exit_code == PROOF_FAILED
            assert looked.stderr.startswith(f"DO NOT TRUST THIS LOG: {sentence}")
            assert looked.stderr.count("\n") == 1
    # Both sides of the fork are there, each signed by the key.
    good, bad, _ = kept(heads)
    key = Verifier.from_vkey(good["key"])
    assert TreeHead.open(good["checkpoint"], key) != TreeHead.open(bad["checkpoint"], key)
    assert sentence in bad["fault"]


def test_another_log_under_the_same_address_is_denounced(service_settings: Make, tmp_path: Path) -> None:
    """A new database has a new key, which is not the pinned one; nor is the key that another file has."""
    heads = tmp_path / "heads.jsonl"
    with run_service(service_settings()) as running:
        assert look(running.base_url, heads).exit_code == 0
    other = f"sqlite:///{tmp_path / 'other' / 'labels.sqlite3'}"
    with run_service(service_settings(database_url=other)) as running:
        looked = look(running.base_url, heads)
        assert looked.exit_code == PROOF_FAILED
        assert "the note is not signed by" in looked.stderr
        key = running.client.get("/v1/log/key").json()["key"]
        looked = look(running.base_url, heads, "--key", key)
        assert looked.exit_code == PROOF_FAILED
        assert "are of the key" in looked.stderr


def test_a_service_that_proves_nothing_is_denounced(service_settings: Make, tmp_path: Path) -> None:
    """It has the right heads, and refuses or garbles the proof that the newer one begins with the older."""
    heads = tmp_path / "heads.jsonl"
    with run_service(service_settings()) as running:
        assert look(running.base_url, heads).exit_code == 0
        ask(running, 2)
        head = running.client.get("/v1/log/checkpoint").content
    for refusal in (
        answer_json(404, {"code": "not-signed"}),
        answer_json(200, {"proof": [1]}),
        answer_json(200, {"proof": ["\x1b[2J"]}),
        answer_bytes(200, b"[" * 90_000),
    ):
        with FakeLabelService() as fake:
            fake.fail("/v1/log/checkpoint", answer_bytes(200, head, "text/plain"))
            fake.fail("/v1/log/proof/consistency", refusal)
            looked = look(fake.url, heads)
        assert looked.exit_code == PROOF_FAILED, looked.output
        assert re.fullmatch(r"DO NOT TRUST THIS LOG: [^\x00-\x1f]+\n", looked.stderr)


def test_a_service_that_does_not_answer_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, exit code 1, nothing kept: out of order, no service at all, endless, and too slow."""
    monkeypatch.setattr(witness, "DEADLINE_S", 1.0)
    heads = tmp_path / "heads.jsonl"
    with FakeLabelService() as fake:
        for fault in (
            answer_json(503, {}),
            answer_json(404, {}),
            answer_json(200, {"key": 1}),
            answer_bytes(200, b"x" * 200_000),
            drip,
        ):
            fake.fail("/v1/log/key", fault)
            looked = look(fake.url, heads)
            assert (looked.exit_code, looked.stderr.count("\n")) == (1, 1), looked.output
        url = fake.url
    for address in (url, "ftp://localhost", "nonsense"):
        looked = look(address, heads)
        assert (looked.exit_code, looked.stderr.count("\n")) == (1, 1), looked.output
    assert not heads.exists()


def test_a_file_of_heads_survives_a_crash_and_no_other_file_is_overwritten(
    service_settings: Make, tmp_path: Path
) -> None:
    """A line that was cut off is dropped; a file of something else is refused."""
    heads = tmp_path / "heads.jsonl"
    with run_service(service_settings()) as running:
        assert look(running.base_url, heads).exit_code == 0
        with heads.open("a") as file:
            file.write('{"at": "20')
        ask(running, 1)
        assert look(running.base_url, heads).exit_code == 0
        assert len(kept(heads)) == 2
        other = tmp_path / "letter.txt"
        for text in ("Dear reader,\n", "[]\n", "{}\n"):
            other.write_text(text)
            looked = look(running.base_url, other)
            assert (looked.exit_code, other.read_text()) == (1, text)
            assert "is not a file of kept heads" in looked.stderr
