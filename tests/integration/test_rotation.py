"""Replacing a log's key: who pinned the old one goes on, and nobody else can do it, whatever the moment of a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import create_engine, insert, select, text
from typer.testing import CliRunner, Result

from label_service import rotation
from label_service.cli import PROOF_FAILED, app
from label_service.errors import DatabaseRefused
from label_service.log import signed_log
from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.key_history import KeyRotation
from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import TreeHead
from label_service.log.verify import Verdict, verify
from label_service.service import open_service
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database, heads_path, key_path
from tests.support.fake_label_service import FakeLabelService, answer_bytes, answer_json
from tests.support.postgres import PostgresServer
from tests.support.services import SQLITE, RunningService, run_service
from tests.support.tamper import take_backup

pytestmark = pytest.mark.every_database

Make = Callable[..., Settings]


def command(name: str, settings: Settings, *arguments: object) -> Result:
    """Run a command that finds the places of some settings."""
    return CliRunner().invoke(app, [name, *options_of(settings), *map(str, arguments)])


def options_of(settings: Settings) -> list[str]:
    places = {place: getattr(settings, place) for place in ("database_url", "key_folder", "heads_folder", "data")}
    return [f"--{place.replace('_', '-')}={value}" for place, value in places.items() if value is not None]


def rotate(settings: Settings) -> None:
    done = command("rotate-key", settings)
    assert done.exit_code == 0, done.output
    assert "Whoever pinned the old one goes on" in done.stderr


def ask(running: RunningService, *ids: int) -> list[dict[str, Any]]:
    """Ask as the guest; return the answers."""
    return [running.client.get(f"/label/{label_id}").json() for label_id in ids]


def key_of(running: RunningService) -> str:
    return str(running.client.get("/v1/log/key").json()["key"])


def evidence_of(running: RunningService) -> Evidence:
    return Evidence.model_validate(running.client.get("/v1/log/evidence").json())


def check(running: RunningService, answers: list[dict[str, Any]], key: str) -> Verdict:
    """Verify the log of a service offline with answers that a client kept."""
    kept = [KeptAnswer.model_validate(answer) for answer in answers]
    return verify(evidence_of(running), Verifier.from_vkey(key), kept)


def place_of(settings: Settings, log_id: str) -> Path:
    return key_path(settings, find_database(settings), log_id)


def look(url: str, heads: Path, *more: str) -> Result:
    """Let a witness look once."""
    return CliRunner().invoke(app, ["witness", url, "--once", "--heads", str(heads), *more])


def test_every_key_of_a_log_verifies_all_of_it(service_settings: Make) -> None:
    """Two replacements: the first key, the second and the third lead to every receipt and every earlier head."""
    settings, answers, keys = service_settings(), [], []
    for first in (0, 10, 20):
        with run_service(settings) as running:
            answers += ask(running, first, first + 1)
            keys.append(key_of(running))
            path = place_of(settings, running.service.dataset.log_id)
        if first < 20:
            rotate(settings)
            assert path.stat().st_mode & 0o777 == 0o600 and not signed_log.next_key_path(path).exists()
    assert len(set(keys)) == 3
    with run_service(settings) as running:
        for key in keys:
            verdict = check(running, answers, key)
            assert (verdict.receipts, [one.new_key for one in verdict.rotations]) == (6, keys[1:])
        told = running.client.get("/v1/log/key").json()
        assert [one["old_key"] for one in told["rotations"]] == keys[:2]
        entries = running.entries(op="key-rotated")
        assert [(one["run"], one["outcome"], one["detail"]) for one in entries] == [
            ("guest", "rotated", said) for said in told["rotations"]
        ]
        # Entries of all three keys are answered, each by its own MAC.
        assert len(running.entries()) == running.service.log.head.size == 9
        bundle = evidence_of(running)
    for head in bundle.heads:
        assert head.size <= 8
    # A head over the entry that replaced the key is not the old key's to sign.
    with pytest.raises(VerificationError, match="has other keys than"):
        verify(bundle, SigningKey.generate(Verifier.from_vkey(keys[0]).name).verifier)
    # The old seed is gone; what is kept of it can sign nothing.
    seeds = [line for line in path.read_text().splitlines() if line.startswith("PRIVATE+KEY+")]
    assert len(seeds) == 1 and SigningKey.load(path).verifier.vkey == keys[2]


def test_verify_says_that_the_key_was_replaced(service_settings: Make, tmp_path: Path) -> None:
    """As a line of its verdict, with the old key."""
    settings = service_settings()
    with run_service(settings) as running:
        ask(running, 1)
        key = key_of(running)
    rotate(settings)
    bundle = tmp_path / "evidence.json"
    with run_service(settings) as running:
        bundle.write_text(running.client.get("/v1/log/evidence").text)
    done = CliRunner().invoke(app, ["verify", str(bundle), "--key", key])
    assert done.exit_code == 0 and "replaced at entry 2, as the key before has signed" in done.stdout


class Killed(BaseException):
    """Ends a command where a signal could."""


def killed(*_: object, **__: object) -> NoReturn:
    raise Killed


def killed_after(former: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> NoReturn:
        former(*given, **named)
        raise Killed

    return call


def killed_at_the_second(former: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[None] = []

    def call(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return former(*given, **named) if len(calls) == 1 else killed()

    return call


@pytest.mark.parametrize(
    ("module", "name", "kill", "replaced"),
    [
        (rotation, "next_key_path", killed, False),
        (rotation, "sync_folder", killed, False),
        (rotation, "append", killed_after, False),
        # The entry is committed from here on.
        (rotation, "open_signed_log", killed_at_the_second, True),
        (signed_log, "sync_folder", killed, True),
    ],
    ids=["before the new key", "after the new key", "before the commit", "after the commit", "after the renaming"],
)
def test_a_crash_leaves_a_log_that_goes_on_with_one_of_both_keys(
    service_settings: Make, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, kill: Any, replaced: bool
) -> None:
    """The start finishes what the entry says, and nothing else; the key can be replaced again."""
    settings = service_settings()
    with run_service(settings) as running:
        answers, old = ask(running, 1, 2), key_of(running)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, kill if kill is killed else kill(getattr(module, name)))
        with pytest.raises(Killed):
            rotation.rotate_key(settings)
    with run_service(settings) as running:
        answers += ask(running, 3)
        assert (key_of(running) != old) == replaced
        assert len(check(running, answers, old).rotations) == replaced
    rotate(settings)
    with run_service(settings) as running:
        answers += ask(running, 4)
        assert len(check(running, answers, old).rotations) == 1 + replaced


@pytest.mark.parametrize("moment", ["the new key lies there", "the log was written to", "the new key is in place"])
def test_a_killed_process_leaves_a_log_that_goes_on(service_settings: Make, database_kind: str, moment: str) -> None:
    """The command is killed as soon as its files show how far it is; where between two steps, chance decides."""
    if database_kind != SQLITE:
        pytest.skip("the moments are read from the database's files")
    settings = service_settings()
    with run_service(settings) as running:
        answers, old = ask(running, 1, 2), key_of(running)
        path = place_of(settings, running.service.dataset.log_id)
    journal = Path(settings.database_url.removeprefix("sqlite:///") + "-wal")
    former = path.read_bytes()
    reached = {
        "the new key lies there": lambda: signed_log.next_key_path(path).exists(),
        "the log was written to": lambda: journal.exists() and journal.stat().st_size > 0,
        "the new key is in place": lambda: path.read_bytes() != former,
    }[moment]
    arguments = [sys.executable, "-m", "label_service", "rotate-key", *options_of(settings)]
    process = subprocess.Popen(arguments)
    while process.poll() is None and not reached():
        pass
    process.kill()
    process.wait()
    with run_service(settings) as running:
        answers += ask(running, 3)
        assert len(check(running, answers, old).rotations) == (key_of(running) != old)
    rotate(settings)
    with run_service(settings) as running:
        assert check(running, answers, old).receipts == 3


def test_a_running_service_keeps_its_key(service_settings: Make, database_kind: str) -> None:
    """An SQLite file is held by the service. Workers on PostgreSQL stop at the entry until they are started again."""
    settings = service_settings()
    with run_service(settings) as running:
        answers, old = ask(running, 1), key_of(running)
        size = running.service.log.head.size
        done = command("rotate-key", settings)
        if database_kind == SQLITE:
            assert done.exit_code == 1 and done.stderr.count("\n") == 1
            assert running.client.get("/label/2").status_code == 200
            return
        assert done.exit_code == 0
        for label_id in range(2, 8):
            assert running.client.get(f"/label/{label_id}").status_code == 503
        assert running.service.log.head.size == size
    with run_service(settings) as running:
        answers += ask(running, 9)
        assert check(running, answers, old).receipts == 2


def forged_row(url: str, signer: SigningKey, old: str) -> None:
    """Insert an entry that replaces the log's key: right in every field but for the signature and the MAC."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            last = connection.execute(select(tables.entries).order_by(tables.entries.c.seq.desc()).limit(1)).one()
            seq = last.seq + 1
            said = KeyRotation.sign(signer, SigningKey.generate(signer.name).verifier, seq).model_dump()
            entry = json.loads(last.entry) | {"seq": seq, "op": "key-rotated", "outcome": "rotated", "ids": []}
            data = canonical_json(entry | {"charged": 0, "detail": said | {"old_key": old}})
            row = dict(last._mapping) | {"seq": seq, "entry": data, "charged": 0}
            connection.execute(insert(tables.entries), row | {"op": "key-rotated", "outcome": "rotated"})
    finally:
        engine.dispose()


def test_who_writes_to_the_database_alone_replaces_no_key(service_settings: Make) -> None:
    """The row follows every rule, but this service has not written it: 503 while it runs, and no start."""
    settings = service_settings()
    with run_service(settings) as running:
        ask(running, 1)
        old = key_of(running)
        forged_row(settings.database_url, SigningKey.generate(Verifier.from_vkey(old).name), old)
        assert running.client.get("/label/2").status_code == 503
    with pytest.raises(DatabaseRefused, match="Entry 2 was not written by this service"), open_service(settings):
        pass
    assert "Entry 2 was not written" in command("rotate-key", settings).stderr


def test_a_key_without_its_entry_and_an_entry_without_its_key_are_refused(
    service_settings: Make, database_kind: str, request: pytest.FixtureRequest
) -> None:
    """A stranger's key, the key from before, and the database from before: a sentence each."""
    settings = service_settings()
    with run_service(settings) as running:
        ask(running, 1)
        name, log_id = Verifier.from_vkey(key_of(running)).name, running.service.dataset.log_id
    path = place_of(settings, log_id)
    server: PostgresServer | None = None if database_kind == SQLITE else request.getfixturevalue("postgres_server")
    put_back, old = take_backup(settings, server), path.read_bytes()

    def refused(sentence: str) -> None:
        with pytest.raises(DatabaseRefused, match=sentence), open_service(settings):
            pass

    path.unlink()
    SigningKey.generate(name).save(path)
    refused("Entry 0 was not written by this service|is not one that this log's key has signed")
    path.write_bytes(old)
    rotate(settings)
    new = path.read_bytes()
    path.write_bytes(old)
    refused("is not one that this log's key has signed")
    heads_path(settings, find_database(settings), log_id).unlink()
    refused("was replaced at entry 2, and the key that is there is an older one")
    path.write_bytes(new)
    put_back()
    refused("lacks an entry that replaced the log's key")


def test_a_witness_follows_what_the_old_key_has_signed(service_settings: Make, tmp_path: Path) -> None:
    """From a file of before, and from the old key alone; the file keeps how the keys follow one another."""
    heads, settings = tmp_path / "heads.jsonl", service_settings()
    with run_service(settings) as running:
        ask(running, 1)
        old = key_of(running)
        assert look(running.base_url, heads).exit_code == 0
    rotate(settings)
    with run_service(settings) as running:
        new = key_of(running)
        ask(running, 2)
        for more in ((), ("--key", old), ("--key", new)):
            looked = look(running.base_url, heads, *more)
            assert looked.exit_code == 0, looked.output
        assert look(running.base_url, tmp_path / "other.jsonl", "--key", old).exit_code == 0
        other = SigningKey.generate(Verifier.from_vkey(old).name).verifier.vkey
        assert look(running.base_url, heads, "--key", other).exit_code == PROOF_FAILED
    lines = [json.loads(line) for line in heads.read_text().splitlines()]
    assert [(line["key"], len(line["rotations"])) for line in lines] == [(old, 0), (old, 1)]


def test_a_witness_follows_nobody_else(service_settings: Make, tmp_path: Path) -> None:
    """A stranger's signature under the old key's name, and no word at all; the head is kept as evidence."""
    heads = tmp_path / "heads.jsonl"
    with run_service(service_settings()) as running:
        old = key_of(running)
        assert look(running.base_url, heads).exit_code == 0
        head = running.service.log.head
    stranger = SigningKey.generate(Verifier.from_vkey(old).name)
    note = TreeHead.sign(stranger, head.size, head.root).note
    said = KeyRotation.sign(stranger, stranger.verifier, 1).model_dump()
    for rotations in ([said | {"old_key": old}], [said], [], [1], {"a": 1}):
        with FakeLabelService() as fake:
            fake.fail("/v1/log/checkpoint", *[answer_bytes(200, note.encode(), "text/plain")])
            answer = answer_json(200, {"key": stranger.verifier.vkey, "rotations": rotations})
            for _ in range(3):
                fake.fail("/v1/log/key", answer)
            looked = look(fake.url, heads)
        assert looked.exit_code == PROOF_FAILED, looked.output
        assert looked.stderr.startswith("DO NOT TRUST THIS LOG") and looked.stderr.count("\n") == 1
    assert len(heads.read_text().splitlines()) == 6


def test_a_log_that_has_no_entry_or_no_database_has_no_key_to_replace(service_settings: Make, tmp_path: Path) -> None:
    """One sentence each."""
    settings = service_settings()
    done = command("rotate-key", settings)
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    empty = service_settings(database_url=f"sqlite:///{tmp_path / 'empty.sqlite3'}", workers=1)
    engine = create_engine(empty.database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE other (id INTEGER)"))
    engine.dispose()
    done = command("rotate-key", empty)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
