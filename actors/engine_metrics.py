"""vLLM's own metrics (requests, KV cache, preemptions) leave through Ray's exporter, beside the run's."""

from __future__ import annotations

import os
from typing import Any


def ray_stat_loggers() -> list[Any]:
    """What an engine reports its metrics to. Empty where Ray collects none, since counting costs time in each step, and
    where Ray Serve's packages (`ray[serve]`) are missing, without which vLLM has no metrics for Ray."""
    if os.environ.get("RAY_enable_metrics_collection") == "0":  # noqa: SIM112 (the case is Ray's)
        return []
    from vllm.v1.metrics import ray_wrappers

    usable = getattr(ray_wrappers, "ray_metrics", None) is not None
    return [ray_wrappers.RayPrometheusStatLogger] if usable else []
