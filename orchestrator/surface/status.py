"""What `logratio status` shows: members, how busy each role is, the bottleneck, and what one more member would bring.

The driver describes its run in plain values; the command draws them. Unknown values are shown as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from orchestrator.pools.member import PoolMember
    from orchestrator.run import Run
    from orchestrator.scaling.elastic import Elastic

Status = Mapping[str, Any]


def status_of(run: Run, elastic: Elastic, phase: str) -> dict[str, Any]:
    """The run's status in plain values that any process can unpickle."""
    use, verdict = elastic.last_minute(), elastic.diagnosis()
    pools, elastic_roles = run.pools.all(), run.recipe.elastic_roles
    return {
        "step": run.progress.step,
        "steps": run.recipe.run.steps,
        "version": run.progress.version,
        "phase": phase,
        "members": [
            {
                "name": f"{role}-{member.number}",
                "state": _state(member),
                "version": member.version if member.version >= 0 else None,
                "load": member.load,
                "restarts": member.restarts,
            }
            for role, pool in pools.items()
            for member in pool.members
        ],
        "roles": [
            {
                "role": role,
                "elastic": role in elastic_roles,
                "members": len(pool.members),
                "restarts": pool.members.restarts,
                "busy": use.shares[role].busy if use and role in use.shares else None,
                "waiting": use.shares[role].waiting if use and role in use.shares else None,
            }
            for role, pool in pools.items()
        ],
        "swaps": run.swaps.so_far(),
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


def headline(status: Status) -> str:
    return f"step {status['step']} of {status['steps']}, policy version {status['version']}, {status['phase']}"


def members_table(status: Status) -> Table:
    table = Table("member", "state", "version", "load", "restarts")
    for member in status["members"]:
        table.add_row(*(_cell(member[key]) for key in ("name", "state", "version", "load", "restarts")))
    return table


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
