"""What the answer of an entry must say."""

from label_service.log.account import RunAccount
from label_service.log.kept_answers import _expected


def test_a_refused_evaluation_has_no_result_though_its_entry_has_a_clock_that_was_set_back() -> None:
    """Its detail is not empty, and no evaluation."""
    entry = {"op": "evaluation", "outcome": "evaluations-exhausted", "run": "run-1", "spent": 1, "budget": 2}
    told = _expected(entry | {"detail": {"clock": "2026-01-31T12:00:00.000000Z"}}, RunAccount("x", 2, 1), {})
    assert told["evaluations_used"] is None and told == _expected(entry, RunAccount("x", 2, 1), {})
