"""A file that only a service with the log's key can have written: a line with a MAC in hexadecimal, then the content.

What it holds only makes a start faster. So a file that is missing, damaged or foreign is as good as none.
"""

from __future__ import annotations

import logging
from hmac import compare_digest
from pathlib import Path

from label_service.files import write_atomically
from label_service.log.entry_mac import Hmac

logger = logging.getLogger(__name__)


class AuthenticatedFile:
    """One file and the secret under which it is written.

    Attributes:
        path: its place.
    """

    def __init__(self, path: Path, secret: bytes, without: str) -> None:
        """Name the file.

        Args:
            path: its place.
            secret: derived from the log's key for this purpose alone.
            without: what the start does without the file, for messages.
        """
        self.path = path
        self._mac, self._without = Hmac(secret), without

    def read(self) -> bytes | None:
        """Return the content, or None if there is none that was written with this key."""
        try:
            mac, _, content = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read (%s), so %s", self.path, error.strerror, self._without)
            return None
        if not compare_digest(mac, self._mac.digest(content).hex().encode()):
            logger.warning("%s was not written with this log's key, so %s", self.path, self._without)
            return None
        return content

    def write(self, content: bytes) -> None:
        """Replace the file. A failure is only logged: the next start then takes longer."""
        try:
            write_atomically(self.path, self._mac.digest(content).hex().encode() + b"\n" + content)
        except OSError as error:
            logger.warning("%s cannot be written (%s); the next start takes longer", self.path, error.strerror)
