"""Prometheus metrics, on a registry of the service's own (several services may live in one test process).

No metric names a label, an id, a token or a run, so nobody can read a label out of the counters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Powers of two up to the writer's largest group.
GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# From a cached read to a batch that waits behind a slow disk.
REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one service. `docs/service.md` explains each; a test compares the two."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter(
            "labelmeter_requests", "HTTP requests by route, method and status.", ["route", "method", "status"]
        )
        self.request_seconds = histogram(
            "labelmeter_request_seconds",
            "Seconds from a request's headers to the end of its answer, by route, method and class of status.",
            ["route", "method", "status_class"],
            buckets=REQUEST_BUCKETS_S,
        )
        self._served: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.problems = counter("labelmeter_problems", "Errors answered, by code.", ["code"])
        self.charged = counter("labelmeter_labels_charged", "Labels charged.")
        self.replayed = counter("labelmeter_labels_replayed", "Labels answered again without a charge.")
        self.evaluations = counter("labelmeter_evaluations", "Test accuracies answered.")
        self.runs_opened = counter("labelmeter_runs_opened", "Runs opened.")
        self.commits = counter("labelmeter_commits", "Write transactions by result.", ["result"])
        self.commit_seconds = histogram(
            "labelmeter_commit_seconds",
            "Seconds from the first statement of a write transaction to its end.",
            buckets=COMMIT_BUCKETS_S,
        )
        self.group_size = histogram(
            "labelmeter_commit_requests", "Requests that shared one write transaction.", buckets=GROUP_BUCKETS
        )
        self.queue = gauge("labelmeter_queue_requests", "Requests waiting for the writer.")
        self.entries = gauge("labelmeter_log_entries", "Entries of the query log.")

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Record one answered request; `route` is the template of its path, never the path itself."""
        # A client chooses the method, and each would be series of its own, kept for as long as the service runs.
        served = (route, method if method in METHODS else "(other)", status)
        if served not in self._served:
            # Finding a series by its labels takes longer than counting.
            route, method, status = served
            self._served[served] = (
                self.requests.labels(route, method, str(status)),
                self.request_seconds.labels(route, method, f"{status // 100}xx"),
            )
        requests, request_seconds = self._served[served]
        requests.inc()
        request_seconds.observe(seconds)

    def observe_commit(self, requests: int, seconds: float, written: bool) -> None:
        """Record one write transaction; called by the writer's thread."""
        self.commits.labels("written" if written else "failed").inc()
        self.commit_seconds.observe(seconds)
        self.group_size.observe(requests)

    def watch(self, waiting: Callable[[], int], entries: Callable[[], int]) -> None:
        """Let the two gauges ask the service for their values whenever they are read."""
        self.queue.set_function(waiting)
        self.entries.set_function(entries)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
