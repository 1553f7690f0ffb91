"""What `logratio status` shows: members, how busy each role is, the bottleneck, and what one more member would bring.

The driver describes its run in plain values; the command draws them. Unknown values are shown as unknown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from actors.metrics import LOST, TOKEN_PHASES

if TYPE_CHECKING:
    from orchestrator.pools.member import PoolMember
    from orchestrator.run import Run
    from orchestrator.scaling.elastic import Elastic
    from orchestrator.scaling.utilisation import Use

Status = Mapping[str, Any]


def status_of(run: Run, elastic: Elastic, phase: str, exit_code: int | None = None) -> dict[str, Any]:
    """The run's status in plain values, as status.json holds them too. docs/formats.md has the keys."""
    use, verdict = elastic.last_minute(), elastic.diagnosis()
    return {
        "time": time.time(),
        "run": run.recipe.run.name,
        "stage": run.recipe.run.stage,
        "exit": exit_code,
        "step": run.progress.step,
        "steps": run.recipe.run.steps,
        "ended_early": run.progress.ended_because,
        "version": run.progress.version,
        "phase": phase,
        "members": _members(run),
        "roles": _roles(run, use),
        "swaps": run.swaps.so_far(),
        "queues": _queues(run),
        "totals": _totals(run, elastic),
        "saved_at": run.saver.saved_at,
        "seconds": use.seconds if use else None,
        "samples_per_step": run.recipe.samples_per_step,
        "bottleneck": verdict
        and {
            "role": verdict.bottleneck,
            "busy": verdict.busy,
            "samples_per_second": verdict.throughput,
            "one_more": {role: prospect.more for role, prospect in verdict.prospects.items()},
        },
    }


def _members(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{role}-{member.number}",
            "state": _state(member),
            "version": member.version if member.version >= 0 else None,
            "load": member.load,
            "restarts": member.restarts,
            "place": member.place,
            **({"kind": member.kind} if member.kind else {}),
        }
        for role, pool in run.pools.all().items()
        for member in pool.members
    ]


def _roles(run: Run, use: Use | None) -> list[dict[str, Any]]:
    """Of each role; its shares are null until it has had members for long enough."""
    shares, elastic = use.shares if use else {}, run.recipe.elastic_roles
    return [
        {
            "role": role,
            "elastic": role in elastic,
            "members": len(pool.members),
            "restarts": pool.members.restarts,
            "retries": pool.retries,
            "busy": shares[role].busy if role in shares else None,
            "waiting": shares[role].waiting if role in shares else None,
        }
        for role, pool in run.pools.all().items()
    ]


def _queues(run: Run) -> list[dict[str, Any]]:
    """Depth and oldest age of each edge. The unit is responses, tokens where scorers count them."""
    now, pools = time.monotonic(), run.pools
    scorers, writers = pools.scorers.values(), pools.writers().values()
    rollouts = run.stage.rollouts if run.stage else None
    edges = {
        "rollout": (sum(pool.load() for pool in writers), rollouts.intake.oldest(now) if rollouts else 0.0),
        "score": (sum(pool.load() for pool in scorers), max((pool.oldest_call(now) for pool in scorers), default=0.0)),
        "reward": (pools.reward.load(), pools.reward.oldest_call(now)),
        "learn": (len(rollouts.buffer), rollouts.buffer.oldest(now)) if rollouts else (0, 0.0),
    }
    return [{"edge": edge, "depth": depth, "oldest_seconds": age} for edge, (depth, age) in edges.items()]


def _totals(run: Run, elastic: Elastic) -> dict[str, Any]:
    """What counts up: since this process began; faults since the run began."""
    meter = run.meter
    return {
        "tokens": {phase: meter.total(f"tokens_{phase}") for phase in TOKEN_PHASES},
        "samples_lost": {reason: meter.total(f"samples_{reason}") for reason in LOST},
        "weight_sync_seconds": meter.phase_seconds(),
        "score_bytes": meter.total("score_bytes"),
        "suspicious_tokens": meter.total("scores_suspicious"),
        "updates_skipped": sum(skip.updates for skip in run.progress.skips.steps.values()),
        "canary_failures": dict(run.roles.canaries.failures),
        "learner_rebuilds": run.faults().learner_rebuilds,
        "gpu_seconds": dict(elastic.gpu_seconds()),
    }


def headline(status: Status) -> str:
    stage = f"stage {status['stage']}, " if status.get("stage") else ""
    return f"{stage}step {status['step']} of {status['steps']}, policy version {status['version']}, {status['phase']}"


def members_table(status: Status) -> Table:
    table = Table("member", "state", "version", "load", "restarts")
    for member in status["members"]:
        name = f"{member['name']} ({member['kind']})" if "kind" in member else member["name"]
        table.add_row(name, *(_cell(member[key]) for key in ("state", "version", "load", "restarts")))
    return table


def of_kinds(status: Status) -> Counter[str]:
    """How many members of each role are of one of its kinds."""
    return Counter(member["name"].rpartition("-")[0] for member in status["members"] if "kind" in member)


def roles_table(status: Status) -> Table:
    over = "" if status["seconds"] is None else f", last {status['seconds']:.0f} s"
    table = Table("role", "members", f"busy{over}", "waiting", "restarts")
    for role in status["roles"]:
        shares = (_percent(role["busy"]), _percent(role["waiting"]))
        table.add_row(role["role"], str(role["members"]), *shares, str(role["restarts"]))
    return table


def bottleneck_line(status: Status) -> str:
    """The bottleneck, and the predicted gain of one more member of each elastic role."""
    found = status["bottleneck"]
    if found is None:
        return "the bottleneck is unknown: too few steps were done with these members"
    parts = [
        _pace(found["samples_per_second"], status),
        f"{found['role']} is the bottleneck (busy {found['busy']:.0%})",
    ]
    for role, change in found["one_more"].items():
        pace = f" ({_pace(found['samples_per_second'] * (1.0 + change), status)})" if change >= 0.005 else ""
        parts.append(f"one more {role}: {change:+.0%}{pace}")
    return "; ".join(parts)


def swap_lines(status: Status) -> list[str]:
    return [f"models.{swap['model']} from step {swap['step']} on: {swap['path']}" for swap in status["swaps"]]


def _pace(samples_per_second: float, status: Status) -> str:
    return f"{samples_per_second:.1f} samples/s, {status['samples_per_step'] / samples_per_second:.2f} s a step"


def _state(member: PoolMember) -> str:
    if member.leaving:
        return "leaving"
    if member.apart:
        return "loading"
    return "serving" if member.serving else "starting"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
