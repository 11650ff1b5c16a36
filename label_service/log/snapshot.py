"""Snapshots: what the first entries of a log add up to, so that a start need not replay them.

A snapshot is a size and a root of the log, the account of these entries, and one hash for each table of what the
entries say of it. The service writes one from what it has compared itself, to a file beside the remembered heads. The
file is authenticated under a secret derived from the signing key, so who can write to the database, or to the file, can
make none. At the start the stored rows must have the snapshot's root and hashes. If anything differs, the snapshot is
not used: the whole log is replayed, which alone decides whether to refuse. So a snapshot, also an older one put back,
changes how long a start takes and nothing else.

Labels are not in it: which ones a run was given is read from the table, after its hash was compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from label_service import __version__
from label_service.errors import LogChanged
from label_service.log.account import Account
from label_service.log.authenticated_file import AuthenticatedFile
from label_service.log.entries import canonical_json
from label_service.log.entry_mac import derive_secret
from label_service.log.signed_note import SigningKey
from label_service.log.table_check import Said

_PURPOSE = b"labelmeter snapshot mac 1\n"
# What another version wrote is not used: its rules may have been others. A change of the rules of `account`, or of what
# `table_check` compares, raises the number.
_FORMAT = f"labelmeter snapshot 1 of {__version__}"
_ACCOUNT = TypeAdapter(Account)
_LABELS: Any = {"labels": True, "runs": {"__all__": {"labels": True}}}


@dataclass(frozen=True)
class Snapshot:
    """What the first entries of a log add up to.

    Attributes:
        size: number of these entries.
        root: their root, hexadecimal.
        pool_size: ids from it on were counted as outside the data set.
        tables: hash of each table, hexadecimal; see `table_check.Said`.
        account: what the entries add up to, as JSON, without the ids of labels.
    """

    size: int
    root: str
    pool_size: int
    tables: dict[str, str]
    account: dict[str, Any]

    @classmethod
    def of(cls, root: bytes, said: Said, account: Account) -> Snapshot:
        """Describe the entries that an account adds up. All that they say of the tables must be settled."""
        written = _ACCOUNT.dump_python(account, mode="json", exclude=_LABELS)
        return cls(account.entries, root.hex(), said.pool_size, said.digests(), written)

    def open(self, root: bytes, said: Said, labels: Mapping[str, set[int]]) -> Account:
        """Return the account, if the stored rows are those of the snapshot.

        Args:
            root: of as many entries as the snapshot's.
            said: has hashed the rows of these entries.
            labels: ids of the labels that each run was given, from these rows.

        Raises:
            LogChanged: other entries or rows are stored.
        """
        if (root.hex(), said.pool_size, said.digests()) != (self.root, self.pool_size, self.tables):
            raise LogChanged(f"The first {self.size} entries, or what the tables say of them, are not the snapshot's.")
        return _read_account(self.account, labels)


class SnapshotFile:
    """The file of one log's newest snapshot, in JSON."""

    def __init__(self, path: Path, key: SigningKey) -> None:
        """Name the file and derive the secret. Another key, also the one that replaces this, reads none of this one."""
        self._file = AuthenticatedFile(path, derive_secret(key, _PURPOSE), "the whole log is replayed")

    def read(self) -> Snapshot | None:
        """Return the snapshot, or None if there is none that this version has written with this key."""
        said = self._file.read()
        if said is None:
            return None
        content = json.loads(said)
        return Snapshot(**content) if content.pop("format") == _FORMAT else None

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file. A failure is only logged: the next start then takes longer."""
        self._file.write(canonical_json({"format": _FORMAT, **vars(snapshot)}))


def _read_account(written: Mapping[str, Any], labels: Mapping[str, set[int]]) -> Account:
    account = _ACCOUNT.validate_python(written)
    for run_id, run in account.runs.items():
        run.labels = labels.get(run_id, set())
    account.labels = set[int]().union(*(run.labels for run in account.runs.values()))
    return account
