"""The log's witness: every answer of the label service is proved before anything learns from it.

The witness holds the log's pinned key, what the opening of the run fixed (budget, commitment to the answer key), and
the newest head it has seen. Each answer must bring a receipt that `receipts` accepts, for an entry younger than
that head, under a head that grows from it. Then the new head is on the disk, in OUT/log-witness.json, before the
caller sees the answer: a log that was forked, cut or put back cannot be shown to a run that goes on, restarts included.

An answer that fails is kept in OUT/receipts-refused.jsonl and ends the run with `LogNotProved`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from trainer.errors import ConfigError, DataError, LogNotProved, RequestRefused, ResumeError
from trainer.oracle.answers import Evaluation, OpenedRun, QueryAnswer, SealedRun
from trainer.oracle.evidence import Submitted, check_evidence
from trainer.oracle.exchange import REFUSED_FILE, Exchange
from trainer.oracle.log_proofs import (
    Checkpoint,
    LogKey,
    LogProofError,
    decode_hash,
    verify_appended,
    verify_consistency,
)
from trainer.oracle.receipts import (
    ProvedEntry,
    WitnessedRun,
    check_evaluation,
    check_opening,
    check_query,
    index_of,
    prove,
    require,
)
from trainer.records.files import replace_file

WITNESS_FILE = "log-witness.json"

# Asks the service for the hashes that lead from one size of the log to another.
AskConsistency = Callable[[int, int], Sequence[str]]


class _State(BaseModel):
    """What the file holds. `run` and `checkpoint` are None until the run is opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    run: WitnessedRun | None = None
    checkpoint: str | None = None


class Witness:
    """The witness of one run's folder. Not safe to share between threads or processes."""

    def __init__(self, out: Path, log_key: str | None = None) -> None:
        """Take up what the folder has witnessed.

        Args:
            out: The run's folder.
            log_key: The log's public key, known from elsewhere; None trusts the first one that is seen.

        Raises:
            ConfigError: `log_key` is no key.
            ResumeError: The folder has pinned another key.
            DataError: The file is damaged.
        """
        self._out = out
        self._given = None if log_key is None else parse_log_key(log_key)
        self._state, self._key, self._head = self._load()
        if self._given is not None and self._key is not None and self._given != self._key:
            raise ResumeError(
                f"{out} has pinned another log key than --log-key ({self._key.vkey}); resume it with that, or choose "
                "another --out"
            )
        self._evaluations: list[Submitted] = []

    def pin(self, exchange: Exchange, served: str) -> None:
        """Pin the key that the service says, or find that it is the pinned one.

        Raises:
            LogNotProved: It is no key, or another one.
            RecordsUnwritable: It cannot be kept.
        """
        pinned = self._key or self._given
        try:
            key = LogKey.parse(served)
            require(pinned in (None, key), "it is not the one pinned before, so this is another log")
        except LogProofError as error:
            raise self._refusal(exchange, f"the label service's log key {served!r}", str(error)) from error
        if self._state is None:
            self._key = key
            self._save(_State(key=key.vkey))

    def require_run(self) -> None:
        """Refuse to ask for a run whose opening was not witnessed, before a label is charged to it.

        Raises:
            ResumeError: The folder does not say what the run's opening fixed.
        """
        if self._state is None or self._state.run is None:
            raise ResumeError(
                f"{self._out / WITNESS_FILE} does not hold the opening of this run, so its answers cannot be proved; "
                "restore the file, or begin a new --out"
            )

    def run_opened(
        self,
        exchange: Exchange,
        answer: OpenedRun,
        ask: AskConsistency,
        *,
        name: str,
        budget: int,
        evaluation_budgets: Sequence[int],
    ) -> None:
        """Prove the opening of a run, and hold the service to the answer key it commits to.

        Raises:
            LogNotProved: The answer is not proved.
            RecordsUnwritable: The new head cannot be kept.
        """
        with self._judging(exchange, answer.receipt):
            proved = self._prove(answer.receipt, ask)
            run = check_opening(proved.entry, answer, name, budget, evaluation_budgets)
            former = self._state.run if self._state is not None else None
            # A run that was opened and whose token was lost in a crash is followed by another one of the same log.
            same = former is None or former.label_commitment == run.label_commitment
            require(same, "it commits to another answer key than the run opened before")
        self._advance(proved.head, run)

    def queried(self, exchange: Exchange, answer: QueryAnswer, ask: AskConsistency, asked: Sequence[int]) -> None:
        """Prove a query and every label in its answer; raises as `run_opened`."""
        with self._judging(exchange, answer.receipt):
            proved = self._prove(answer.receipt, ask)
            check_query(proved.entry, self._run, asked, answer)
        self._advance(proved.head)

    def evaluated(
        self,
        exchange: Exchange,
        answer: Evaluation,
        ask: AskConsistency,
        predictions: Sequence[int],
        budget: int | None,
    ) -> None:
        """Prove an evaluation; raises as `run_opened`."""
        with self._judging(exchange, answer.receipt):
            proved = self._prove(answer.receipt, ask)
            check_evaluation(proved.entry, self._run, predictions, budget, answer)
        self._evaluations.append(Submitted(tuple(predictions), budget, answer))
        self._advance(proved.head)

    def sealed(self, exchange: Exchange, answer: SealedRun) -> None:
        """Prove the evidence that ends the run; raises as `run_opened`."""
        assert self._key is not None and self._head is not None
        with self._judging(exchange, None):
            evidence = (answer.model_extra or {}).get("evidence")
            head = check_evidence(evidence, self._key, self._head, self._run, self._evaluations)
        self._advance(head)

    @property
    def _run(self) -> WitnessedRun:
        assert self._state is not None and self._state.run is not None, "require_run comes first"
        return self._state.run

    def _prove(self, receipt: JsonValue, ask: AskConsistency) -> ProvedEntry:
        """Prove an entry, that its head grows from the newest one, and that it was not there before."""
        assert self._key is not None, "pin comes first"
        proved = prove(receipt, self._key)
        former, head = self._head, proved.head
        if former is None:
            return proved
        require(head.size >= former.size, f"the log has shrunk from {former.size} entries to {head.size}")
        if (proved.entry.seq, head.size) == (former.size, former.size + 1):
            # Nobody else asked in between: the receipt itself proves the growth, and a round trip is saved.
            verify_appended(former.size, former.root, proved.proof)
            return proved
        proof: Sequence[str] = ()
        if head.size > former.size:
            try:
                proof = ask(former.size, head.size)
            except RequestRefused as error:
                raise LogProofError(f"no proof that the log has grown from {former.size} entries ({error})") from error
        verify_consistency(former.size, head.size, former.root, head.root, [decode_hash(one) for one in proof])
        require(proved.entry.seq >= former.size, "it is older than the question")
        return proved

    @contextmanager
    def _judging(self, exchange: Exchange, receipt: object) -> Iterator[None]:
        """Turn what does not hold into the error of the run, with the answer kept."""
        try:
            yield
        except LogProofError as error:
            index = index_of(receipt)
            former = self._head.size - 1 if self._head is not None else None
            place = f"entry {index}" if index is not None else "the entry"
            if index is None and former is not None:
                place = f"the entry after number {former}"
            raise self._refusal(exchange, f"{place} of the label service's log", str(error)) from error

    def _refusal(self, exchange: Exchange, what: str, why: str) -> LogNotProved:
        """Keep an answer as evidence and return the error that says so."""
        path = self._out / REFUSED_FILE
        exchange.keep(path, reason=why)
        return LogNotProved(
            f"{what} is refused: {why}; nothing was learned from this answer, which is kept in {path} as evidence"
        )

    def _advance(self, head: Checkpoint, run: WitnessedRun | None = None) -> None:
        assert self._state is not None
        self._save(self._state.model_copy(update={"checkpoint": head.note, "run": run or self._state.run}))
        self._head = head

    def _save(self, state: _State) -> None:
        replace_file(self._out / WITNESS_FILE, state.model_dump_json() + "\n")
        self._state = state

    def _load(self) -> tuple[_State | None, LogKey | None, Checkpoint | None]:
        path = self._out / WITNESS_FILE
        try:
            state = _State.model_validate_json(path.read_bytes())
            key = LogKey.parse(state.key)
            return state, key, None if state.checkpoint is None else Checkpoint.open(state.checkpoint, key)
        except (FileNotFoundError, NotADirectoryError):
            return None, None, None
        except (OSError, ValidationError, LogProofError) as error:
            raise DataError(
                f"{path} is damaged, and with it what was witnessed of the log; restore it, or begin a new --out"
            ) from error


def parse_log_key(log_key: str) -> LogKey:
    """Read a key that a person gave.

    Raises:
        ConfigError: It is none.
    """
    try:
        return LogKey.parse(log_key.strip())
    except LogProofError as error:
        raise ConfigError(
            f"--log-key is not a log's key ({error}); copy it whole from GET /v1/log/key, such as labelmeter/ID+ID+KEY"
        ) from error
