"""The alert rules, as deploy/prometheus/rules.yml has them.

The hours of a real run are `Times()`. A test shrinks them, and so sees the same rules over a run of a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from scripts.boards.queries import STEP_PREFIX, full

FILE = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml"
MINUTE, HOUR = 60.0, 3600.0
HEADER = """\
# Written by `python -m scripts.boards`. docs/dashboards.md says what to do about each alert; rules_test.yml has for
# each a series in which it fires, and one run in which none does. Those without a label `run` are of the whole cluster.
"""


@dataclass(frozen=True)
class Times:
    """How long a rule looks back and waits. `scale` multiplies every time; `window` is the shortest window, in seconds:
    it must hold several scrapes."""

    scale: float = 1.0
    window: float = 0.0

    def over(self, seconds: float) -> str:
        """A window."""
        return _duration(max(seconds * self.scale, self.window))

    def lasting(self, seconds: float) -> str:
        """A wait, or an offset."""
        return _duration(seconds * self.scale)

    def old(self, seconds: float) -> str:
        """An age, as a number of seconds."""
        return f"{seconds * self.scale:g}"


@dataclass(frozen=True)
class Alert:
    """`lasting`: how long the expression must hold; empty: it fires at once. `remark`: why the expression is so."""

    name: str
    severity: str
    expr: str
    summary: str
    description: str
    lasting: str = ""
    remark: str = ""


def text(times: Times | None = None) -> str:
    """The file of rules."""
    times = times or Times()
    progress = [*_of_steps(times), _run_gone(times), _starving(times)]
    ours = [*progress, *_of_agreement(times), *_of_faults(times), _checkpoint_too_old(times)]
    return HEADER + "groups:\n" + _group("logratio", ours) + _group("ray", [_spilling(times)])


def _of_steps(times: Times) -> Iterator[Alert]:
    age, median = full("step_age_seconds"), full("step_median_seconds")
    yield Alert(
        "StepOverdue",
        "critical",
        f"max by (run) ({age})\n  > clamp_min(5 * max by (run) ({median}), {times.old(MINUTE)})",
        "{{ $labels.run }}: no step for {{ $value | humanizeDuration }}, over 5 times the median",
        "The board Flow shows which role is busy or gone; `logratio status` names members that start again and again.",
        times.lasting(MINUTE),
    )
    yield Alert(
        "NoFirstStep",
        "warning",
        f"max by (run) ({age}) > {times.old(HOUR)}\n  unless on (run) {median}",
        "{{ $labels.run }}: no step yet after {{ $value | humanizeDuration }}",
        "Members that do not start, or a first batch that never fills. logs/ in the run directory says which.",
        times.lasting(MINUTE),
    )


def _run_gone(times: Times) -> Alert:
    median, planned, lately = full("step_median_seconds"), full("steps_planned"), times.over(10 * MINUTE)
    return Alert(
        "RunGone",
        "critical",
        f"(\n  max by (run) (max_over_time({_step('step')}[{lately}]))\n"
        f"    < max by (run) (last_over_time({planned}[{lately}])) - 1\n)\n"
        f"  and on (run) max_over_time({median}[{lately}]) > {times.old(10)}\n  unless on (run) {planned}",
        "{{ $labels.run }}: its driver is gone after step {{ $value }}, before the last step",
        "Stopped, killed, or its node was lost. Submit the same job again, or `logratio resume`.",
        times.lasting(MINUTE),
        "Steps of seconds may end between two scrapes.",
    )


def _starving(times: Times) -> Alert:
    waits = f'max by (run) ({full("time_share")}{{role="learner", phase="wait"}})'
    return Alert(
        "LearnerStarving",
        "warning",
        f"{waits} > 0.5",
        "{{ $labels.run }}: the learner waits for samples {{ $value | humanizePercentage }} of the time",
        "The board Flow names the bottleneck, and what one more member of it would bring.",
        times.lasting(10 * MINUTE),
    )


def _of_agreement(times: Times) -> Iterator[Alert]:
    """Rollouts that drift from what they were. Medians: one odd step is no alert."""
    gap = _median(times, "logprob_gap_mean", 10 * MINUTE)
    yield Alert(
        "LogprobGapHigh",
        "warning",
        f"{gap} > 0.05",
        "{{ $labels.run }}: rollout and learner differ by {{ $value | humanize }} nats a token on the same weights",
        "Above 0.05 nats the samples are off-policy whatever the staleness. Compare dtypes, kernels and weight loads.",
        times.lasting(5 * MINUTE),
    )
    yield Alert(
        "LogprobGapDoubled",
        "warning",
        _doubled(times, "logprob_gap_mean", 0.01),
        "{{ $labels.run }}: the gap between rollout and learner has doubled in two hours, to {{ $value | humanize }} "
        "nats",
        "A gap that grows with the steps is an engine that does not serve the weights it says. See docs/weights.md.",
        times.lasting(5 * MINUTE),
    )
    yield Alert(
        "TruncationDoubled",
        "warning",
        _doubled(times, "truncated_fraction", 0.1),
        "{{ $labels.run }}: the share of cut responses has doubled in two hours, to {{ $value | humanizePercentage }}",
        "Responses grow without end. Look at samples/ for repetition, and at end tokens that student and teacher do "
        "not share.",
        times.lasting(5 * MINUTE),
    )


def _of_faults(times: Times) -> Iterator[Alert]:
    quarter = times.over(15 * MINUTE)
    yield Alert(
        "LossNotFinite",
        "critical",
        f"(max by (run) ({_step('step')}) unless on (run) max_over_time({_step('loss')}[{times.over(MINUTE)}]))\n"
        f"  or sum by (run) (increase({full('updates_skipped')}[{quarter}])) > 0",
        "{{ $labels.run }}: loss or gradient was not finite; updates are skipped",
        "Look at these steps on the board Run, and at the learning rate.",
        remark="What is not finite has no sample: the exporter leaves it out. One step's number may be gone unscraped.",
    )
    yield Alert(
        "CanaryFailed",
        "critical",
        f"sum by (run, teacher) (increase({full('canary_failures')}[{quarter}])) > 0",
        "{{ $labels.run }}: a scorer of {{ $labels.teacher }} scored the canary prompts wrong",
        "It was replaced. If it comes again, suspect the node's GPU, or a model that differs between nodes.",
    )
    yield Alert(
        "RestartStorm",
        "critical",
        f"sum by (run) (increase({full('restarts')}[{times.over(10 * MINUTE)}])) > 5",
        "{{ $labels.run }}: {{ $value | humanize }} members were replaced in ten minutes",
        "The board Health says of which role; logs/ in the run directory says why.",
    )


def _checkpoint_too_old(times: Times) -> Alert:
    age, median = full("checkpoint_age_seconds"), full("step_median_seconds")
    return Alert(
        "CheckpointTooOld",
        "warning",
        f"max by (run) ({age})\n  > clamp_min(20 * max by (run) ({median}), {times.old(HOUR)})",
        "{{ $labels.run }}: the newest checkpoint is {{ $value | humanizeDuration }} old",
        "So much work a crash would cost. Lower checkpoint.every, or look for a save that does not end.",
        times.lasting(5 * MINUTE),
    )


def _spilling(times: Times) -> Alert:
    return Alert(
        "Spilling",
        "warning",
        'sum(ray_object_store_memory{Location="SPILLED"}) > 0',
        "Ray has {{ $value | humanize1024 }}B of objects on disk",
        "Payloads wait longer than memory lasts. Raise the object store, or lower max_staleness and the number of "
        "rollouts.",
        times.lasting(5 * MINUTE),
    )


def _step(name: str) -> str:
    return full(STEP_PREFIX + name)


def _median(times: Times, name: str, seconds: float, ago: str = "") -> str:
    """The median of a number of the steps."""
    return f"max by (run) (quantile_over_time(0.5, {_step(name)}[{times.over(seconds)}]{ago}))"


def _doubled(times: Times, name: str, least: float) -> str:
    """A number of the steps whose median is twice that of two hours ago, and above `least`."""
    now = _median(times, name, 30 * MINUTE)
    then = _median(times, name, 30 * MINUTE, f" offset {times.lasting(2 * HOUR)}")
    return f"(\n  {now}\n    > 2 * {then}\n) > {least:g}"


def _duration(seconds: float) -> str:
    """In PromQL's notation: hours, minutes, or milliseconds."""
    for unit, length in (("h", HOUR), ("m", MINUTE)):
        if seconds >= length and seconds % length == 0.0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds * 1000.0:.0f}ms"


def _group(name: str, alerts: list[Alert]) -> str:
    return f"  - name: {name}\n    rules:\n" + "".join(indent(_written(alert), " " * 6) for alert in alerts)


def _written(alert: Alert) -> str:
    """A rule in YAML; a string of JSON is one of YAML."""
    lines = [f"# {alert.remark}"] if alert.remark else []
    lines += [f"- alert: {alert.name}", "  expr: |", indent(alert.expr, " " * 4)]
    lines += [f"  for: {alert.lasting}"] if alert.lasting else []
    lines += [f"  labels: {{severity: {alert.severity}}}", "  annotations:"]
    lines += [f"    summary: {json.dumps(alert.summary)}", f"    description: {json.dumps(alert.description)}"]
    return "\n".join(lines) + "\n"
