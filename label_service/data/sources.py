"""Where Fashion-MNIST comes from when no folder is given: Debian's package, else the published download.

Each source either leaves the four files in a folder or says why it could not. Nothing is trusted: `prepare` checks
the SHA-256 of whatever a source delivers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from label_service.data.dataset import FILES, OFFICIAL_GZIP_SHA256, find_file, sha256
from label_service.errors import DataRefused
from label_service.files import write_atomically

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# The data set's own README (github.com/zalandoresearch/fashion-mnist, "Get the Data"): repository first (HTTPS).
DOWNLOADS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
DOWNLOAD_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 600.0
# Larger than any of the four files; a longer answer is not one of them.
MAX_FILE_BYTES = 64 * 1024 * 1024

Say = Callable[[str], None]


def has_all_files(folder: Path) -> bool:
    """Return whether a folder holds all four files, flat or parted."""
    return all(find_file(folder, name) for name in FILES)


def can_install_package() -> bool:
    """Return whether this process may install a Debian package: root, with apt-get at hand."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_package(say: Say) -> bool:
    """Install Debian's data package; return whether the files are there afterwards."""
    say(f"Installing the Debian package {DEBIAN_PACKAGE} (--no-install prevents this) …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", DEBIAN_PACKAGE]
    # A machine fresh from its image has no package lists yet, so a first failure is tried again after an update.
    for commands in ([install], [["apt-get", "update"], install]):
        try:
            for command in commands:
                subprocess.run(  # noqa: S603 - fixed arguments, no shell, no user input
                    command, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S, env=environment
                )
        except (subprocess.SubprocessError, OSError) as error:
            failure = error
            continue
        return True
    say(f"apt-get could not install {DEBIAN_PACKAGE} ({type(failure).__name__}); trying the download instead.")
    return False


def download(folder: Path, say: Say) -> None:
    """Download the four published files into a folder, each checked against its SHA-256.

    Raises:
        DataRefused: no address gave a file with the right content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        target = folder / f"{name}.gz"
        reasons = []
        for base in DOWNLOADS:
            address = f"{base}{name}.gz"
            say(f"Downloading {address} …")
            try:
                with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as answer:  # noqa: S310 - constants
                    content = answer.read(MAX_FILE_BYTES)
            except (urllib.error.URLError, OSError) as error:
                reasons.append(f"{base} gave no file ({error})")
                continue
            if sha256(content) == OFFICIAL_GZIP_SHA256[name]:
                write_atomically(target, content)
                break
            reasons.append(f"{base} gave a file with another SHA-256")
        else:
            raise DataRefused(
                f"{name} could not be downloaded: {'; '.join(reasons)}. Get the four files by hand and pass their "
                "folder with --from."
            )


@dataclass(frozen=True)
class Sources:
    """The places `prepare` looks in, in order. Tests put their own here; nobody else does."""

    debian_folder: Path = DEBIAN_FOLDER
    may_install: Callable[[], bool] = can_install_package
    install: Callable[[Say], bool] = install_package
    download: Callable[[Path, Say], None] = download
