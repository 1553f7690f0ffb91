"""A real Prometheus over a Ray cluster with a small object store: Spilling fires in a run whose payloads wait longer
than memory lasts, and not in the same run that takes them at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.boards import alerts
from tests.system.head import started_head, wait_for
from tests.system.prometheus import prometheus
from tests.system.test_jobs import Jobs, small_recipe

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]
STORE = 120_000_000  # bytes; the scores of a step are a quarter of it
WAITING = ("max_staleness=16", "run.name=waits")  # steps whose scores may wait
TIMES = alerts.Times(scale=1 / 60, window=15.0)
INTERVAL = "5000"  # ms between two exports of a process; a run tells its numbers each 5 s
SPILLED = 'sum(ray_object_store_memory{Location="SPILLED"})'
OF_THE_CLUSTER = ""  # the run of an alert that has none


def test_spilling_fires_where_payloads_wait(
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    recipe = small_recipe(models, prompts, tmp_path)
    recipe["run"]["steps"] = 10_000
    recipe["scorer"]["teacher"]["engine"] = "tests.system.misbehaving:FatScorer"
    recipe["learner"]["engine"] = "tests.system.misbehaving:SlowLearner"
    (rules := tmp_path / "rules.yml").write_text(alerts.text(TIMES))
    with started_head(STORE, RAY_metrics_report_interval_ms=INTERVAL) as head, prometheus(head.folder, rules) as found:
        run, began = Jobs(head, recipe, tmp_path), time.time()
        clean = run.submit(seconds=0.0)
        run.until(clean, lambda: run.steps() >= 20)
        assert found.ask(SPILLED) == {"": 0.0}
        assert OF_THE_CLUSTER not in found.raised(began, time.time())
        head.stop(clean)
        head.ended(clean)

        submitted = time.time()
        waits = run.submit(seconds=0.0, overrides=WAITING)
        wait_for(lambda: "Spilling" in found.firing(), "Spilling to fire", 150.0)
        record_property("seconds from the submission to the alert", round(time.time() - submitted))
        head.stop(waits)
        head.ended(waits)
