"""Faults put into write and fsync, and a full disk: no label while they last, nothing lost or doubled afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.signed_note import Verifier
from label_service.log.verify import verify
from tests.campaigns.crash_campaign import Tally, check
from tests.support.service_process import start, stop_at_once
from tests.support.services import wait_until

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="FAULTS NOT TRIED: install a C compiler")
READY_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    assert COMPILER is not None
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)
    return library


class Session:
    """One run against a service process; keeps every answer that was acknowledged."""

    def __init__(self, base_url: str) -> None:
        self.client = httpx.Client(base_url=base_url, timeout=30.0)
        opened = self.client.post("/v1/runs", json={"name": "faults", "budget": 50}).json()
        self.headers = {"Authorization": f"Bearer {opened['token']}"}
        self.key = self.client.get("/v1/log/key").json()["key"]
        self.answers: list[dict[str, Any]] = []

    def ask(self, *ids: int, key: str) -> httpx.Response:
        """Ask for labels; keep the answer if there is one."""
        headers = {**self.headers, "Idempotency-Key": key}
        answer = self.client.post("/v1/labels:query", json={"ids": ids}, headers=headers)
        if answer.status_code == 200:
            self.answers.append(answer.json())
        return answer

    def expect_refusals(self) -> None:
        """Whatever would be logged is refused and holds no label; the process lives and says that it is not ready."""
        for answer in (
            self.ask(2, 3, key="cut-off"),
            self.client.get("/label/4", headers=self.headers),
            self.client.post("/v1/runs", json={"name": "x", "budget": 1}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "log-not-writable")
            assert not {"label", "labels", "token"} & set(answer.json())
        assert self.client.get("/readyz").status_code == 503
        assert self.client.get("/healthz").status_code == 200

    def expect_recovery(self) -> None:
        """Soon ready by itself; the question that was cut off is answered and has been charged once."""
        wait_until(lambda: self.client.get("/readyz").status_code == 200, READY_TIMEOUT_S)
        assert [label["id"] for label in self.ask(2, 3, key="cut-off").json()["labels"]] == [2, 3]
        self.ask(4, key="again")
        assert self.ask(5, key="new").json()["queries"] == 5  # 1, 2, 3, 4 and 5, each once

    def expect_nothing_lost(self) -> None:
        """Every answer is in the log as its receipt says, all counts agree, and the evidence verifies."""
        tally = Tally(answers=self.answers)
        check(self.client, tally)
        assert (tally.lost, tally.unlogged, tally.doubled) == (0, 0, 0)
        evidence = Evidence.model_validate(self.client.get("/v1/log/evidence").json())
        kept = [KeptAnswer.model_validate(answer) for answer in self.answers]
        assert verify(evidence, Verifier.from_vkey(self.key), kept).receipts == len(kept) >= 4

    def move(self, base_url: str) -> None:
        """Go on at another address."""
        self.client.close()
        self.client = httpx.Client(base_url=base_url, timeout=30.0)


@needs_compiler
@pytest.mark.parametrize(
    ("folder", "fault"),
    [
        ("service", "write EIO"),
        ("service", "write ENOSPC"),
        ("service", "fsync EIO"),
        ("service", "fsync ENOSPC"),
        # The file of heads is not synced, by design.
        ("heads", "write EIO"),
        ("heads", "write ENOSPC"),
    ],
)
def test_a_failing_disk_reveals_nothing_and_loses_nothing(
    fault: str, folder: str, shim: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's files and the remembered heads; afterwards also over a kill and a start on a sound disk."""
    trigger = tmp_path / "trigger"
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(shim))
        environment.setenv("FAULT_TRIGGER", str(trigger))
        environment.setenv("FAULT_PATH", str(tmp_path / folder) + os.sep)
        process, base_url = start(tiny_data, tmp_path, heads_folder=tmp_path / "heads")
    try:
        session = Session(base_url)
        assert session.ask(1, key="before").status_code == 200
        trigger.write_text(fault)
        session.expect_refusals()
        trigger.unlink()
        session.expect_recovery()
        session.expect_nothing_lost()
        stop_at_once(process)
        process, base_url = start(tiny_data, tmp_path, heads_folder=tmp_path / "heads")
        session.move(base_url)
        session.expect_nothing_lost()
        session.client.close()
    finally:
        stop_at_once(process)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("FULL DISK NOT TRIED: mounting a small file system wants root")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(ballast: Path) -> None:
    """Leave a file system without a free byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_a_full_disk_reveals_nothing_and_loses_nothing(small_disk: Path, tiny_data: Path) -> None:
    """A real file system without a byte left; the service goes on when there is space again."""
    process, base_url = start(tiny_data, small_disk, heads_folder=small_disk / "heads")
    try:
        session = Session(base_url)
        assert session.ask(1, key="before").status_code == 200
        ballast = small_disk / "ballast"
        fill(ballast)
        session.expect_refusals()
        ballast.unlink()
        session.expect_recovery()
        session.expect_nothing_lost()
        session.client.close()
    finally:
        stop_at_once(process)


def test_a_full_volume_of_heads_charges_nothing(small_disk: Path, tmp_path: Path, tiny_data: Path) -> None:
    """The volume of the heads alone is full, to the last byte: 503, no entry, and the sentence is true."""
    folder = tmp_path / "service-folder"
    folder.mkdir()
    process, base_url = start(tiny_data, folder, heads_folder=small_disk / "heads")
    try:
        with httpx.Client(base_url=base_url) as client:
            assert client.get("/label/0").status_code == 200
            ballast = small_disk / "ballast"
            fill(ballast)
            answered = 1
            # What was left of the last page of the file takes a few heads.
            while (answer := client.get(f"/label/{answered}")).status_code == 200:
                answered += 1
                assert answered < 100
            assert "nothing was revealed or charged" in answer.json()["detail"]
            assert client.get("/v1/log/summary").json()["queries"] == answered
            ballast.unlink()
            assert client.get(f"/label/{answered}").json()["queries"] == answered + 1
    finally:
        stop_at_once(process)
