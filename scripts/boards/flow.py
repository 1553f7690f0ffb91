"""The board *Flow*: where is the time?"""

from __future__ import annotations

from typing import Any

from scripts.boards.panels import BYTES, COUNT, SECONDS, SHARE, TOKENS, bars, board, curves, number, rows, variable
from scripts.boards.queries import LONG, Query, each_step, last, metric, rate, step

ROLE = 'role="$role"'


def made() -> dict[str, Any]:
    role = variable("role", "Role", 'label_values(ray_logratio_members{run="$run"}, role)', many=True)
    return board(
        "flow",
        [
            ("What holds it up?", _bottleneck()),
            ("How is each role's time spent?", _shares()),
            ("Where are the seconds of a step?", _seconds()),
            ("Where do samples wait?", _queues()),
            ("Who is there?", _members()),
            ("What does it cost?", _cost()),
            ("Inside vLLM", _vllm()),
        ],
        [role],
    )


def _bottleneck() -> list[Any]:
    holds = Query(f"max by (role) ({metric('bottleneck')}) == 1", "{{role}}", now=True)
    return [
        number("Which role is the bottleneck?", COUNT, holds, width=6, by_name=True, none="unknown yet"),
        bars(
            "What would one more member bring?",
            SHARE,
            Query(last("one_more_gain", "role").expr, "{{role}}", now=True),
            "More samples a second by one more member of this role, as `logratio status` predicts it.",
            low=0,
        ),
        number("Samples trained a second", COUNT, last("samples_per_second"), width=5),
        number("Seconds a step", SECONDS, last("step_median_seconds"), width=5),
    ]


def _shares() -> list[Any]:
    busy, wait, idle = (
        last("time_share", "phase", "{{phase}}", ROLE, f'phase="{p}"') for p in ("busy", "wait", "idle")
    )
    stacked = curves(
        "$role: busy, waiting, idle",
        SHARE,
        busy,
        wait,
        idle,
        note="A role that is always busy holds the run up; one that waits has too many members.",
        width=6,
        stacked=True,
        low=0,
        high=1,
    )
    busy_of_all = last("time_share", "role", "{{role}}", 'phase="busy"')
    return [curves("How busy is each role?", SHARE, busy_of_all, width=24, low=0, high=1), stacked.repeat("role")]


def _seconds() -> list[Any]:
    phases = ("rollout", "score", "reward", "learn", "publish", "wait")
    return [
        curves(
            "Seconds of a step, by phase",
            SECONDS,
            *(step(f"seconds_{phase}") for phase in phases),
            step("seconds_step"),
            note="Phases overlap, so they add up to more than the step.",
            width=12,
            low=0,
        ),
        curves(
            "Weight sync, seconds of each step",
            SECONDS,
            each_step("weight_sync_seconds", "phase"),
            note="Members load at the same time: their seconds are added up.",
            width=12,
            low=0,
        ),
        curves("Tokens a second", "suffix: tokens/s", rate("tokens", "phase"), width=12, low=0),
        curves(
            "Tokens of a step",
            TOKENS,
            *(step(f"tokens_{what}") for what in ("generated", "scored", "trained")),
            width=12,
            low=0,
        ),
    ]


def _queues() -> list[Any]:
    return [
        curves(
            "How many samples wait?",
            COUNT,
            last("queue_depth", "edge"),
            note="The longest queue stands before the bottleneck.",
            width=12,
            low=0,
        ),
        curves("How long has the oldest waited?", SECONDS, last("queue_oldest_seconds", "edge"), width=12, low=0),
    ]


def _members() -> list[Any]:
    there = Query(f"max by (role, phase) ({metric('members')}) > 0", "{{role}} {{phase}}")
    behind = Query(
        f"max({metric('step_policy_version')}) - on() group_right() min by (role) ({metric('member_version')})",
        "{{role}}",
    )
    version = Query(last("member_version", "role, member").expr, "version", table=True)
    load = Query(last("member_load", "role, member").expr, "load", table=True)
    return [
        curves("Members by state", COUNT, there, low=0),
        curves("How many versions behind is the oldest member?", "suffix: versions", behind),
        rows("Version and load of each member", COUNT, version, load),
    ]


def _cost() -> list[Any]:
    trained = metric("tokens", 'phase="trained"')
    tokens = f"sum(increase({trained}[{LONG}]))"
    gpus = Query("ray_node_gpus_utilization", "{{instance}} {{GpuIndex}}")
    spent = f"sum(increase({metric('gpu_seconds')}[{LONG}]))"
    return [
        curves(
            "GPUs held by each role",
            "suffix: GPUs",
            rate("gpu_seconds", "role"),
            note="Seconds of GPUs a second. 0 on machines without.",
            low=0,
        ),
        curves(
            "How busy is each GPU?",
            "percent",
            gpus,
            note="Of the whole cluster: Ray does not know the run.",
            low=0,
            high=100,
        ),
        curves("GPU-seconds of a step, by role", SECONDS, each_step("gpu_seconds", "role"), low=0),
        curves("GPU-seconds a trained token", SECONDS, Query(f"{spent} / ({tokens} > 0)", "GPU-seconds"), low=0),
        curves("Bytes of scores a token", BYTES, step("score_bytes_per_token"), low=0),
        curves("Scores read from files since the last step", TOKENS, step("scores_from_files"), low=0),
        curves("Scores on the way", "Bps", rate("score_bytes"), low=0),
        curves(
            "Bytes inlined into the driver",
            BYTES,
            step("bytes_inlined"),
            note="Payload should go by reference; what is inlined passes through the driver.",
            low=0,
        ),
    ]


def _vllm() -> list[Any]:
    running = Query("sum(ray_vllm_num_requests_running)", "running")
    waiting = Query("sum(ray_vllm_num_requests_waiting)", "waiting")
    cache = Query("max(ray_vllm_kv_cache_usage_perc)", "fullest engine")
    interrupted = Query("sum(increase(ray_vllm_num_preemptions_total[1h]))", "in an hour")
    note = "Of all engines of the cluster: vLLM does not know the run."
    return [
        curves("Requests in the engines", COUNT, running, waiting, note=note, low=0),
        curves("How full is the KV cache?", SHARE, cache, note=note, low=0, high=1),
        curves("Requests interrupted", COUNT, interrupted, note=note, low=0),
    ]
