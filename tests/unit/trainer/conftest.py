"""A fake label service and a client of it, for the tests that speak HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_label_service import FakeLabelService
from trainer.oracle.client import LabelClient


@pytest.fixture
def service() -> Iterator[FakeLabelService]:
    """A fake service that listens."""
    with FakeLabelService() as running:
        yield running


@pytest.fixture
def client(service: FakeLabelService) -> Iterator[LabelClient]:
    """A client of it, without a token, that waits five seconds for it."""
    with LabelClient(service.url, patience_s=5.0) as made:
        yield made
