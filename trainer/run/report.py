"""Write OUT/report.html: one page with a run's accuracy, its queries, its training and its cost.

The page is written after each round, so that it can be watched while the run goes on, and leaves out what is not known
yet. It needs no script, no network and no other file, and its content policy forbids them. Its accuracies are the run's
own estimates and the label service's answers; no test label is in it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from trainer.errors import DataError
from trainer.records.files import replace_file
from trainer.records.progress import duration, read_stages
from trainer.records.run_records import (
    QueryRecord,
    RoundRecord,
    RunResult,
    describe_classes,
    read_metrics,
    read_queries,
    read_result,
    read_rounds,
)
from trainer.run import session
from trainer.run.pool_map import read_pool_map
from trainer.run.report_charts import (
    BLUE,
    GREEN,
    GREY,
    CurvePoint,
    Series,
    asking_curve,
    draw_accuracies,
    page_colour,
    training_charts,
)
from trainer.run.report_figures import class_colours, confusion, draw_map, sprite_sheet

REPORT_FILE = "report.html"
# Mean test accuracies of the records, by profile; `make results` writes it from the record that the README quotes.
PUBLISHED_FILE = Path(__file__).parent / "published.json"
# Height of a thumbnail in CSS pixels, about: it is scaled by a whole factor, so that every pixel stays a square.
_SHOWN_HEIGHT = 56
# Half the width of a 95% interval in standard errors.
_Z_95 = 1.96


def write_report(out_dir: Path, images: npt.NDArray[np.uint8], class_names: Sequence[str]) -> Path:
    """Write the report of a run, finished or not, from its records and the pool; return its path.

    Args:
        out_dir: the run's folder.
        images: the pool, uint8 [N, H, W] or [N, H, W, 3].
        class_names: by class number.

    Raises:
        DataError: The records are damaged, or do not fit the images or the class names.
        RecordsUnwritable: The report cannot be written.
    """
    queries = read_queries(out_dir)
    _check_fit(out_dir, queries, images, class_names)
    result, rounds = read_result(out_dir), _rounds_with_network(out_dir)
    stages = result.stage_seconds if result is not None else read_stages(out_dir)
    sheet = sprite_sheet(np.asarray(images[[query.id for query in queries]], dtype=np.uint8)) if queries else None
    pool_map, calibrated = read_pool_map(out_dir), is_calibrated(out_dir)
    labels = [query.label for query in queries]
    page = (
        page_environment()
        .get_template(REPORT_FILE)
        .render(
            result=result,
            calibrated=calibrated,
            queries=queries,
            classes=[] if result is None else describe_classes(result),
            rounds=[list(batch) for _, batch in groupby(queries, key=lambda query: query.round)],
            plan=_plan(out_dir),
            class_names=class_names,
            colours=class_colours(len(class_names)),
            balance=[(name, labels.count(label)) for label, name in enumerate(class_names)],
            confusion=confusion(queries, len(class_names)).tolist(),
            estimate=next((each for each in reversed(rounds) if each.estimated_accuracy is not None), None),
            z=_Z_95,
            accuracy=_accuracy_chart(rounds, result, _published_curve(out_dir), calibrated=calibrated),
            asking=_chart(asking_curve(queries), "Right before asking"),
            training=training_charts(read_metrics(out_dir)),
            map=None if pool_map is None else draw_map(pool_map, queries, len(class_names)),
            stages=list(stages.items()),
            total_s=sum(stages.values()),
            sheet=sheet,
            thumb=None if sheet is None else _thumb_size(*sheet.thumb),
            written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        )
    )
    path = out_dir / REPORT_FILE
    replace_file(path, page)
    return path


@functools.cache
def page_environment() -> Environment:
    """Make the environment of the pages' templates: all that is put in is text, and a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("trainer.run"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["duration"] = duration
    environment.filters["page_colour"] = page_colour
    return environment


def own_estimates(
    rounds: Sequence[RoundRecord], name: str = "own estimate", colour: str = BLUE, *, calibrated: bool = True
) -> Series:
    """Return the run's own estimates by number of labels, with their 95% intervals; no interval without calibration."""
    z = _Z_95 if calibrated else 0.0
    points = [
        CurvePoint(
            each.labels,
            each.estimated_accuracy,
            max(0.0, each.estimated_accuracy - z * each.estimate_error),
            min(1.0, each.estimated_accuracy + z * each.estimate_error),
        )
        for each in rounds
        if each.estimated_accuracy is not None and each.estimate_error is not None
    ]
    return Series(name if calibrated else f"{name}, not calibrated", tuple(points), colour)


def is_calibrated(out_dir: Path) -> bool:
    """Tell whether a run's own estimate means something on its data; True for records that do not say what they are."""
    plan, ticket = _plan(out_dir), session.read_ticket(out_dir)
    return plan is None or ticket is None or plan.estimate_is_calibrated_for(ticket.dataset)


def evaluated_accuracies(result: RunResult | None, name: str = "test accuracy", colour: str = GREEN) -> Series:
    """Return what the label service answered at each point that was evaluated."""
    evaluated = () if result is None else result.points
    points = [CurvePoint(each.labels, each.evaluation.accuracy, *each.evaluation.ci95) for each in evaluated]
    return Series(name, tuple(points), colour, "D")


def _accuracy_chart(
    rounds: Sequence[RoundRecord], result: RunResult | None, published: Series | None, *, calibrated: bool
) -> dict[str, Any] | None:
    series = [own_estimates(rounds, calibrated=calibrated), evaluated_accuracies(result)]
    if not any(one.points for one in series):
        return None
    return _chart([*([] if published is None else [published]), *series], "Accuracy by number of labels")


def _chart(series: Sequence[Series], title: str) -> dict[str, Any] | None:
    """Return what the page shows of a chart: its series that have points, its SVG, and the numbers as a table."""
    drawn = tuple(one for one in series if one.points)
    return {"series": drawn, "svg": _draw_accuracies_once(drawn, title)} if drawn else None


# The report is written again after each round, and some of its charts are as before.
_draw_accuracies_once = functools.lru_cache(maxsize=8)(draw_accuracies)


def _published_curve(out_dir: Path) -> Series | None:
    """Return the published accuracies of a run's profile; None if there are none, or the run has other data."""
    plan, ticket = _plan(out_dir), session.read_ticket(out_dir)
    if plan is None or ticket is None or not ticket.dataset.official:
        return None
    points = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8")).get(plan.profile.name, [])
    within = [
        CurvePoint(labels, mean, mean - spread, mean + spread)
        for labels, mean, spread in points
        if labels <= plan.profile.budget
    ]
    return Series("published mean ± sd", tuple(within), GREY, "s", "--") if within else None


def _rounds_with_network(out_dir: Path) -> list[RoundRecord]:
    """Return the rounds after which a network predicts: for the graph alone the run's own estimate means nothing."""
    rounds, plan = read_rounds(out_dir), _plan(out_dir)
    if plan is None:
        return rounds
    trained = [number for number, each in enumerate(plan.profile.rounds) if each.phases]
    return [each for each in rounds if trained and each.round >= trained[0]]


def _plan(out_dir: Path) -> session.RunConfig | None:
    """Return the configuration of a run; None for records without one."""
    return session.read_config(out_dir) if (out_dir / session.CONFIG_FILE).is_file() else None


def _check_fit(
    out_dir: Path, queries: Sequence[QueryRecord], images: npt.NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Refuse images or class names that are not the run's."""
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"the report needs images [N, H, W] or [N, H, W, 3] of bytes, and these are {images.dtype} {images.shape}."
        )
    for query in queries:
        if query.id >= len(images):
            raise DataError(
                f"{out_dir} asked for image {query.id}, and the data has {len(images)} images; "
                "give the --data that the run was made with."
            )
        if max(query.label, query.predicted or 0) >= len(class_names):
            raise DataError(
                f"{out_dir} has a label {query.label} or guess {query.predicted}, and there are {len(class_names)} "
                "class names; give the --data that the run was made with."
            )


def _percent(share: float, digits: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.{digits}f}%"


def _thumb_size(width: int, height: int) -> dict[str, int]:
    """Return a thumbnail's shown width and height and the whole factor between them and the image's."""
    scale = max(1, round(_SHOWN_HEIGHT / max(height, 1)))
    return {"width": width * scale, "height": height * scale, "scale": scale}
