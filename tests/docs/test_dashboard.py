"""The Grafana dashboard asks for what the service exports, and is of the form that Grafana imports."""

import json
import re

import pytest

from label_service.metrics import Metrics
from tests.docs import ROOT

BOARD = json.loads((ROOT / "docs/operating/grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b(labelmeter_\w+)(?:\{(.*?)\})?")
BY = re.compile(r"\bby \((.*?)\)")


def exported():
    """Return the labels of each sample that the service exports, by the sample's name."""
    metrics = Metrics()
    metrics.observe_request("/label/{label_id}", "GET", 200, 0.001)
    metrics.observe_commit(1, 0.001, written=True)
    metrics.problems.labels("unknown-id").inc()
    return {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}


def asked_for(expression):
    """Return the labels that an expression selects or groups by, for each metric in it."""
    grouped = {label.strip() for labels in BY.findall(expression) for label in labels.split(",")}
    selected = {name: set(re.findall(r"(\w+)=", labels)) for name, labels in METRIC.findall(expression)}
    return {name: labels | grouped for name, labels in selected.items()}


def missing(expression):
    """Return the metrics and labels of an expression that the service does not export; Prometheus adds `job`."""
    known = exported()
    faults = []
    for name, labels in asked_for(expression).items():
        if name not in known:
            faults.append(name)
        else:
            faults += sorted(labels - known[name] - {"job"})
    return faults


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_names_metrics_and_labels_that_the_service_exports(expression):
    """A panel without data would look like a service without load."""
    assert asked_for(expression)
    assert missing(expression) == []
    assert expression.count("(") == expression.count(")")
    if "histogram_quantile" in expression:
        assert "by (le" in expression


@pytest.mark.parametrize(
    ("expression", "faults"),
    [
        ("rate(labelmeter_request_total[5m])", ["labelmeter_request_total"]),
        ('sum by (path) (labelmeter_requests_total{verb="GET"})', ["path", "verb"]),
    ],
)
def test_a_wrong_name_would_be_noticed(expression, faults):
    """The twin."""
    assert missing(expression) == faults


def test_every_metric_is_on_the_dashboard():
    """Whatever the service counts, an operator sees."""
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for text in EXPRESSIONS for name in asked_for(text)}
    assert shown == {family.name for family in Metrics().registry.collect()}


def test_dashboard_is_what_grafana_imports():
    """Identity, schema version, unique panels that do not overlap on 24 columns, one data source that is chosen."""
    assert BOARD["uid"] == "labelmeter" and BOARD["title"] and BOARD["schemaVersion"] >= 36
    assert "id" not in BOARD  # a number of one server's database: an import with it overwrites another dashboard
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert {name for text in EXPRESSIONS for name in re.findall(r"\$(\w+)", text)} <= {"job", "__rate_interval"}
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken = set()
    for panel in panels:
        assert panel["type"] in {"stat", "timeseries"} and panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
