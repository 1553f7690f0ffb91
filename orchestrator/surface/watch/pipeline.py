"""A run as the pipeline that it is: stages, their members, the queues between them, and what holds it up.

A live run writes status.json. Of a run that has none, sizes come from its recipe, and busy shares from its last steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LAST_STEPS = 10  # over which shares are taken where no status says them
SECONDS = {
    "rollout": "rollout",
    "teacher_rollout": "rollout",
    "scorer": "score",
    "reward": "reward",
    "learner": "learn",
}
MEMBERS_SHOWN = 128  # of a role, one by one

Values = Mapping[str, Any]


def pipeline(status: Values, recipe: Values, sums: Values) -> dict[str, Any]:
    """Roles in the order of the data flow, queues by edge, the bottleneck. `sums`: of the last steps."""
    roles = [_live(role, status) for role in _objects(status.get("roles"))] or _of_recipe(recipe)
    if recipe and not _rewards(recipe):  # its pool is there and has nothing to do
        roles = [role for role in roles if role["role"] != "reward"]
    for role in roles:
        _fill(role, sums)
    bottleneck, batch = _object(status.get("bottleneck")), _object(recipe.get("batch"))
    bottleneck = bottleneck or _busiest(roles)
    return {
        "prompts": batch.get("prompts_per_step"),
        "samples_per_prompt": batch.get("samples_per_prompt"),
        "roles": roles,
        "queues": {
            str(q.get("edge")): {k: _number(q.get(k)) for k in ("depth", "oldest_seconds")} for q in _queues(status)
        },
        "max_staleness": _number(recipe.get("max_staleness")),
        "publish": _mean(sums, "seconds_publish"),
        "bottleneck": bottleneck,
        "measured": "live"
        if any(_number(r.get("busy")) is not None for r in _objects(status.get("roles")))
        else "steps",
    }


def _live(role: Values, status: Values) -> dict[str, Any]:
    """A role of a status, with its members."""
    name = str(role.get("role"))
    members = [m for m in _objects(status.get("members")) if str(m.get("name")).rpartition("-")[0] == name]
    kept = ("name", "state", "version", "load", "restarts")
    return {
        "role": name,
        "size": _number(role.get("members")) or len(members),
        "members": [{key: member.get(key) for key in kept} for member in members[:MEMBERS_SHOWN]],
        "elastic": bool(role.get("elastic")),
        "restarts": _number(role.get("restarts")) or 0,
        "busy": _number(role.get("busy")),
        "waiting": _number(role.get("waiting")),
    }


def _of_recipe(recipe: Values) -> list[dict[str, Any]]:
    """The roles that a resolved recipe sizes; all but the learner could have had another size at the end."""
    objective = _object(recipe.get("objective"))
    sizes: list[tuple[str, Any]] = []
    writer = {"teacher": "teacher_rollout", "dataset": None}.get(str(objective.get("prefix")), "rollout")
    if writer and recipe.get(writer) is not None:
        sizes.append((writer, _with_kinds(recipe[writer])))
    sizes += [(f"scorer.{name}", _with_kinds(scorer)) for name, scorer in _object(recipe.get("scorer")).items()]
    sizes.append(("reward", _object(recipe.get("reward")).get("members")))
    if recipe.get("learner") is not None:
        sizes.append(("learner", 1))
    empty = {"members": [], "elastic": False, "restarts": 0, "busy": None, "waiting": None}
    return [{"role": role, "size": _number(size) or 1} | empty for role, size in sizes]


def _with_kinds(role: Any) -> float:
    """Members of a role, those of its kinds too."""
    parts = [_object(role), *map(_object, _object(_object(role).get("kinds")).values())]
    return sum(_number(part.get("members")) or 1 for part in parts)


def _rewards(recipe: Values) -> bool:
    reward = _object(recipe.get("reward"))
    return bool(reward.get("rules") or reward.get("model"))


def _fill(role: dict[str, Any], sums: Values) -> None:
    """Take unknown shares from the seconds of the last steps."""
    whole, phase = _number(sums.get("seconds_step")), SECONDS.get(role["role"].split(".")[0])
    if not whole or phase is None:
        return
    if role["busy"] is None and (busy := _number(sums.get(f"seconds_{phase}"))) is not None:
        role["busy"] = min(1.0, busy / whole)
    if (
        role["role"] == "learner"
        and role["waiting"] is None
        and (wait := _number(sums.get("seconds_wait"))) is not None
    ):
        role["waiting"] = min(1.0, wait / whole)


def _busiest(roles: Sequence[Values]) -> dict[str, Any] | None:
    """The role with the largest share, where no live verdict is known."""
    known = [role for role in roles if role["busy"]]
    if not known:
        return None
    most = max(known, key=lambda role: role["busy"])
    return {"role": most["role"], "busy": most["busy"], "samples_per_second": None, "one_more": {}}


def _mean(sums: Values, name: str) -> float | None:
    """A column's mean as a share of the same rows' count of steps."""
    total, count = _number(sums.get(name)), _number(sums.get("rows"))
    return total / count if total is not None and count else None


def _queues(status: Values) -> list[dict[str, Any]]:
    return _objects(status.get("queues"))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
