"""The board *Health*: what died, what is stale?"""

from __future__ import annotations

from typing import Any

from scripts.boards.panels import BYTES, COUNT, SECONDS, SHARE, TOKENS, board, curves, number, rows
from scripts.boards.queries import WINDOW, Query, grown, last, metric, step


def made() -> dict[str, Any]:
    return board(
        "health",
        [
            ("Now", _now()),
            ("What died?", _died()),
            ("What is stale?", _stale()),
            ("What was lost?", _lost()),
            ("Ray", _ray()),
        ],
    )


def _now() -> list[Any]:
    firing = Query('ALERTS{alertstate="firing", run=~"$run|"}', "", table=True)
    return [
        rows("What fires?", COUNT, firing, width=24, none="nothing fires"),
        number("Steps made", COUNT, step("step")),
        number("Since the last step", SECONDS, last("step_age_seconds")),
        number("Since the newest checkpoint", SECONDS, last("checkpoint_age_seconds")),
        number("Members replaced in an hour", COUNT, grown("restarts"), bad=1),
        number("Updates not taken in an hour", COUNT, grown("updates_skipped"), bad=1),
        number("Canaries failed in an hour", COUNT, grown("canary_failures"), bad=1),
    ]


def _died() -> list[Any]:
    return [
        curves("Members replaced in an hour, by role", COUNT, grown("restarts", "role"), width=6, low=0),
        curves("Work done again in an hour, by role", COUNT, grown("retries", "role"), width=6, low=0),
        curves("Learners rebuilt in an hour", COUNT, grown("learner_rebuilds"), width=6, low=0),
        curves("Canaries failed in an hour, by teacher", COUNT, grown("canary_failures", "teacher"), width=6, low=0),
    ]


def _stale() -> list[Any]:
    overdue = Query(f"5 * max({metric('step_median_seconds')})", "5 times the median")
    return [
        curves(
            "How long since the last step?",
            SECONDS,
            last("step_age_seconds"),
            last("step_median_seconds"),
            overdue,
            note="Above 5 times the median a step is overdue.",
            width=12,
            low=0,
        ),
        curves(
            "How old is the newest checkpoint?",
            SECONDS,
            last("checkpoint_age_seconds"),
            note="So much work a crash of the learner or of the driver would cost.",
            width=12,
            low=0,
        ),
    ]


def _lost() -> list[Any]:
    found, scored = metric("suspicious_tokens"), metric("tokens", 'phase="scored"')
    suspicious = Query(f"sum(rate({found}[{WINDOW}])) / (sum(rate({scored}[{WINDOW}])) > 0)", "suspicious")
    return [
        curves("Samples lost in an hour, by reason", COUNT, grown("samples_lost", "reason"), width=6, low=0),
        curves(
            "Samples lost since the last step",
            COUNT,
            *(step(f"samples_{reason}") for reason in ("cut", "aged", "dropped")),
            width=6,
            low=0,
        ),
        curves("Prompts of the files left out", COUNT, step("prompts_dropped"), width=6, low=0),
        curves("Updates not taken in an hour", COUNT, grown("updates_skipped"), width=6, low=0),
        curves("How many scores are suspicious?", SHARE, suspicious, low=0, width=12),
        curves(
            "Scores of doubt since the last step",
            TOKENS,
            step("scores_suspicious"),
            step("tails_floored"),
            low=0,
            width=12,
        ),
    ]


def _ray() -> list[Any]:
    everywhere = "Of the whole cluster: Ray does not know the run."
    store = Query("sum by (Location) (ray_object_store_memory)", "{{Location}}")
    spilled = Query('sum(ray_object_store_memory{Location="SPILLED"})', "spilled")
    left = Query("ray_object_store_available_memory", "{{instance}}")
    memory = Query("ray_node_mem_used / ray_node_mem_total", "{{instance}}")
    out_of_memory = Query("sum by (Name) (increase(ray_memory_manager_worker_eviction_total[1h]))", "{{Name}}")
    died = Query("sum by (Type) (increase(ray_node_manager_unexpected_worker_failure_total[1h]))", "{{Type}}")
    return [
        curves("Object store, by place", BYTES, store, note=everywhere, stacked=True, low=0),
        curves("What does the object store have left?", BYTES, left, note=everywhere, low=0),
        curves("Spilled to disk", BYTES, spilled, note=everywhere, low=0),
        curves("Killed for want of memory in an hour", COUNT, out_of_memory, note=everywhere, low=0),
        curves("Processes that died in an hour", COUNT, died, note=everywhere, low=0),
        curves("How full is each node's memory?", SHARE, memory, note=everywhere, low=0, high=1),
        curves("Disk left on each node", BYTES, Query("ray_node_disk_free", "{{instance}}"), note=everywhere, low=0),
    ]
