"""From a status to the values that Prometheus gets. Pure.

`actors/metrics.py` has the names, kinds, labels and meanings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.metrics import MEMBER_STATES, NOT_EXPORTED, STEP_PREFIX

Value = tuple[str, dict[str, str], float]  # name, labels, value: of a counter the total so far


def of_step(line: Mapping[str, Any]) -> Iterator[Value]:
    """A step's numbers. What the step could not know is NaN."""
    for name, value in line.items():
        if name not in NOT_EXPORTED:
            yield f"{STEP_PREFIX}{name}", {}, float("nan") if value is None else float(value)
    for component, value in (line.get("reward_component") or {}).items():
        yield "reward_component", {"component": component}, float("nan") if value is None else value


def of_status(status: Mapping[str, Any]) -> Iterator[Value]:
    """All other metrics."""
    yield from _of_members(status["members"], [role["role"] for role in status["roles"]])
    for role in status["roles"]:
        for name in ("restarts", "retries"):
            yield name, {"role": role["role"]}, role[name]
        for phase, share in _shares(role):
            yield "time_share", {"role": role["role"], "phase": phase}, share
    for queue in status["queues"]:
        yield "queue_depth", {"edge": queue["edge"]}, queue["depth"]
        yield "queue_oldest_seconds", {"edge": queue["edge"]}, queue["oldest_seconds"]
    yield from _of_bottleneck(status)
    yield from _of_totals(status["totals"])
    yield "steps_planned", {}, status["step"] if status["ended_early"] else status["steps"]


def ages(status: Mapping[str, Any], began: float, stepped: float | None) -> Iterator[Value]:
    """Seconds since the newest checkpoint and the last step; since the run `began` without one. Unix seconds."""
    yield "checkpoint_age_seconds", {}, status["time"] - (status["saved_at"] or began)
    yield "step_age_seconds", {}, status["time"] - (stepped or began)


def _of_members(members: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> Iterator[Value]:
    states: Counter[tuple[str, str]] = Counter()
    for member in members:
        role = member["name"].rpartition("-")[0]
        states[role, member["state"]] += 1
        labels = {"role": role, "member": str(member["place"])}
        yield "member_load", labels, member["load"]
        if member["version"] is not None:
            yield "member_version", labels, member["version"]
    for role in roles:
        for state in MEMBER_STATES:
            yield "members", {"role": role, "phase": state}, states[role, state]


def _shares(role: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Busy, waiting for work, and neither: a learner that publishes, a member that starts."""
    if role["busy"] is not None:
        yield "busy", role["busy"]
        yield "wait", role["waiting"]
        yield "idle", max(0.0, 1.0 - role["busy"] - role["waiting"])


def _of_bottleneck(status: Mapping[str, Any]) -> Iterator[Value]:
    if found := status["bottleneck"]:
        for role in status["roles"]:
            yield "bottleneck", {"role": role["role"]}, float(role["role"] == found["role"])
        for name, gain in found["one_more"].items():
            yield "one_more_gain", {"role": name}, gain
        yield "samples_per_second", {}, found["samples_per_second"]


def _of_totals(totals: Mapping[str, Any]) -> Iterator[Value]:
    for phase, count in totals["tokens"].items():
        yield "tokens", {"phase": phase}, count
    for reason, count in totals["samples_lost"].items():
        yield "samples_lost", {"reason": reason}, count
    for phase, seconds in totals["weight_sync_seconds"].items():
        yield "weight_sync_seconds", {"phase": phase}, seconds
    for teacher, count in totals["canary_failures"].items():
        yield "canary_failures", {"teacher": teacher}, count
    for role, seconds in totals["gpu_seconds"].items():
        yield "gpu_seconds", {"role": role}, seconds
    for name in ("score_bytes", "suspicious_tokens", "updates_skipped", "learner_rebuilds"):
        yield name, {}, totals[name]
