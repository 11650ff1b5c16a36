"""Ask the label service: the only way by which a label comes into the trainer.

    from trainer.oracle import LabelClient, Witness

    with LabelClient("http://127.0.0.1:8000", receipts_path=out / "receipts.jsonl", witness=Witness(out)) as client:
        run = client.open_run("my run", budget=500)
        answer = client.query([42, 7], idempotency_key="round-0")

Every answer is checked against its question (`answers`), and a witness has it proved from the service's log
(`witness`). Answers with a receipt are kept: they are on the disk before the caller sees them. The client waits out
temporary failures (`transport`); every other failure is a `trainer.errors.ServiceError` of one sentence.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

from trainer.errors import ConfigError, ServiceProtocolError
from trainer.oracle.answers import (
    A,
    ConsistencyAnswer,
    DatasetInfo,
    Evaluation,
    LogKeyAnswer,
    LogSummary,
    OpenedRun,
    QueryAnswer,
    RunState,
    SealedRun,
    check_query,
    parse_answer,
)
from trainer.oracle.exchange import Exchange
from trainer.oracle.transport import Reply, Transport
from trainer.oracle.witness import Witness

# The contract's largest batch: POST /v1/labels:query takes up to 1,000 ids.
MAX_IDS_PER_QUERY = 1000


class LabelClient(AbstractContextManager["LabelClient", None]):
    """Synchronous client of one label service, for one run. Close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        patience_s: float = 300.0,
        receipts_path: Path | None = None,
        witness: Witness | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: Address of the service.
            token: The run's bearer token; without one the guest run pays. `open_run` sets it.
            patience_s: Time from the first failure of a request to giving up.
            receipts_path: JSON-lines file (mode 0600) that keeps every answer with a receipt.
            witness: Proves every answer from the log; None trusts the service.

        Raises:
            ConfigError: The address is no http URL, or the token cannot be sent in a header.
        """
        self._transport = Transport(base_url, patience_s=patience_s)
        self._token = None if token is None else _checked_header("token", token)
        self._receipts_path = receipts_path
        self._witness = witness
        self._key_checked = False
        self._dataset: DatasetInfo | None = None
        self._run_id: str | None = None
        self._queries = 0

    def __repr__(self) -> str:
        """Name the service; the token stays out of logs and tracebacks."""
        return f"LabelClient({self._transport.base_url!r})"

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def wait_until_ready(self) -> None:
        """Wait until the service is ready to answer queries.

        Raises:
            ServiceUnavailable: It was not ready within the patience.
            ServiceProtocolError: Something else listens at the address.
        """
        self._transport.request("GET", "/readyz")

    def dataset(self) -> DatasetInfo:
        """Ask for the data set: size, class names, fingerprint of the images."""
        self._dataset = self._get(DatasetInfo, "/v1/dataset")
        return self._dataset

    def log_key(self) -> tuple[Exchange, LogKeyAnswer]:
        """Ask for the log's public key and how it replaced others; return the exchange too, as evidence."""
        raw = self._transport.request("GET", "/v1/log/key").body
        return Exchange("log-key", {}, raw), parse_answer(LogKeyAnswer, raw, "GET /v1/log/key")

    def log_consistency(self, first: int, second: int) -> tuple[str, ...]:
        """Ask for the hashes, base64, that lead from one size of the log to a larger one."""
        return self._get(ConsistencyAnswer, "/v1/log/proof/consistency", {"first": first, "second": second}).proof

    def log_summary(self) -> LogSummary:
        """Ask for the log's counts: of each run, and of all labels that it revealed to anybody."""
        return self._get(LogSummary, "/v1/log/summary")

    def run_state(self, run_id: str) -> RunState:
        """Ask for the state of a run."""
        return self._get(RunState, f"/v1/runs/{quote(run_id, safe='')}")

    def open_run(
        self,
        name: str,
        budget: int,
        evaluation_budgets: Sequence[int] | None = None,
        registration_token: str | None = None,
    ) -> OpenedRun:
        """Open a run. The client's later calls belong to it and carry its token.

        Args:
            name: For people who read the log.
            budget: Most labels that the run may be charged.
            evaluation_budgets: Numbers of labels at which a learning curve will be evaluated.
            registration_token: The operator's token, if the service requires one.

        Returns:
            The run with its token. The service never sends the token again: keep it before the first query.

        Raises:
            NotAuthorized: The registration token is missing or wrong.
            RequestRefused: The budget is larger than the operator allows.
            ServiceProtocolError: The answer does not fit the request.
            LogNotProved: The log does not prove the answer.
        """
        if self._witness is not None:
            self._check_log_key(self._witness)
        body: dict[str, object] = {"name": name, "budget": budget}
        if evaluation_budgets is not None:
            body["evaluation_budgets"] = list(evaluation_budgets)
        token = None if registration_token is None else _checked_header("registration token", registration_token)
        key = f"open-{uuid.uuid4()}"
        reply = self._post("/v1/runs", token, body, key)
        run = parse_answer(OpenedRun, reply.body, "POST /v1/runs")
        if run.budget != budget:
            raise ServiceProtocolError(f"the label service opened a run of {run.budget} labels instead of {budget}.")
        exchange = Exchange("run-opened", {"idempotency_key": key, **body}, reply.body)
        if self._witness is not None:
            self._witness.run_opened(
                exchange,
                run,
                _AnsweredLog(self, reply),
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
            ids: Rows of the pool; repeated ids are asked once. More than 1,000 become several requests with the keys
                `idempotency_key`.0, .1, …
            idempotency_key: The same for the same ids, also after a restart: then nothing is charged again and the
                first answer comes back. Never reuse it for other ids.

        Returns:
            One label for each distinct id, in the order asked. `receipt` is the last request's.

        Raises:
            ValueError: No ids.
            BudgetExhausted: The budget does not cover the batch; nothing of the refused request was charged.
            UnknownLabelId: An id is outside the pool; nothing of the refused request was charged.
            QueryingClosed: The run has been evaluated.
            RunSealed: The run has ended.
            NotAuthorized: The token is wrong.
            ServiceProtocolError: The answer does not fit the question.
            LogNotProved: The log does not prove the answer.
            RecordsUnwritable: The receipt cannot be kept; correct that and ask again under the same key.
        """
        asked = [int(label_id) for label_id in dict.fromkeys(ids)]
        if not asked:
            raise ValueError("a query needs at least one id")
        key = _checked_header("idempotency key", idempotency_key)
        self._check_run_is_witnessed()
        dataset = self._dataset or self.dataset()
        chunks = [asked[start : start + MAX_IDS_PER_QUERY] for start in range(0, len(asked), MAX_IDS_PER_QUERY)]
        keys = [key] if len(chunks) == 1 else [f"{key}.{number}" for number in range(len(chunks))]
        answers = [self._query_chunk(chunk, chunk_key, dataset) for chunk, chunk_key in zip(chunks, keys, strict=True)]
        return answers[-1].model_copy(
            update={
                "labels": tuple(label for answer in answers for label in answer.labels),
                "charged": sum(answer.charged for answer in answers),
                "replayed": all(answer.replayed for answer in answers),
            }
        )

    def evaluate(
        self, run_id: str, predictions: Sequence[int], *, budget: int | None = None, idempotency_key: str
    ) -> Evaluation:
        """Submit a class number for each test image, in order. The run may query no label afterwards.

        Args:
            run_id: This client's run.
            predictions: One class number for each test image.
            budget: The declared evaluation budget at which these predictions were frozen.
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
        self._check_run_is_witnessed()
        reply = self._post(path, self._token, body, key)
        evaluation = parse_answer(Evaluation, reply.body, f"POST {path}")
        if evaluation.total != len(predictions):
            raise ServiceProtocolError(
                f"the label service compared {evaluation.total} predictions where {len(predictions)} were submitted."
            )
        exchange = Exchange("evaluation", {"idempotency_key": key, "budget": budget}, reply.body)
        if self._witness is not None:
            self._witness.evaluated(exchange, evaluation, _AnsweredLog(self, reply), predictions, budget)
        self._keep(exchange)
        return evaluation

    def seal(self, run_id: str) -> SealedRun:
        """End a run for good: the service refuses its queries and evaluations from now on."""
        path = f"/v1/runs/{quote(run_id, safe='')}:seal"
        self._check_run_is_witnessed()
        reply = self._post(path, self._token)
        sealed = parse_answer(SealedRun, reply.body, f"POST {path}")
        exchange = Exchange("seal", {}, reply.body)
        if self._witness is not None:
            self._witness.sealed(exchange, sealed, _AnsweredLog(self, reply))
        self._keep(exchange)
        return sealed

    def _query_chunk(self, asked: list[int], key: str, dataset: DatasetInfo) -> QueryAnswer:
        """Ask for up to 1,000 distinct ids; the answer is checked, proved and kept before it is returned."""
        reply = self._post("/v1/labels:query", self._token, {"ids": asked}, key)
        answer = parse_answer(QueryAnswer, reply.body, "POST /v1/labels:query")
        check_query(answer, asked, dataset, self._run_id, self._queries)
        exchange = Exchange("query", {"idempotency_key": key, "ids": asked}, reply.body)
        if self._witness is not None:
            self._witness.queried(exchange, answer, _AnsweredLog(self, reply), asked)
        self._keep(exchange)
        self._run_id = answer.run_id
        self._queries = max(self._queries, answer.queries)
        by_id = {label.id: label for label in answer.labels}
        return answer.model_copy(update={"labels": tuple(by_id[label_id] for label_id in asked)})

    def _check_log_key(self, witness: Witness) -> None:
        """Have the log's key pinned, or compared with the pinned one, once and before the first question."""
        if not self._key_checked:
            witness.pin(*self.log_key())
            self._key_checked = True

    def _check_run_is_witnessed(self) -> None:
        """Refuse to go on with a run whose opening or log the witness does not know."""
        if self._witness is not None:
            self._witness.require_run()
            self._check_log_key(self._witness)

    def _post(self, path: str, token: str | None, body: object = None, key: str | None = None) -> Reply:
        """Send a request whose answer has a receipt."""
        known_size = None if self._witness is None else self._witness.known_size
        return self._transport.request("POST", path, token=token, body=body, idempotency_key=key, known_size=known_size)

    def _get(self, model: type[A], path: str, params: Mapping[str, int] | None = None) -> A:
        """Send a GET and read the answer."""
        reply = self._transport.request("GET", path, token=self._token, params=params)
        return parse_answer(model, reply.body, f"GET {path}")

    def _keep(self, exchange: Exchange) -> None:
        """Write an exchange to the receipts file."""
        if self._receipts_path is not None:
            exchange.keep(self._receipts_path)


class _AnsweredLog:
    """The log behind an answer, for the witness: what the answer proves itself is not asked for again."""

    def __init__(self, client: LabelClient, reply: Reply) -> None:
        self.log_key = client.log_key
        self._client, self._proof = client, reply.headers.get("log-consistency")

    def log_consistency(self, first: int, second: int) -> Sequence[str]:
        """Return the proof that came with the answer; ask for it if none came, as from an older service."""
        if self._proof is None:
            return self._client.log_consistency(first, second)
        return [text.strip() for text in self._proof.split(",")]


def _checked_header(what: str, value: str) -> str:
    """Return a value that can stand in a header; the error does not repeat it, because it may be secret."""
    if not re.fullmatch(r"[!-~]{1,255}", value):
        raise ConfigError(f"the {what} must be 1 to 255 printable ASCII characters without spaces; correct it.")
    return value
