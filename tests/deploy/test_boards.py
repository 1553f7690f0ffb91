"""The Grafana boards and the alert rules: they are what the code writes, and name what a run exports."""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from actors.metrics import FLOW_METRICS, LABELS, PREFIX, step_metrics
from scripts.boards import alerts
from scripts.boards.__main__ import FOLDER, texts
from scripts.boards.queries import EXPORTED, OTHERS, RAY
from tests.deploy.manifests import DEPLOY

BOARDS = {name: json.loads(text) for name, text in texts().items()}
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
# Where the metrics of others are made, by how their names begin.
PACKAGES = Path(sysconfig.get_path("purelib"))
EXPORTERS = {
    "ray_vllm_": "vllm/v1/metrics/loggers.py",
    "ray_node_manager_": "ray/core/src/ray/raylet/raylet",
    "ray_memory_manager_": "ray/core/src/ray/raylet/raylet",
    "ray_object_store_": "ray/core/src/ray/raylet/raylet",
    "ray_node_": "ray/dashboard/modules/reporter/reporter_agent.py",
}
# Labels that Ray gives its own metrics.
OF_RAY = {"Location", "Name", "Type", "alertstate"}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def expressions() -> Iterator[tuple[str, str]]:
    """Of panels and of alerts, with where they are."""
    for where, panel in panels():
        yield from ((where, target["expr"]) for target in panel["targets"])
    for name, rule in ALERTS.items():
        yield name, rule["expr"]


def test_the_files_are_what_the_code_writes() -> None:
    assert {file.name: file.read_text() for file in FOLDER.iterdir()} == texts(), "run: python -m scripts.boards"
    assert alerts.FILE.read_text() == alerts.text(), "run: python -m scripts.boards"
    assert texts() == texts()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_one_by_grafanas_types(name: str) -> None:
    """Read into the classes of Grafana's schema and written again, nothing of a panel is lost."""
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(BOARDS[name])))
    assert again["panels"] == BOARDS[name]["panels"] and again["templating"] == BOARDS[name]["templating"]


def test_every_panel_says_what_it_shows() -> None:
    for where, panel in panels():
        assert panel["title"] and panel["description"], where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert all(target["expr"] and "${datasource}" in json.dumps(target) for target in panel["targets"]), where


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other() -> None:
    for name, board in BOARDS.items():
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(numbers) == len(set(numbers)), name
        taken = [cell for panel in board["panels"] for cell in _cells(panel["gridPos"])]
        assert len(taken) == len(set(taken)), f"{name}: panels overlap"
        assert all(x < 24 for x, _ in taken), name
    assert len({board["uid"] for board in BOARDS.values()}) == 3


def test_every_metric_and_label_of_ours_in_an_expression_is_exported() -> None:
    kinds = {
        f"{RAY}{PREFIX}{one.name}{'_total' if one.kind == 'counter' else ''}": one
        for one in (*FLOW_METRICS, *step_metrics())
    }
    for where, expr in expressions():
        found = set(re.findall(r"\bray_\w+", expr))
        assert found <= kinds.keys() | OTHERS.keys(), (where, found - kinds.keys())
        for name, matchers in re.findall(r"(ray_logratio_\w+)(?:\{([^}]*)\})?", expr):
            labels = set(re.findall(r"(\w+)\s*[=!]~?", matchers))
            assert labels <= {"run", *kinds[name].labels}, (where, name, labels)
        by = {label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr) for label in group.split(",")}
        assert by - {""} <= LABELS.keys() | OF_RAY, (where, by)


def test_metrics_of_others_are_in_the_pinned_packages() -> None:
    """Without a GPU and an engine no scrape has those of GPUs and of vLLM."""
    texts = {start: (PACKAGES / file).read_bytes() for start, file in EXPORTERS.items()}
    for name in OTHERS:
        start = next(start for start in EXPORTERS if name.startswith(start))
        known = name.removeprefix(RAY).removesuffix("_total").replace("vllm_", "vllm:")
        assert known.encode() in texts[start], f"{name}: not in {EXPORTERS[start]}"
    assert b'"GpuIndex"' in texts["ray_node_"]


def test_every_exported_metric_is_on_a_board() -> None:
    drawn = {name for where, expr in expressions() if ".json" in where for name in re.findall(r"\bray_\w+", expr)}
    missing = {name for name in EXPORTED if not {f"{RAY}{PREFIX}{name}", f"{RAY}{PREFIX}{name}_total"} & drawn}
    assert not missing


def test_an_expression_of_a_board_is_of_the_run_that_is_chosen() -> None:
    for where, expr in expressions():
        if ".json" in where:
            assert len(re.findall(r"ray_logratio_\w+", expr)) == expr.count('{run="$run"'), where


def test_on_another_scale_only_the_times_of_rules_differ() -> None:
    shrunk = alerts.text(alerts.Times(scale=1 / 60, window=15.0))
    for written, there in {
        "(ray_logratio_step_median_seconds), 60)": "(ray_logratio_step_median_seconds), 1)",
        "[30m] offset 2h)": "[30000ms] offset 2m)",
        "(ray_logratio_step_loss[1m])": "(ray_logratio_step_loss[15000ms])",  # the shortest window
        "for: 10m": "for: 10000ms",
        "> 0.05\n": "> 0.05\n",
    }.items():
        assert written in alerts.text() and there in shrunk
    assert re.findall(r"alert: (\w+)", shrunk) == list(ALERTS)


def test_every_alert_has_a_severity_words_and_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
    fires = {
        re.findall(r'alertname="(\w+)"', sample["labels"])[0]
        for test in tests
        for asked in test["promql_expr_test"]
        for sample in asked["exp_samples"]
    }
    assert fires == ALERTS.keys()
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], name
        page = (DEPLOY.parent / "docs" / "dashboards.md").read_text()
        assert f"`{name}`" in page, f"docs/dashboards.md says nothing of {name}"


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    return ((at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"]))
