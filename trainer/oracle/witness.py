"""The log's witness: it verifies the proof of every answer of the label service before the trainer uses the answer.

The witness remembers the log's public key, the terms of the run (budget, commitment to the answer key) and the newest
signed tree head that it has seen. Each answer must come with a receipt that passes the checks of `receipts`. The
receipt's log entry must be newer than the remembered head, and its tree head must come with a consistency proof that
the log has only grown since. Each entry of the run counts its labels on from the run's entry before, so no charge to
the run is hidden, and what others log costs nothing. The new head is saved in OUT/log-witness.json before the caller
sees the answer. So a log that was forked, cut or restored from a backup is refused, also after a restart.

Where the log has replaced its key, the old key has signed the new one (`log_keys`). The witness asks for that at the
start, and again when a head is signed by a key that it does not know.

An answer that fails is kept in OUT/receipts-refused.jsonl and ends the run with `LogNotProved`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from trainer.errors import ConfigError, LogNotProved, RequestRefused, ResumeError
from trainer.oracle import receipts
from trainer.oracle.answers import Evaluation, KeyRotation, LogKeyAnswer, OpenedRun, QueryAnswer, SealedRun
from trainer.oracle.exchange import REFUSED_FILE, Exchange
from trainer.oracle.log_keys import LogKeys
from trainer.oracle.log_proofs import LogKey, LogProofError, TreeHead, UnknownKey, decode_hash, verify_consistency
from trainer.oracle.receipts import RunTerms, require
from trainer.records.files import read_file, replace_file
from trainer.records.run_records import Record

WITNESS_FILE = "log-witness.json"


class AsksLog(Protocol):
    """What the witness asks of the service's log."""

    def log_key(self) -> tuple[Exchange, LogKeyAnswer]:
        """Ask for the log's public key and how it replaced others."""

    def log_consistency(self, first: int, second: int) -> Sequence[str]:
        """Ask for the hashes that lead from one size of the log to a larger one."""


class _WitnessFile(Record):
    """Content of log-witness.json: the log's pinned key, then the run's terms and the newest signed tree head.

    Attributes:
        rotations: The replacements of the pinned key so far.
        spent: Labels charged to the run by its newest witnessed entry; None in files of former versions.
    """

    key: str
    rotations: tuple[KeyRotation, ...] = ()
    run: RunTerms | None = None
    checkpoint: str | None = None
    spent: int | None = None


class Witness:
    """The witness of one run's folder. Not safe to share between threads or processes."""

    def __init__(self, out: Path, log_key: str | None = None) -> None:
        """Load the folder's log-witness.json, if there is one.

        Args:
            out: The run's folder.
            log_key: The log's public key, known from elsewhere; None trusts the first key that the service sends.

        Raises:
            ConfigError: `log_key` is malformed.
            ResumeError: The folder has pinned another key.
            DataError: The file is damaged.
        """
        self._out = out
        try:
            self._given = None if log_key is None else LogKey.parse(log_key.strip())
        except LogProofError as error:
            raise ConfigError(
                f"--log-key is not a log's key ({error}); copy it whole from GET /v1/log/key, such as "
                "labelmeter/ID+ID+KEY"
            ) from error
        self._file, self._keys, self._head = self._load()
        if self._given is not None and self._keys is not None and self._given not in self._keys:
            raise ResumeError(
                f"{out} has pinned another log key than --log-key ({self._keys.pinned.vkey}); resume it with that, or "
                "choose another --out"
            )

    @property
    def known_size(self) -> int | None:
        """Size of the newest head that was witnessed, None before the first."""
        return None if self._head is None else self._head.size

    def pin(self, exchange: Exchange, served: LogKeyAnswer) -> None:
        """Pin the key that the service sends, or check that it is the pinned one or has replaced it.

        Raises:
            LogNotProved: It is malformed, or another key.
            RecordsUnwritable: It cannot be kept.
        """
        try:
            self._follow(served)
        except LogProofError as error:
            raise self._refusal(exchange, f"the label service's log key {served.key!r}", str(error)) from error

    def _follow(self, served: LogKeyAnswer) -> None:
        """Go on from the pinned key to the one that the service sends, and keep how."""
        key = LogKey.parse(served.key)
        keys = (self._keys or LogKeys(self._given or key)).follow(served.rotations)
        require(keys.newest == key, "it is not the one pinned before, so this is another log")
        if self._head is not None:
            # The old key has signed no head that covers the entry which replaced it.
            keys.open(self._head.note)
        if keys != self._keys:
            file = self._file or _WitnessFile(key=keys.pinned.vkey)
            self._save(file.model_copy(update={"rotations": keys.rotations}))
            self._keys = keys

    def require_run(self) -> None:
        """Refuse to query for a run whose opening was not witnessed, before a label is charged to it.

        Raises:
            ResumeError: The folder does not hold what the opening fixed.
        """
        if self._file is None or self._file.run is None:
            raise ResumeError(
                f"{self._out / WITNESS_FILE} does not hold the opening of this run, so its answers cannot be proved; "
                "restore the file, or begin a new --out"
            )

    def run_opened(
        self,
        exchange: Exchange,
        answer: OpenedRun,
        service: AsksLog,
        *,
        name: str,
        budget: int,
        evaluation_budgets: Sequence[int],
    ) -> None:
        """Prove the opening of a run, and pin the answer key that it commits to.

        Raises:
            LogNotProved: The answer is not proved.
            RecordsUnwritable: The new tree head cannot be kept.
        """
        with self._refusing(exchange, answer.receipt):
            entry, head = self._prove(answer.receipt, service)
            run = receipts.check_opening_entry(entry, answer, name, budget, evaluation_budgets)
            former = self._file.run if self._file is not None else None
            # After a crash that lost the token, another run of the same log is opened.
            same = former is None or former.label_commitment == run.label_commitment
            require(same, "it commits to another answer key than the run opened before")
        self._advance(head, entry.spent, run)

    def queried(self, exchange: Exchange, answer: QueryAnswer, service: AsksLog, asked: Sequence[int]) -> None:
        """Prove a query and every label in its answer; raises as `run_opened`."""
        with self._refusing(exchange, answer.receipt):
            entry, head = self._prove(answer.receipt, service)
            receipts.check_query_entry(entry, self._run, asked, answer, self._spent)
        self._advance(head, entry.spent)

    def evaluated(
        self,
        exchange: Exchange,
        answer: Evaluation,
        service: AsksLog,
        predictions: Sequence[int],
        budget: int | None,
    ) -> None:
        """Prove an evaluation; raises as `run_opened`."""
        detail = receipts.evaluation_detail(predictions, budget, answer)
        with self._refusing(exchange, answer.receipt):
            entry, head = self._prove(answer.receipt, service)
            receipts.check_evaluation_entry(entry, self._run, detail, self._spent, replayed=answer.replayed)
        self._advance(head, entry.spent)

    def sealed(self, exchange: Exchange, answer: SealedRun, service: AsksLog) -> None:
        """Prove the end of the run; raises as `run_opened`."""
        with self._refusing(exchange, answer.receipt):
            # A run that was sealed before is answered its first seal again.
            entry, head = self._prove(answer.receipt, service, is_new=False)
            receipts.check_seal_entry(entry, self._run, self._spent)
        self._advance(head, entry.spent)

    @property
    def _run(self) -> RunTerms:
        assert self._file is not None and self._file.run is not None, "require_run comes first"
        return self._file.run

    @property
    def _spent(self) -> int | None:
        assert self._file is not None
        return self._file.spent

    def _prove(self, receipt: JsonValue, service: AsksLog, *, is_new: bool = True) -> tuple[receipts.Entry, TreeHead]:
        """Prove an entry, that its tree head grows from the newest one, and that a new entry was not there before."""
        assert self._keys is not None, "pin comes first"
        try:
            entry, head = receipts.prove(receipt, self._keys)
        except UnknownKey:
            # The log's key may have been replaced since it was asked for.
            _, served = service.log_key()
            if all(rotation.old_key != self._keys.newest.vkey for rotation in served.rotations):
                raise
            self._follow(served)
            entry, head = receipts.prove(receipt, self._keys)
        former = self._head
        if former is None:
            return entry, head
        receipts.require_growth(former, head)
        proof: Sequence[str] = ()
        if head.size > former.size:
            try:
                proof = service.log_consistency(former.size, head.size)
            except RequestRefused as error:
                raise LogProofError(f"no proof that the log has grown from {former.size} entries ({error})") from error
        verify_consistency(former.size, head.size, former.root, head.root, [decode_hash(text) for text in proof])
        require(not is_new or entry.seq >= former.size, "it is older than the question")
        return entry, head

    @contextmanager
    def _refusing(self, exchange: Exchange, receipt: object) -> Iterator[None]:
        """Turn a failed proof into the error of the run, and keep the answer."""
        try:
            yield
        except LogProofError as error:
            index = receipts.index_of(receipt)
            if index is not None:
                where = f"entry {index}"
            elif self._head is not None:
                where = f"the entry after number {self._head.size - 1}"
            else:
                where = "the entry"
            raise self._refusal(exchange, f"{where} of the label service's log", str(error)) from error

    def _refusal(self, exchange: Exchange, what: str, reason: str) -> LogNotProved:
        """Keep an answer as evidence and return the error that names it."""
        path = self._out / REFUSED_FILE
        exchange.keep(path, reason=reason)
        return LogNotProved(
            f"{what} is refused: {reason}; nothing was learned from this answer, which is kept in {path} as evidence"
        )

    def _advance(self, head: TreeHead, spent: int, run: RunTerms | None = None) -> None:
        assert self._file is not None
        terms = run or self._file.run
        self._save(self._file.model_copy(update={"checkpoint": head.note, "run": terms, "spent": spent}))
        self._head = head

    def _save(self, content: _WitnessFile) -> None:
        replace_file(self._out / WITNESS_FILE, content.model_dump_json() + "\n")
        self._file = content

    def _load(self) -> tuple[_WitnessFile | None, LogKeys | None, TreeHead | None]:
        def parse(raw: bytes) -> tuple[_WitnessFile, LogKeys, TreeHead | None]:
            content = _WitnessFile.model_validate_json(raw)
            keys = LogKeys(LogKey.parse(content.key)).follow(content.rotations)
            return content, keys, None if content.checkpoint is None else keys.open(content.checkpoint)

        damage = "is damaged, and with it what was witnessed of the log; restore it, or begin a new --out"
        return read_file(self._out / WITNESS_FILE, parse, damage) or (None, None, None)
