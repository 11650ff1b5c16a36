"""A run's folder: it resumes only with its own settings, and keeps its token secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.fake_label_service import TOKEN, FakeLabelService
from trainer.errors import DataError, ResumeError
from trainer.images.data import ImageSet
from trainer.oracle.client import LabelClient
from trainer.profiles import CPU, SMOKE
from trainer.run.session import (
    RunConfig,
    RunTicket,
    begin_or_resume,
    open_or_take_up_run,
    read_config,
    read_ticket,
)

CONFIG = RunConfig(profile=SMOKE, seed=1, images="a" * 64)


def images(pool: int = 2500, test: int = 10, fingerprint: str = "f00d") -> ImageSet:
    """Black images, as many as the fake service has labels of."""
    return ImageSet(torch.zeros(pool, 8, 8, dtype=torch.uint8), torch.zeros(test, 8, 8, dtype=torch.uint8), fingerprint)


def take_up(out: Path, client: LabelClient, given: ImageSet) -> RunTicket:
    """Open a run of 60 labels, or take up the folder's."""
    return open_or_take_up_run(out, client, given, name="test", profile=SMOKE, registration_token=None)


def test_folder_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    """What was begun reads back equal, and is resumed without a word."""
    begin_or_resume(tmp_path / "a/b", CONFIG, resume=False)
    begin_or_resume(tmp_path / "a/b", CONFIG, resume=True)
    assert read_config(tmp_path / "a/b") == CONFIG


def test_resume_of_an_empty_folder_begins(tmp_path: Path) -> None:
    """--resume on a folder where nothing was begun begins, so that one command serves both cases."""
    begin_or_resume(tmp_path, CONFIG, resume=True)
    assert read_config(tmp_path) == CONFIG


def test_folder_with_a_run_needs_resume(tmp_path: Path) -> None:
    """A run is never begun over another one."""
    begin_or_resume(tmp_path, CONFIG, resume=False)
    with pytest.raises(ResumeError, match="already holds a run; add --resume"):
        begin_or_resume(tmp_path, CONFIG, resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed 1, now 2"),
        ({"profile": SMOKE.with_budget(30)}, "budget 60, now 30"),
        ({"profile": CPU}, "profile smoke, now cpu; budget 60, now 400"),
        ({"profile": SMOKE.model_copy(update={"strategy": "random"})}, "strategy uncertain-clusters, now random"),
        ({"profile": SMOKE.model_copy(update={"pool_limit": 7})}, "profile smoke had other values of pool_limit"),
        ({"images": "b" * 64}, "images in --data aaaaaaaaaaaa, now bbbbbbbbbbbb"),
        ({"pretrained": "c" * 64}, "--pretrained none, now cccccccccccc"),
        ({"target": 0.9}, "target none, now 0.9"),
    ],
)
def test_other_settings_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The sentence names each setting that differs, then and now; the folder is left as it was."""
    begin_or_resume(tmp_path, CONFIG, resume=False)
    with pytest.raises(ResumeError) as caught:
        begin_or_resume(tmp_path, CONFIG.model_copy(update=change), resume=True)
    assert f"was begun with other settings ({message}); resume it with those" in str(caught.value)
    assert read_config(tmp_path) == CONFIG


def test_run_is_opened_once(client: LabelClient, service: FakeLabelService, tmp_path: Path) -> None:
    """A folder that has a run takes it up and asks the service for nothing."""
    first = take_up(tmp_path, client, images())
    assert first.token == TOKEN and TOKEN not in repr(first)
    requests = len(service.requests)
    assert take_up(tmp_path, client, images()) == first
    assert len(service.requests) == requests


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(pool=2499), "2500 pool and 10 test images, but --data holds 2499 and 10"),
        (images(test=11), "2500 pool and 10 test images, but --data holds 2500 and 11"),
        (images(fingerprint="beef"), "has the labels of other images"),
    ],
)
def test_service_of_other_images_is_refused_before_a_run_is_opened(
    given: ImageSet, message: str, client: LabelClient, service: FakeLabelService, tmp_path: Path
) -> None:
    """Labels of other images would train a wrong network in silence: sizes and fingerprint must agree."""
    with pytest.raises(DataError, match=message):
        take_up(tmp_path, client, given)
    assert service.paths("/v1/runs") == []
    assert read_ticket(tmp_path) is None


def test_service_that_knows_no_images_is_trusted_by_size(
    client: LabelClient, service: FakeLabelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was given label files alone has no fingerprint to compare."""
    without = service.dataset() | {"fingerprint": None}
    monkeypatch.setattr(service, "dataset", lambda: without)
    assert take_up(tmp_path, client, images(fingerprint="beef")).dataset.fingerprint is None
