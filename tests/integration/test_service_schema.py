"""schemathesis asks the real service everything its OpenAPI document allows, and much that it does not; all checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.services import RunningService

CONFIG = Path(__file__).with_name("schemathesis.toml")
# SCHEMATHESIS_EXAMPLES=1000 makes a long campaign of it.
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")


def test_service_keeps_to_its_openapi_document(running: RunningService, tmp_path: Path) -> None:
    """Status codes, content types, schemas, headers and methods are those documented; what is invalid is refused."""
    _, token = running.open_run(budget=150)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"{running.base_url}/openapi.json", "--checks", "all", "--generation-deterministic"]
    command += ["--max-examples", EXAMPLES, "--header", f"Authorization: {token['Authorization']}", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None and int(generated[1]) > 500
