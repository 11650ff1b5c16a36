"""Write OUT/report.html: one page with the queries of a run, its learning curve, its accuracy and its cost.

The page needs no script, no network and no other file, and its content policy forbids them. It also works for a run
that has not ended, and leaves out what is not known yet. Its accuracies are measured on labels that the run paid for;
the only number from test labels is the label service's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from trainer.errors import DataError
from trainer.records.files import replace_file
from trainer.records.progress import duration, read_stages
from trainer.records.run_records import QueryRecord, read_queries, read_result
from trainer.run.report_figures import confusion, draw_curve, learning_curve, sprite_sheet

REPORT_FILE = "report.html"
# Height of a thumbnail in CSS pixels, about: it is scaled by a whole factor, so that every pixel stays a square.
_SHOWN_HEIGHT = 56


def write_report(out_dir: Path, images: npt.NDArray[np.uint8], class_names: Sequence[str]) -> Path:
    """Write the report of a run, finished or not, from its records and the pool [N, H, W], uint8; return its path.

    Raises:
        DataError: The records are damaged, or do not fit the images or the class names.
        RecordsUnwritable: The report cannot be written.
    """
    queries = read_queries(out_dir)
    _check_fit(out_dir, queries, images, class_names)
    result = read_result(out_dir)
    stages = result.stage_seconds if result is not None else read_stages(out_dir)
    sheet = sprite_sheet(np.asarray(images[[query.id for query in queries]], dtype=np.uint8)) if queries else None
    environment = Environment(
        loader=PackageLoader("trainer.run"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["duration"] = duration
    labels = [query.label for query in queries]
    page = environment.get_template(REPORT_FILE).render(
        result=result,
        queries=queries,
        rounds=[list(batch) for _, batch in groupby(queries, key=lambda query: query.round)],
        class_names=class_names,
        balance=[(name, labels.count(label)) for label, name in enumerate(class_names)],
        confusion=confusion(queries, len(class_names)).tolist(),
        curve=draw_curve(learning_curve(queries)),
        stages=list(stages.items()),
        total_s=sum(stages.values()),
        sheet=sheet,
        thumb=_thumb_size(images),
        written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    path = out_dir / REPORT_FILE
    replace_file(path, page)
    return path


def _check_fit(
    out_dir: Path, queries: Sequence[QueryRecord], images: npt.NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Refuse images or class names that are not the run's."""
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(f"the report needs images [N, H, W] of bytes, and these are {images.dtype} {images.shape}.")
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


def _thumb_size(images: npt.NDArray[np.uint8]) -> dict[str, int]:
    """Return a thumbnail's shown width and height and the whole factor between them and the image's."""
    _, height, width = images.shape
    scale = max(1, round(_SHOWN_HEIGHT / max(height, 1)))
    return {"width": width * scale, "height": height * scale, "scale": scale}
