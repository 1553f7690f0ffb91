"""What an engine reports its metrics to: something that it can make, or nothing."""

from __future__ import annotations

import pytest

from actors.engine_metrics import ray_stat_loggers

COLLECTION = "RAY_enable_metrics_collection"


def test_an_engine_reports_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages that `make setup` installs."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    monkeypatch.delenv(COLLECTION, raising=False)
    assert ray_stat_loggers() == [RayPrometheusStatLogger]


def test_an_engine_is_given_no_logger_that_it_cannot_make(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.metrics import ray_wrappers

    monkeypatch.delenv(COLLECTION, raising=False)
    monkeypatch.setattr(ray_wrappers, "ray_metrics", None)  # as vLLM leaves it without Ray Serve's packages
    assert ray_stat_loggers() == []


def test_nothing_is_counted_where_ray_collects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COLLECTION, "0")
    assert ray_stat_loggers() == []
