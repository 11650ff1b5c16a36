"""Where Fashion-MNIST comes from if no folder is given: Debian's package, or the published download.

Each source puts the four files into a folder, or says why it could not. Nothing is trusted: `prepare` checks the
SHA-256 of every file.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
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
# Larger than any of the four files: a longer download is not one of them.
MAX_FILE_BYTES = 64 * 1024 * 1024

# Called with a sentence for the operator.
Notify = Callable[[str], None]


def has_all_files(folder: Path) -> bool:
    """Return whether a folder has all four files, prepared or flat."""
    return all(find_file(folder, name) for name in FILES)


def can_install_package() -> bool:
    """Return whether this process may install a Debian package: it is root and there is apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_package(notify: Notify) -> bool:
    """Install Debian's data package; return whether that worked."""
    notify(f"Installing the Debian package {DEBIAN_PACKAGE} (--no-install prevents this) …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", DEBIAN_PACKAGE]
    # A fresh container image has no package lists, so after a failure apt-get updates them and tries again.
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
    notify(f"apt-get could not install {DEBIAN_PACKAGE} ({type(failure).__name__}); trying the download instead.")
    return False


def download(folder: Path, notify: Notify) -> None:
    """Download the four published files into a folder and check the SHA-256 of each.

    Raises:
        DataRefused: no address gave a file with the right content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        target = folder / f"{name}.gz"
        reasons = []
        for base in DOWNLOADS:
            address = f"{base}{name}.gz"
            notify(f"Downloading {address} …")
            try:
                with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as answer:  # noqa: S310 - constants
                    content = answer.read(MAX_FILE_BYTES)
            except (OSError, http.client.HTTPException) as error:
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
    """The places that `prepare` looks in, in order. Only tests use others."""

    debian_folder: Path = DEBIAN_FOLDER
    may_install: Callable[[], bool] = can_install_package
    install: Callable[[Notify], bool] = install_package
    download: Callable[[Path, Notify], None] = download
