"""The offline verifier loads neither the database nor anything of HTTP."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIST_HEAVY_MODULES = """
import sys
import label_service.cli, label_service.log.verify
{more}
heavy = ("fastapi", "starlette", "sqlalchemy", "label_service.web", "label_service.ledger", "label_service.store")
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("more", "loaded"),
    [("", "[]"), ("import label_service.web.schemas", "label_service.web"), ("import sqlalchemy", "sqlalchemy")],
)
def test_the_verifier_needs_no_database_and_no_web(more: str, loaded: str) -> None:
    """A fresh process imports the verifier and its command; the twins import more and are found out."""
    code = LIST_HEAVY_MODULES.format(more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded in done.stdout
