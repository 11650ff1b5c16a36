"""Does the answer to a query fit its question? Ids, classes, the run and its count; no log and no proof here.

A wrong label would train a wrong network in silence, so what does not fit is an error before it is kept or used.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import ServiceProtocolError
from trainer.oracle.answers import DatasetInfo, QueryAnswer


def check_query_answer(
    answer: QueryAnswer, asked: Sequence[int], dataset: DatasetInfo, run_id: str | None, queries: int
) -> None:
    """Refuse an answer to another question, impossible classes, another run, and a count that falls.

    Args:
        answer: What came back.
        asked: Distinct ids.
        dataset: The pool that they are rows of.
        run_id: The run that asked, None before the first answer has told it.
        queries: The highest count of this run so far.

    Raises:
        ServiceProtocolError: It does not fit.
    """
    ids = {label.id for label in answer.labels}
    if len(answer.labels) != len(asked) or ids != set(asked):
        strange = sorted(ids ^ set(asked))[:3]
        raise ServiceProtocolError(f"a query asked {len(asked)} ids and the answer is about others: {strange}.")
    for label in answer.labels:
        # A class that the data set does not have, or the name of another class.
        if label.label >= dataset.num_classes or label.label_name != dataset.class_names[label.label]:
            raise ServiceProtocolError(
                f"image {label.id} was answered class {label.label} ({label.label_name!r}), which is none of the "
                f"{dataset.num_classes} classes of {dataset.name}."
            )
    if run_id not in (None, answer.run_id):
        raise ServiceProtocolError(f"a query was charged to run {answer.run_id} instead of {run_id}.")
    # The repeat of an old request tells the counts of that time, so it proves nothing about a lost log.
    if not answer.replayed and answer.queries < queries:
        raise ServiceProtocolError(
            f"the label service counts {answer.queries} queries in this run and counted {queries} before; "
            "its database was replaced, so the log no longer proves the run's labels."
        )
