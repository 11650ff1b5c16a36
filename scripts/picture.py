"""`make picture OUT=runs/seed41`: the picture of the README, a run's report as Chromium shows it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURE = Path("docs/pictures/report.png")
TIMEOUT_S = 120
# Without a sandbox, which root cannot have: it shows one file that this project has made.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--window-size=1400,1600",
)


def take(report: Path, picture: Path) -> str | None:
    """Write a picture of a report; return what is missing if that cannot be done."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"there is no browser to take a picture with; install one of {', '.join(BROWSERS)}"
    if not report.is_file():
        return f"{report} is not there; OUT= names the folder of a finished run"
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        page, target = report.resolve().as_uri(), f"--screenshot={shot}"
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", target, page]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if not shot.is_file():
            return f"{browser} took no picture: {done.stderr.strip()[-500:]}"
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot, picture)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the picture; return 1 and print one sentence if it cannot be taken."""
    parser = argparse.ArgumentParser(prog="make picture", description="Take a picture of a run's report.")
    parser.add_argument("out", type=Path, help="folder of a finished run, as OUT= of make run")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    missing = take(options.out / "trainer" / "report.html", options.picture)
    if missing:
        print(f"make picture: {missing}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
