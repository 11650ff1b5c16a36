"""The report is one file, true to the records, and there for unfinished runs too."""

from __future__ import annotations

import base64
import io
import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from trainer.errors import DataError
from trainer.oracle.answers import DatasetInfo
from trainer.profiles import profile_named
from trainer.records.files import replace_file
from trainer.records.run_records import (
    EvaluationResult,
    MetricRecord,
    PointResult,
    QueryRecord,
    RoundRecord,
    RunResult,
    append_metric,
    append_queries,
    append_round,
    write_result,
)
from trainer.run.pool_map import PoolMap
from trainer.run.report import PUBLISHED_FILE, write_report
from trainer.run.report_charts import asking_curve, draw_accuracies, training_charts
from trainer.run.report_figures import confusion, draw_map
from trainer.run.session import RunConfig, RunTicket, begin_or_resume

CLASSES = ("T-shirt/top", "Trouser", "Pullover")


class Page(HTMLParser):
    """Collects the tags and the text of a page, and requires that tags match."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def pool(n: int = 200, height: int = 28, width: int = 28) -> npt.NDArray[np.uint8]:
    """Make random images."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width), dtype=np.uint8)


def queries(n: int = 60, cold: int = 20, per_round: int = 20) -> list[QueryRecord]:
    """Make queries: a cold start, then rounds in which every third guess is wrong."""
    begin = datetime(2026, 1, 1, 12, tzinfo=UTC)
    return [
        QueryRecord(
            order=order,
            round=0 if order < cold else 1 + (order - cold) // per_round,
            id=(order * 7) % 200,
            strategy="medoids" if order < cold else "margin",
            reason=f"cold start: medoid of cluster {order}" if order < cold else "margin 0.03",
            predicted=None if order < cold else (order % 3 if order % 9 else (order + 1) % 3),
            confidence=None if order < cold else 0.5,
            label=order % 3,
            charged=True,
            asked_at=begin + timedelta(seconds=order),
        )
        for order in range(n)
    ]


def result(in_log: int = 60) -> RunResult:
    """Make the result of a run of 60 labels."""
    return RunResult(
        run_id="run-abc",
        seed=3,
        profile="cpu",
        budget=60,
        queries_counted_by_trainer=60,
        queries_in_log=in_log,
        distinct_labels_in_log=in_log,
        distinct_labels_revealed_to_anybody=in_log + 1,
        evaluation=EvaluationResult.from_counts(9012, 10000),
        stage_seconds={"pretrain": 400.0, "active": 305.0},
        dataset={"name": "Fashion-MNIST", "official": True},
        versions={"torch": "2.13"},
    )


def dataset_info() -> DatasetInfo:
    """Make what the service says of the official data."""
    return DatasetInfo(
        name="Fashion-MNIST",
        official=True,
        pool_size=200,
        test_size=100,
        num_classes=3,
        class_names=CLASSES,
        fingerprint=None,
        log_id="log",
    )


def finished_run(out: Path, in_log: int = 60) -> None:
    """Write the records of a finished run."""
    append_queries(out, queries())
    write_result(out, result(in_log))


def read(path: Path) -> Page:
    """Parse a report; every tag must be closed."""
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_a_finished_run_is_told_in_full(tmp_path: Path) -> None:
    """Labels, accuracy with its interval, time, agreement and the log's counts are on the page."""
    finished_run(tmp_path)
    path = write_report(tmp_path, pool(), CLASSES)
    assert path == tmp_path / "report.html"
    text = read(path).text
    for words in ("90.12%", "89.52% to 90.69%", "9012 of 10000", "11 min 45 s", "agrees", "run-abc", "official split"):
        assert words in text
    assert re.search(r"Distinct labels the log revealed to anybody\s*61", text)
    assert "has not ended" not in text


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    """No script, no link, no address, no file: and the page's own policy forbids them."""
    finished_run(tmp_path)
    path = write_report(tmp_path, pool(), CLASSES)
    page, source = read(path), path.read_text()
    assert not {"script", "link", "img", "iframe", "object", "a", "base"} & {tag for tag, _ in page.tags}
    assert "://" not in source and "@import" not in source
    targets = re.findall(r"url\(\"?([^\")]*)", source) + [attrs.get("href") or "#" for _, attrs in page.tags]
    assert [target for target in targets if not target.startswith(("data:", "#"))] == []
    assert not any(name.startswith("on") or name == "src" for _, attrs in page.tags for name in attrs)
    assert any(attrs.get("http-equiv") == "Content-Security-Policy" for _, attrs in page.tags)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 12), (100, 64)])
def test_thumbnails_are_the_queried_images_pixel_by_pixel_in_order(tmp_path: Path, height: int, width: int) -> None:
    """Cutting the page's own sprite sheet at the page's own offsets gives back each queried image, of any size."""
    append_queries(tmp_path, queries(70))
    images = pool(height=height, width=width)
    source = write_report(tmp_path, images, CLASSES).read_text()
    encoded = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", source)
    assert encoded is not None
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.group(1)))))
    shown = re.search(r"background-size: (\d+)px (\d+)px", source)
    assert shown is not None
    scale = int(shown.group(1)) // sheet.shape[1]
    assert (int(shown.group(1)), int(shown.group(2))) == (sheet.shape[1] * scale, sheet.shape[0] * scale)
    offsets = re.findall(r"background-position: -(\d+)px -(\d+)px", source)
    assert len(offsets) == 70
    for query, (left, top) in zip(queries(70), offsets, strict=True):
        x, y = int(left) // scale, int(top) // scale
        np.testing.assert_array_equal(sheet[y : y + height, x : x + width], images[query.id])


def test_each_image_tells_its_class_guess_and_reason(tmp_path: Path) -> None:
    """An image of the cold start has no guess; later images show the guess and its confidence."""
    append_queries(tmp_path, queries())
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "query 1, image 0: T-shirt/top; no guess before asking; cold start: medoid of cluster 0" in text
    assert "query 30, image 3: Pullover; guess Pullover (50% sure); margin 0.03" in text
    assert "query 28, image 189: T-shirt/top; guess Trouser (50% sure)" in text


@pytest.mark.parametrize("cold", [0, 5, 60])
def test_an_unfinished_run_has_a_report(tmp_path: Path, cold: int) -> None:
    """Nothing asked yet, only the cold start, or more: the page shows that and leaves out what is unknown."""
    if cold:
        append_queries(tmp_path, queries(cold))
        replace_file(tmp_path / "stages.json", '{"pretrain": 61.0}')
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "has not ended" in text
    assert ("No label has been asked yet" in text) == (cold == 0)
    assert ("No guess has been checked yet" in text) == (cold < 60)
    assert ("1 min 1 s" in text) == (cold > 0)


def test_a_model_no_better_than_a_constant_guess_is_shouted(tmp_path: Path) -> None:
    """With 95% of the pool in one class, an accuracy of 90% is worth nothing."""
    finished_run(tmp_path)
    ended = result()
    point = PointResult(
        labels=60,
        evaluation=ended.evaluation,
        stage_seconds={},
        largest_class="Trouser",
        constant_guess=0.95,
        largest_among_labels=0.6,
        balanced_estimate=0.5,
    )
    for worse in (True, False):
        share = 0.95 if worse else 0.4
        points = (point.model_copy(update={"constant_guess": share}),)
        write_result(tmp_path, ended.model_copy(update={"points": points, "class_prior": "estimated"}))
        text = read(write_report(tmp_path, pool(), CLASSES)).text
        assert ("Always guessing Trouser is as good: do not use this model" in text) == worse
        assert "Balanced accuracy, estimated" in text and "60.0% of the labels paid for" in text


def test_counts_that_disagree_are_shouted(tmp_path: Path) -> None:
    """A result whose counts differ from the log is marked as unusable."""
    finished_run(tmp_path, in_log=59)
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "disagrees" in text and "trainer 60, log 59: do not use this result" in text


def test_names_and_reasons_cannot_inject_markup(tmp_path: Path) -> None:
    """Whatever a class or a reason is called, it is text."""
    evil = "<script>alert(1)</script>"
    append_queries(tmp_path, [queries(1)[0].model_copy(update={"reason": evil})])
    source = write_report(tmp_path, pool(), (evil, '"><b onclick=x>', "c")).read_text()
    assert "<script" not in source and "<b onclick" not in source


@pytest.mark.parametrize(
    ("images", "names", "message"),
    [
        (pool(100), CLASSES, "asked for image 105, and the data has 100 images"),
        (pool(), CLASSES[:2], "2 class names"),
        (pool().astype(np.float32), CLASSES, "images .N, H, W. or"),
        (pool()[0], CLASSES, "images .N, H, W. or"),
    ],
    ids=["too few images", "too few names", "floats", "one image"],
)
def test_data_of_another_run_is_refused(
    tmp_path: Path, images: npt.NDArray[np.uint8], names: tuple[str, ...], message: str
) -> None:
    """A report with the wrong pictures would be worse than none."""
    append_queries(tmp_path, queries())
    with pytest.raises(DataError, match=message):
        write_report(tmp_path, images, names)
    assert not (tmp_path / "report.html").exists()


def test_the_curve_counts_guesses_only() -> None:
    """The cold start moves the curve to the right and not up or down."""
    # Orders 27 and 36 (round 1) and 45 (round 2 of ten) are guessed wrong.
    for series in asking_curve(queries(50)):
        assert [(point.labels, point.accuracy) for point in series.points] == [(40, 0.9), (50, 0.9)]


def test_the_curve_so_far_weighs_rounds_by_their_guesses() -> None:
    """Ten of ten, then ten of thirty, make twenty of forty."""
    rows = [
        query.model_copy(update={"round": int(query.order >= 10), "predicted": 0, "label": int(query.order >= 20)})
        for query in queries(40, cold=0)
    ]
    by_round, so_far = asking_curve(rows)
    assert [round(point.accuracy, 3) for point in by_round.points] == [1.0, 0.333]
    assert [point.accuracy for point in so_far.points] == [1.0, 0.5]


def test_the_drawing_is_the_same_each_time_and_in_the_colours_of_the_page() -> None:
    """One curve, one text: with axes that can be read, a tooltip at each point, and no colour of its own."""
    drawn = draw_accuracies(asking_curve(queries()), "Right before asking")
    assert drawn is not None and drawn == draw_accuracies(asking_curve(queries()), "Right before asking")
    page = Page(drawn)
    assert "labels paid for" in page.text and "100%" in page.text
    assert [text.strip().partition(" (")[0] for text in page.text.splitlines() if "% at" in text or " labels" in text][
        -4:
    ] == [*("in the round: 90.0%", "in the round: 90.0%"), *("so far: 90.0%", "so far: 90.0%")]
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) <= {
        *("none", "var(--orange)", "var(--blue)", "var(--soft)", "var(--line)")
    }
    assert draw_accuracies(asking_curve([]), "x") is None


def test_the_page_leads_with_the_estimate_and_compares_it_with_the_published_runs(tmp_path: Path) -> None:
    """Own estimates by number of labels, test accuracy at the end, and the published curve of the same profile."""
    finished_run(tmp_path)
    first = next(number for number, each in enumerate(profile_named("cpu").rounds) if each.phases)
    for number, accuracy in enumerate((0.81, 0.87, 0.9)):
        append_round(
            tmp_path,
            RoundRecord(
                round=first + number, labels=20 + 20 * number, estimated_accuracy=accuracy, estimate_error=0.012
            ),
        )
    ended = result()
    point = PointResult(labels=60, evaluation=ended.evaluation, stage_seconds={})
    write_result(tmp_path, ended.model_copy(update={"points": (point,)}))
    begin_or_resume(
        tmp_path,
        RunConfig(profile=profile_named("cpu"), seed=1, images="f" * 64),
        resume=False,
    )
    ticket = RunTicket(run_id="run-abc", token="t", dataset=dataset_info())
    replace_file(tmp_path / "run.json", ticket.model_dump_json() + "\n")
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert text.index("Accuracy by number of labels") < text.index("Queried images") < text.index("Right before asking")
    assert "own estimate2081.00%78.65%83.35%" in re.sub(r"\s+", "", text).replace("ownestimate", "own estimate")
    assert "test accuracy" in text and "90.12%" in text
    published = json.loads(PUBLISHED_FILE.read_text())["cpu"]
    within = [point for point in published if point[0] <= profile_named("cpu").budget]
    assert len(within) >= 3 and text.count("published mean ± sd") >= 1 + len(within)


def test_training_is_charted_by_epoch_and_a_repeated_epoch_counts_once() -> None:
    """A resumed run repeats an epoch; the graph between two phases stands where it was made."""

    def line(stage: str, step: int, **values: float) -> MetricRecord:
        return MetricRecord(stage=stage, step=step, epoch=step + 1, wall_s=1.0, values=values)

    records = [
        line("pretrain", 0, loss=6.0),
        line("round-0-0", 0, loss=2.0, confident=0.1),
        line("round-0-0", 1, loss=1.5, confident=0.2),
        line("graph", 0, neighbour_purity=0.7),
        line("round-1-0", 0, loss=9.0, confident=0.3),
        line("round-1-0", 0, loss=1.0, confident=0.4),
    ]
    charts = {title: svg for title, _, svg in training_charts(records)}
    assert list(charts) == ["HCL loss", "Fine-tuning loss", "Confident share", "Neighbour purity"]
    assert re.findall(r"([\d.]+) at epoch (\d)", charts["Fine-tuning loss"]) == [("2", "1"), ("1.5", "2"), ("1", "3")]
    assert re.findall(r"([\d.]+) at epoch (\d)", charts["Neighbour purity"]) == [("0.7", "2")]
    ids = [found for svg in charts.values() for found in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))


def test_a_run_without_a_network_shows_no_estimate_and_counts_rounds(tmp_path: Path) -> None:
    """For the graph alone the estimate means nothing: the page does not lead with it."""
    finished_run(tmp_path)
    begin_or_resume(tmp_path, RunConfig(profile=profile_named("graph"), seed=1, images="f" * 64), resume=False)
    append_round(tmp_path, RoundRecord(round=1, labels=40, estimated_accuracy=0.612, estimate_error=0.012))
    for number, purity in enumerate((0.7, 0.8)):
        values = {"neighbour_purity": purity}
        append_metric(tmp_path, MetricRecord(stage="graph", step=number, epoch=number, wall_s=1.0, values=values))
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "61.2%" not in text and "the graph alone has none" in text
    assert "0.7 at round 1" in text and "0.8 at round 2" in text


def test_the_map_shows_every_queried_image_where_it_lies() -> None:
    """Points far apart stay apart, and an image that is not on the map has no place."""
    places = np.array([[0, 0], [1, 1], [0, 1]], dtype=np.float32)
    drawn = draw_map(PoolMap(np.array([0, 7, 14]), places, np.array([0, 1, 2])), queries(3), 3)
    assert drawn.queried == ((16.0, 16.0), (704.0, 704.0), (16.0, 704.0))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.data_uri.partition(",")[2]))))
    assert picture[16, 16, 3] and picture[704, 704, 3] and not picture[360, 360, 3]
    assert draw_map(PoolMap(np.array([5]), places[:1], np.array([0])), queries(1), 3).queried == (None,)


def test_colour_images_are_shown_in_colour_and_large_ones_smaller(tmp_path: Path) -> None:
    """Pictures of 224 pixels would make a page of many megabytes."""
    append_queries(tmp_path, queries(10))
    images = np.random.default_rng(0).integers(0, 256, (200, 224, 224, 3), dtype=np.uint8)
    source = write_report(tmp_path, images, CLASSES).read_text()
    encoded = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", source)
    assert encoded is not None
    sheet = Image.open(io.BytesIO(base64.b64decode(encoded.group(1))))
    assert sheet.mode == "RGB" and sheet.size == (10 * 112, 112)


def test_the_matrix_leaves_out_queries_without_a_guess(tmp_path: Path) -> None:
    """Rows are labels, columns guesses, and the cold start is counted apart."""
    assert confusion(queries(50), 3).tolist() == [[7, 3, 0], [0, 10, 0], [0, 0, 10]]
    append_queries(tmp_path, queries(50))
    text = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "30 labels paid for, 27 guessed right (90.0%)" in text
    assert "20 queries were asked without a guess" in text


def test_an_estimate_on_other_data_is_called_not_calibrated(tmp_path: Path) -> None:
    """In its card, in the chart and in a sentence; and it has no interval, which would promise what nobody measured."""
    finished_run(tmp_path)
    append_round(tmp_path, RoundRecord(round=11, labels=60, estimated_accuracy=0.44, estimate_error=0.02))
    begin_or_resume(tmp_path, RunConfig(profile=profile_named("cpu"), seed=1, images="f" * 64), resume=False)
    pages = {}
    for name in ("Fashion-MNIST", "digits"):
        dataset = dataset_info().model_copy(update={"name": name})
        ticket = RunTicket(run_id="run-abc", token="t", dataset=dataset)
        replace_file(tmp_path / "run.json", ticket.model_dump_json() + "\n")
        pages[name] = read(write_report(tmp_path, pool(), CLASSES)).text
    assert "not calibrated" not in pages["Fashion-MNIST"] and "40.08%" in pages["Fashion-MNIST"]
    assert "own estimate, not calibrated" in pages["digits"] and "40.08%" not in pages["digits"]
    assert "44.0%not calibrated for this data" in re.sub(r"%\s+", "%", pages["digits"])
