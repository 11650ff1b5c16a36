"""A witness: it keeps the signed heads of a log on another machine, and finds a log that does not grow from them.

Who holds the signing key and the database can put an older copy back and sign another history. Clients see that only if
they come again. A witness comes again and again: each head must be signed by the pinned key, or by one that replaced it
as it has signed, and a proof must show that it begins with the entries of the head before. Everything else that the
service says is not believed.

The file has a JSON object a line: when the head was seen (`at`), the pinned key, the replacements of the log's key as
far as they are known (`rotations`), the signed note, and what was wrong with it (`fault`, else null). Two notes that
contradict each other are the evidence of a fork.

Sources: RFC 9162, section 2.1.4 (consistency); c2sp.org/tlog-witness (what a witness promises).
"""

from __future__ import annotations

import json
import os
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from label_service.errors import SetupError
from label_service.log.forerunner import Forerunner
from label_service.log.key_history import KeyHistory, KeyRotation
from label_service.log.merkle import VerificationError, leaf_hash, verify_consistency, verify_inclusion
from label_service.log.signed_note import Verifier, decode_base64
from label_service.log.tree_head import TreeHead

# From connecting to the last byte. A service that answers slower, however slowly, is one that does not answer.
DEADLINE_S = 30.0
# A head has under 300 characters, and a proof at most 64 hashes.
_MAX_ANSWER_BYTES = 100_000


class NoAnswer(SetupError):  # noqa: N818 - says what happened
    """Raised when the service gives no usable answer: that shows nothing about its log."""


class LogEnded(SetupError):  # noqa: N818 - says what happened
    """Raised when the service has a new log, and the pinned key has signed that it follows the watched one."""


class Witness:
    """Compares the heads of one log with those that it has kept.

    Attributes:
        newest: the largest head so far, None before the first.
    """

    def __init__(self, url: str, path: Path, vkey: str | None = None) -> None:
        """Read the kept heads.

        Args:
            url: address of the service.
            path: file of the heads, begun if it is not there.
            vkey: the log's key, pinned before; without it the service's own word is pinned at the first contact.

        Raises:
            SetupError: the address or the file cannot be used.
            VerificationError: the file was begun with another key, or a key is none.
        """
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SetupError(f"{url} is not the address of a service: it begins with http:// or https://.")
        self._url, self._path = url.rstrip("/"), path
        kept = self._read()
        pinned = kept[-1]["key"] if kept else vkey
        self._rotations = [KeyRotation.read(said) for said in kept[-1].get("rotations", [])] if kept else []
        self._keys = None if pinned is None else KeyHistory((Verifier.from_vkey(pinned),)).follow(self._rotations)
        if vkey is not None and self._keys is not None and vkey not in self._keys:
            raise VerificationError(f"the heads in {path} are of the key {pinned}, and {vkey} was given")
        good = [line["checkpoint"] for line in kept if line["fault"] is None]
        self.newest = self._keys.open_head(good[-1]) if good and self._keys else None

    def look(self) -> TreeHead:
        """Compare the service's newest head with the newest kept one, and keep it if it is larger.

        Returns:
            The service's head, which holds.

        Raises:
            NoAnswer: the service does not answer, or not with a head.
            SetupError: the head cannot be kept.
            LogEnded: a new log follows the watched one.
            VerificationError: the head does not hold; it is kept as evidence.
        """
        if self._keys is None:
            answer = _parse(self._get("/v1/log/key")).get("key")
            if not isinstance(answer, str):
                raise NoAnswer(f"{self._url} does not say the key of its log.")
            self._keys = KeyHistory((Verifier.from_vkey(answer),))
        note = self._get("/v1/log/checkpoint").decode("utf-8", errors="replace")
        try:
            head = self._open(note)
            self._compare(head)
        except VerificationError as error:
            successor = self._read_successor(note)
            if successor is not None and successor.statement is not None:
                # The pinned key has signed this: the log ended as its operator says, and no head contradicts it.
                lost = max(0, (self.newest.size if self.newest else 0) - successor.kept.size)
                raise LogEnded(
                    f"{self._url} began a new log, which is not a fork: {successor.describe()}. Of what this witness "
                    f"saw, {lost:,} entries are lost. Keep {self._path}, and watch the new log with another --heads."
                ) from error
            reason = (
                str(error)
                if successor is None
                else f"the service has another log, and says that {successor.describe()}"
            )
            self._keep(note, reason)
            if successor is not None:
                raise VerificationError(reason) from error
            raise
        if head != self.newest:
            self._keep(note, None)
            self.newest = head
        return head

    def _open(self, note: str) -> TreeHead:
        """Read a head; if no known key has signed it, ask whether the log's key was replaced.

        Raises:
            VerificationError: it is signed by no key of the log.
        """
        assert self._keys is not None
        try:
            return self._keys.open_head(note)
        except VerificationError:
            try:
                rotations = self._read_rotations()
            except NoAnswer:
                rotations = []
            if not any(rotation.old_key == self._keys.newest.vkey for rotation in rotations):
                raise
        followed = self._keys.follow(rotations)
        head = followed.open_head(note)
        if self.newest is not None:
            # The old key has signed no head over the entry that replaced it.
            followed.open_head(self.newest.note)
        self._keys, self._rotations = followed, rotations
        return head

    def _read_rotations(self) -> list[KeyRotation]:
        """Ask for the replacements of the log's key.

        Raises:
            NoAnswer: the service does not say.
            VerificationError: a key is not signed by the one before.
        """
        rotations = _parse(self._get("/v1/log/key")).get("rotations", [])
        return [KeyRotation.read(said) for said in rotations] if isinstance(rotations, list) else []

    def _read_successor(self, note: str) -> Forerunner | None:
        """Return what the first entry of another log says of the pinned one; None if it does not follow that."""
        assert self._keys is not None
        try:
            key = Verifier.from_vkey(str(_parse(self._get("/v1/log/key")).get("key")))
            head = TreeHead.open(note, key)
            rotations = self._read_rotations()
            page = _parse(self._get(f"/v1/log/evidence?limit=1&size={head.size}"))
            (first,) = page["entries"]
            proof = _parse(self._get(f"/v1/log/proof/inclusion?index=0&size={head.size}"))["proof"]
            verify_inclusion(
                leaf_hash(first.encode()),
                0,
                head.size,
                [decode_base64(node, "a hash of the proof") for node in proof],
                head.root,
            )
            forerunner = Forerunner.read(json.loads(first)["detail"]["forerunner"])
            forerunner.require_statement(KeyHistory.of(rotations).keys[0] if rotations else key)
        except (VerificationError, NoAnswer, ValueError, KeyError, TypeError, AttributeError):
            return None
        return forerunner if forerunner.key in self._keys else None

    def _compare(self, head: TreeHead) -> None:
        """Have it proved that the log of this head begins with the log of the newest kept one.

        Raises:
            VerificationError: it is smaller, it is another log, or the service does not prove it.
        """
        if self.newest is None or self.newest.size == 0:
            return
        if head.size < self.newest.size:
            raise VerificationError(
                f"the log shrank: its key signed {self.newest.size:,} entries before, and now {head.size:,}"
            )
        proof: list[bytes] = []
        if head.size > self.newest.size:
            path = f"/v1/log/proof/consistency?first={self.newest.size}&second={head.size}"
            nodes = _parse(self._get(path, may_refuse=True)).get("proof")
            if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
                raise VerificationError(
                    f"the service does not prove that its {head.size:,} entries begin with the {self.newest.size:,} "
                    "that its key signed before"
                )
            proof = [decode_base64(node, "a hash of the proof") for node in nodes]
        try:
            verify_consistency(self.newest.size, head.size, self.newest.root, head.root, proof)
        except VerificationError as error:
            raise VerificationError(f"the log was forked: {error}") from error

    def _get(self, path: str, may_refuse: bool = False) -> bytes:
        """Return what the service answers, at the deadline at the latest.

        Args:
            path: what to ask for.
            may_refuse: a refusal of the request is an answer too; that the service is out of order never is.

        Raises:
            NoAnswer: it does not answer in time, or not with what was asked for, or with too much.
        """
        answers: queue.SimpleQueue[tuple[int, bytes] | Exception] = queue.SimpleQueue()
        # A socket's own timeout begins anew with each byte. This thread ends with the program, whatever the peer does.
        threading.Thread(target=_fetch, args=(f"{self._url}{path}", answers), daemon=True).start()
        try:
            answer = answers.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise NoAnswer(f"{self._url} did not answer within {DEADLINE_S:.0f} seconds.") from None
        if isinstance(answer, Exception):
            raise NoAnswer(f"{self._url} does not answer ({answer}).") from answer
        status, body = answer
        if len(body) > _MAX_ANSWER_BYTES:
            raise NoAnswer(f"{self._url}{path} answers more than a witness reads.")
        if status != HTTPStatus.OK and not (may_refuse and status < HTTPStatus.TOO_MANY_REQUESTS):
            raise NoAnswer(f"{self._url}{path} answers with the status {status}.")
        return body

    def _read(self) -> list[dict[str, Any]]:
        """Return the lines of the file; one that a crash cut off at its end does not count.

        Raises:
            SetupError: the file cannot be read, or is another kind of file.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{self._path} cannot be read ({getattr(error, 'strerror', 'not text')}).") from error
        try:
            kept = [json.loads(line) for line in lines[:-1] if line]
            if all({"key", "checkpoint", "fault"} <= line.keys() for line in kept):
                return kept
        except (ValueError, AttributeError):
            pass
        raise SetupError(f"{self._path} is not a file of kept heads; name another with --heads.")

    def _keep(self, note: str, fault: str | None) -> None:
        """Append a head, durably.

        Raises:
            SetupError: the file cannot be written.
        """
        assert self._keys is not None
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "key": self._keys.keys[0].vkey,
            "rotations": [rotation.model_dump() for rotation in self._rotations],
            "checkpoint": note,
            "fault": fault,
        }
        try:
            with self._path.open("a+b") as file:
                # Cut off what a crash left of a line.
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SetupError(f"{self._path} cannot be written ({error.strerror or error}).") from error


def _fetch(url: str, answers: queue.SimpleQueue[tuple[int, bytes] | Exception]) -> None:
    """Put status and body of what a URL answers into a queue, or why it does not answer."""
    try:
        try:
            response = urllib.request.urlopen(url, timeout=DEADLINE_S)  # noqa: S310 - the scheme was checked
        except urllib.error.HTTPError as refusal:
            response = refusal
        with response:
            answers.put((response.status, response.read(_MAX_ANSWER_BYTES + 1)))
    # Whatever a peer causes, the queue is not left empty.
    except Exception as error:
        answers.put(error)


def _parse(body: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
