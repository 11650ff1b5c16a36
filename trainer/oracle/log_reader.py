"""Read the label service's query log over HTTP: key, proofs, counts, entries. It believes what it reads.

What may be believed is the witness's business (`witness`). The log is open, so no call here needs a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.errors import ServiceProtocolError
from trainer.oracle.answers import A, ConsistencyAnswer, LogEntry, LogKeyAnswer, LogPage, LogSummary, parse_answer
from trainer.oracle.exchange import Exchange
from trainer.oracle.transport import Transport

_LOG_PAGE = 1000


class LogReader:
    """The part of a label service's client that charges nothing and is not logged."""

    def __init__(self, transport: Transport) -> None:
        """Read through a transport, which the caller closes."""
        self._transport = transport
        self._token: str | None = None

    def log_key(self) -> tuple[Exchange, str]:
        """Ask for the log's public key; return the exchange too, as evidence."""
        raw = self._transport.request("GET", "/v1/log/key")
        return Exchange("log-key", {}, raw), parse_answer(LogKeyAnswer, raw, "GET /v1/log/key").key

    def log_consistency(self, first: int, second: int) -> tuple[str, ...]:
        """Ask for the hashes, base64, that lead from one size of the log to a larger one."""
        return self._get(ConsistencyAnswer, "/v1/log/proof/consistency", {"first": first, "second": second}).proof

    def log_summary(self) -> LogSummary:
        """Ask what the log counts: by run, and all labels that it revealed to anybody."""
        return self._get(LogSummary, "/v1/log/summary")

    def log_entries(self, run: str | None = None, after: int | None = None) -> Iterator[LogEntry]:
        """Walk the query log in order, page by page.

        Args:
            run: Only this run's entries.
            after: A cursor from which to go on; None is the beginning.

        Raises:
            ServiceProtocolError: The cursor or the entries do not move forward.
        """
        cursor, last_seq = after, -1
        while True:
            params: dict[str, str | int] = {"limit": _LOG_PAGE}
            params |= {} if cursor is None else {"after": cursor}
            params |= {} if run is None else {"run": run}
            page = self._get(LogPage, "/v1/log/entries", params)
            for entry in page.entries:
                if entry.seq <= last_seq:
                    raise ServiceProtocolError(f"the query log goes back from entry {last_seq} to {entry.seq}.")
                last_seq = entry.seq
                yield entry
            if page.next is None:
                return
            if not page.entries or (cursor is not None and page.next <= cursor):
                raise ServiceProtocolError(f"the query log's cursor does not move forward (next={page.next}).")
            cursor = page.next

    def _get(self, model: type[A], path: str, params: Mapping[str, str | int] | None = None) -> A:
        """Send a GET and check the answer."""
        return parse_answer(
            model, self._transport.request("GET", path, token=self._token, params=params), f"GET {path}"
        )
