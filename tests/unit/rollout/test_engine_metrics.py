"""What an engine reports its metrics to: something that it can make, or nothing."""

from __future__ import annotations

import pytest

from actors.engine_metrics import ray_stat_loggers

COLLECTION = "RAY_enable_metrics_collection"


def test_an_engine_is_given_no_logger_that_it_cannot_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COLLECTION, raising=False)
    try:
        from ray import serve  # noqa: F401
    except ImportError:
        assert ray_stat_loggers() == [], "vLLM refuses to make its metrics without Ray Serve"
    else:
        assert len(ray_stat_loggers()) == 1


def test_nothing_is_counted_where_ray_collects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COLLECTION, "0")
    assert ray_stat_loggers() == []
