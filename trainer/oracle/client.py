"""Ask the label service: the only door through which a label comes into the trainer.

    with LabelClient("http://127.0.0.1:8000", receipts_path=out / "receipts.jsonl", witness=Witness(out)) as client:
        run = client.open_run("my run", budget=500)
        answer = client.query([42, 7], idempotency_key="round-0")

Every answer is checked against the question (the ids asked and no others, classes that exist, counts that fit and
never fall), and a witness has it proved from the service's log (`witness`), because a wrong label would train
a wrong network in silence. Answers with a receipt are kept, on the disk before the caller sees them. Passing failures
are waited out, see `transport`; what remains is a `trainer.errors.ServiceError` of one sentence.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from trainer.errors import ConfigError, ServiceProtocolError
from trainer.oracle.answers import DatasetInfo, Evaluation, OpenedRun, QueryAnswer, RunState, SealedRun, parse_answer
from trainer.oracle.exchange import Exchange
from trainer.oracle.log_reader import LogReader
from trainer.oracle.query_checks import check_query_answer
from trainer.oracle.transport import RetryPolicy, Transport
from trainer.oracle.witness import Witness

# The contract's largest batch: POST /v1/labels:query takes up to 1,000 ids.
MAX_IDS_PER_QUERY = 1000


class LabelClient(LogReader):
    """Synchronous client of one label service, for one run. Close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 300.0,
        policy: RetryPolicy | None = None,
        receipts_path: Path | None = None,
        witness: Witness | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        notify: Callable[[str], None] | None = None,
        seed: int = 0,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: Address of the service.
            token: The run's bearer token; without one the guest run pays. `open_run` sets it.
            timeout_s: Longest wait for a connection or the next bytes of an answer.
            patience_s: How long passing failures of one request are waited out.
            policy: Timeouts and pauses in full; replaces the two above.
            receipts_path: JSON-lines file (mode 0600) that keeps every answer with a receipt.
            witness: Proves every answer from the log; None believes the service, which only tests do.
            clock: Seconds that only grow.
            sleep: Pauses for seconds.
            notify: Told one line when a wait lasts and when it ends; a warning in the log by default.
            seed: Seed of the jitter in the pauses.

        Raises:
            ConfigError: The address is no http URL, or the token holds what no header can.
        """
        policy = policy or RetryPolicy(timeout_s=timeout_s, patience_s=patience_s)
        super().__init__(Transport(base_url, policy, clock=clock, sleep=sleep, notify=notify, seed=seed))
        self._token = None if token is None else _checked_header("token", token)
        self._receipts_path = receipts_path
        self._witness = witness
        self._met = False
        self._dataset: DatasetInfo | None = None
        self._run_id: str | None = None
        self._queries = 0

    def __repr__(self) -> str:
        """Name the service; the token stays out of logs and tracebacks."""
        return f"LabelClient({self._transport.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def wait_until_ready(self) -> None:
        """Wait until the service says that it can answer queries.

        Raises:
            ServiceUnavailable: It did not within the patience.
            ServiceProtocolError: Something else listens at the address.
        """
        self._transport.request("GET", "/readyz")

    def dataset(self) -> DatasetInfo:
        """Ask what the labels belong to: size, class names, fingerprint of the images."""
        self._dataset = self._get(DatasetInfo, "/v1/dataset")
        return self._dataset

    def open_run(
        self,
        name: str,
        budget: int,
        evaluation_budgets: Sequence[int] | None = None,
        registration_token: str | None = None,
    ) -> OpenedRun:
        """Open a run; from then on this client's calls belong to it and carry its token.

        Args:
            name: For people who read the log.
            budget: Most labels that the run may be charged.
            evaluation_budgets: Numbers of labels at which a learning curve will be evaluated.
            registration_token: The operator's token, where the service wants one.

        Returns:
            The run with its token, which the service does not tell again: keep it before the first query.

        Raises:
            NotAuthorized: The service wants a registration token, or another one.
            RequestRefused: The budget is larger than the operator allows.
        """
        if self._witness is not None:
            self._meet_log(self._witness)
        body: dict[str, object] = {"name": name, "budget": budget}
        if evaluation_budgets is not None:
            body["evaluation_budgets"] = list(evaluation_budgets)
        token = None if registration_token is None else _checked_header("registration token", registration_token)
        key = f"open-{uuid.uuid4()}"
        raw = self._transport.request("POST", "/v1/runs", token=token, body=body, idempotency_key=key)
        run = parse_answer(OpenedRun, raw, "POST /v1/runs")
        if run.budget != budget:
            raise ServiceProtocolError(f"the label service opened a run of {run.budget} labels instead of {budget}.")
        exchange = Exchange("run-opened", {"idempotency_key": key, **body}, raw)
        if self._witness is not None:
            self._witness.run_opened(
                exchange,
                run,
                self.log_consistency,
                name=name,
                budget=budget,
                evaluation_budgets=evaluation_budgets or (),
            )
        self._keep(exchange)
        self._token, self._run_id, self._dataset, self._queries = run.token, run.run_id, run.dataset, 0
        return run

    def query(self, ids: Sequence[int], *, idempotency_key: str) -> QueryAnswer:
        """Ask for labels.

        Args:
            ids: Rows of the pool; repeats are asked once. More than 1,000 become several requests, whose keys are
                `idempotency_key` with .0, .1, … behind it.
            idempotency_key: The same for the same ids, also after a restart: then nothing is charged again and the
                first answer comes back. Never reused for other ids.

        Returns:
            One label for each distinct id, in the order asked. `receipt` is the last request's.

        Raises:
            ValueError: No ids.
            BudgetExhausted: The budget does not cover the batch; nothing of the refused request was charged.
            UnknownLabelId: An id is outside the pool; nothing of the refused request was charged.
            QueryingClosed: The run was evaluated before.
            RunSealed: The run has ended.
            NotAuthorized: The token is wrong.
            ServiceProtocolError: The answer does not fit the question.
            LogNotProved: The log does not prove the answer.
            RecordsUnwritable: The receipt cannot be kept; ask again under the same key after mending that.
        """
        asked = [int(label_id) for label_id in dict.fromkeys(ids)]
        if not asked:
            raise ValueError("a query needs at least one id")
        key = _checked_header("idempotency key", idempotency_key)
        self._meet_own_log()
        if self._dataset is None:
            self.dataset()
        chunks = [asked[start : start + MAX_IDS_PER_QUERY] for start in range(0, len(asked), MAX_IDS_PER_QUERY)]
        keys = [key] if len(chunks) == 1 else [f"{key}.{number}" for number in range(len(chunks))]
        answers = [self._query_once(chunk, chunk_key) for chunk, chunk_key in zip(chunks, keys, strict=True)]
        return answers[-1].model_copy(
            update={
                "labels": tuple(label for answer in answers for label in answer.labels),
                "charged": sum(answer.charged for answer in answers),
                "replayed": all(answer.replayed for answer in answers),
            }
        )

    def run_state(self, run_id: str) -> RunState:
        """Ask how a run stands."""
        return self._get(RunState, f"/v1/runs/{quote(run_id, safe='')}")

    def evaluate(
        self, run_id: str, predictions: Sequence[int], *, budget: int | None = None, idempotency_key: str
    ) -> Evaluation:
        """Submit a class number for each test image, in order, and get the accuracy; the run may ask no label after.

        Args:
            run_id: This client's run.
            predictions: One class number for each test image.
            budget: Which of the declared evaluation budgets these predictions were frozen at.
            idempotency_key: The same for the same predictions: a repeat gets the first answer and uses up nothing.

        Raises:
            RequestRefused: Evaluations are used up, the budget was not declared, or the predictions do not fit.
            RunSealed: The run has ended.
            ServiceProtocolError: The answer does not fit the question.
            LogNotProved: The log does not prove the answer.
        """
        body: dict[str, object] = {"predictions": [int(label) for label in predictions]}
        if budget is not None:
            body["budget"] = budget
        path = f"/v1/runs/{quote(run_id, safe='')}/evaluations"
        key = _checked_header("idempotency key", idempotency_key)
        self._meet_own_log()
        raw = self._transport.request("POST", path, token=self._token, body=body, idempotency_key=key)
        evaluation = parse_answer(Evaluation, raw, f"POST {path}")
        if evaluation.total != len(predictions):
            raise ServiceProtocolError(
                f"the label service compared {evaluation.total} predictions where {len(predictions)} were submitted."
            )
        exchange = Exchange("evaluation", {"idempotency_key": key, "budget": budget}, raw)
        if self._witness is not None:
            self._witness.evaluated(exchange, evaluation, self.log_consistency, predictions, budget)
        self._keep(exchange)
        return evaluation

    def seal(self, run_id: str) -> SealedRun:
        """End a run for good; it answers no query and no evaluation any more."""
        path = f"/v1/runs/{quote(run_id, safe='')}:seal"
        self._meet_own_log()
        raw = self._transport.request("POST", path, token=self._token)
        sealed = parse_answer(SealedRun, raw, f"POST {path}")
        exchange = Exchange("seal", {}, raw)
        if self._witness is not None:
            self._witness.sealed(exchange, sealed)
        self._keep(exchange)
        return sealed

    def _query_once(self, asked: list[int], key: str) -> QueryAnswer:
        """Ask for up to 1,000 distinct ids; the answer is checked, then proved, then kept, then used."""
        assert self._dataset is not None
        raw = self._transport.request(
            "POST", "/v1/labels:query", token=self._token, body={"ids": asked}, idempotency_key=key
        )
        answer = parse_answer(QueryAnswer, raw, "POST /v1/labels:query")
        check_query_answer(answer, asked, self._dataset, self._run_id, self._queries)
        exchange = Exchange("query", {"idempotency_key": key, "ids": asked}, raw)
        if self._witness is not None:
            self._witness.queried(exchange, answer, self.log_consistency, asked)
        self._keep(exchange)
        self._run_id = answer.run_id
        self._queries = max(self._queries, answer.queries)
        by_id = {label.id: label for label in answer.labels}
        return answer.model_copy(update={"labels": tuple(by_id[label_id] for label_id in asked)})

    def _meet_log(self, witness: Witness) -> None:
        """Have the log's key pinned, or found to be the pinned one, once and before anything is asked."""
        if not self._met:
            witness.pin(*self.log_key())
            self._met = True

    def _meet_own_log(self) -> None:
        """The same for a run that was opened before."""
        if self._witness is not None:
            self._witness.require_run()
            self._meet_log(self._witness)

    def _keep(self, exchange: Exchange) -> None:
        """Write an exchange to the receipts file, on the disk before the caller sees the answer."""
        if self._receipts_path is not None:
            exchange.keep(self._receipts_path)


def _checked_header(what: str, value: str) -> str:
    """Return a value that can stand in a header, without repeating it in the error: it may be secret."""
    if not re.fullmatch(r"[!-~]{1,255}", value):
        raise ConfigError(f"the {what} must be 1 to 255 printable ASCII characters without spaces; mend the setting.")
    return value
