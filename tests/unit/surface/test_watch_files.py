"""What the live page reads of a run that is being written: steps, status, sizes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.run import DONE
from orchestrator.surface.watch import tail
from orchestrator.surface.watch.pipeline import pipeline
from orchestrator.surface.watch.run_files import RunFiles
from orchestrator.surface.watch.tail import Tail
from tests import synthetic
from tests.unit.scaling.test_elastic import Live, rollout_bound


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, steps: range | list[int], loss: float = 0.5, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": step, "loss": loss}) + "\n" for step in steps)


def follow(path: Path) -> Tail:
    found = Tail(path, ["loss"])
    found.refresh()
    return found


def test_a_half_written_last_line_waits_for_its_end(log: Path) -> None:
    write(log, [1])
    with log.open("a") as file:
        file.write('{"step": 2, "lo')
    found = follow(log)
    assert found.columns["step"] == [1]
    with log.open("a") as file:
        file.write('ss": 7}\n{"step"')
    found.refresh()
    assert (found.columns, found.generation) == ({"step": [1, 2], "loss": [0.5, 7]}, 1)


def test_components_of_the_reward_are_columns_of_their_own(log: Path) -> None:
    """Also of one that later steps have alone, and where a resumed run takes steps again."""
    rewards = {1: None, 2: {"length": 0.5, "model": None}, 3: {"length": 1.0, "model": "no number"}, 4: "no components"}
    log.write_text("".join(json.dumps({"step": n, "reward_component": rewards[n]}) + "\n" for n in (1, 2, 3, 4, 2)))
    found = follow(log).columns
    assert found["reward_component.length"] == [None, 0.5] and found["reward_component.model"] == [None, None]
    assert {len(column) for column in found.values()} == {2}


def test_lines_that_are_no_steps_are_left_out(log: Path) -> None:
    log.write_bytes(
        b'nonsense\n[1]\n\xff\xfe\n{"step": null}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": "x"}\n{"loss": 1}\n'
    )
    assert follow(log).columns == {"step": [1, 2], "loss": [None, None]}


def test_a_resumed_run_that_cut_its_log_is_read_anew(log: Path) -> None:
    write(log, range(1, 9))
    found = follow(log)
    write(log, range(1, 4), mode="w")
    found.refresh()
    assert (found.columns["step"], found.generation) == ([1, 2, 3], 2)


def test_a_log_that_was_cut_and_has_grown_beyond_is_read_anew(log: Path) -> None:
    write(log, range(1, 5))
    found = follow(log)
    write(log, range(1, 9), loss=0.75, mode="w")
    found.refresh()
    assert (found.columns["step"], set(found.columns["loss"]), found.generation) == ([*range(1, 9)], {0.75}, 2)


def test_steps_that_are_made_again_replace_the_first_ones(log: Path) -> None:
    write(log, range(1, 6))
    found = follow(log)
    write(log, [4, 5, 6], loss=0.25)
    found.refresh()
    assert found.columns == {"step": [*range(1, 7)], "loss": [0.5] * 3 + [0.25] * 3}
    assert found.generation > 1


def test_no_log_yet_and_a_log_that_is_gone(log: Path) -> None:
    found = follow(log)
    assert (len(found), found.generation, found.last_step) == (0, 1, 0)
    write(log, [1])
    found.refresh()
    log.unlink()
    found.refresh()
    assert (len(found), found.generation) == (0, 2)


def test_a_long_log_comes_in_parts(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "ROWS", 3)
    write(log, range(1, 8))
    found, start, steps = follow(log), 0, []
    while start < len(found):
        part = found.part(1, start)
        steps, start = steps + part["columns"]["step"], part["end"]
    assert steps == [*range(1, 8)]


def status(**values: Any) -> dict[str, Any]:
    return {
        "time": time.time(),
        "run": "mine",
        "step": 3,
        "steps": 9,
        "version": 3,
        "phase": "training",
        "exit": None,
    } | values


@pytest.mark.parametrize(
    ("live", "summary", "kind", "text"),
    [
        (status(), None, "live", "running"),
        (status(), {"exit": 3}, "live", "running"),  # resumed: the summary is of its first life
        (status(time=-300.0), None, "bad", "no sign of life"),
        (status(time=-300.0), {"exit": 1}, "bad", "failed"),
        (status(exit=0), {"exit": 0}, "good", "done"),
        (status(exit=3), None, "quiet", "stopped, resumable"),
        (None, {"exit": 0}, "good", "done"),
        (None, None, "quiet", "not begun"),
    ],
)
def test_the_state_in_words(tmp_path: Path, live: Any, summary: Any, kind: str, text: str) -> None:
    """A negative time counts from now: these values are made long before the test runs."""
    if live is not None:
        live = live | {"time": time.time() + (live["time"] if live["time"] < 0.0 else 0.0)}
    for name, value in (("status.json", live), ("summary.json", summary)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
            os.utime(tmp_path / name, (1, 1) if name == "status.json" else None)
    state = RunFiles(tmp_path).overview()["state"]
    assert (state["kind"], state["text"]) == (kind, text)


@pytest.mark.parametrize("name", ["status.json", "summary.json", "recipe.yaml", "metrics.jsonl", "samples"])
@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"run": 3, "roles": 7, "members": [1], "queues": {}, "time": "x", "exit": []}', "\x00{["]
)
def test_a_file_of_nonsense_is_not_the_end(tmp_path: Path, name: str, content: str) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    if name == "samples":
        (run / name).rename(tmp_path / "away")
    (run / name).write_text(content)
    found = RunFiles(run).overview()
    assert found["name"] and json.dumps(found, allow_nan=False)


def test_a_live_status_is_drawn_as_it_is(tmp_path: Path) -> None:
    live = status(
        members=[
            {"name": f"scorer.teacher-{i}", "state": "serving", "version": 2, "load": 5, "restarts": i} for i in (0, 1)
        ],
        roles=[
            {"role": "scorer.teacher", "members": 2, "restarts": 1, "elastic": True, "busy": 0.75, "waiting": 0.125}
        ],
        queues=[{"edge": "score", "depth": 12, "oldest_seconds": 3.5}],
        bottleneck={
            "role": "scorer.teacher",
            "busy": 0.75,
            "samples_per_second": 2.0,
            "one_more": {"scorer.teacher": 0.5},
        },
    )
    drawn = pipeline(live, {"batch": {"prompts_per_step": 4, "samples_per_prompt": 2}}, {})
    assert drawn["roles"] == [
        {
            "role": "scorer.teacher", "size": 2, "members": live["members"], "elastic": True, "restarts": 1,
            "busy": 0.75, "waiting": 0.125,
        }
    ]  # fmt: skip
    assert drawn["queues"] == {"score": {"depth": 12, "oldest_seconds": 3.5}}
    assert (drawn["bottleneck"], drawn["measured"]) == (live["bottleneck"], "live")
    assert (drawn["prompts"], drawn["samples_per_prompt"]) == (4, 2)


@pytest.mark.parametrize(
    ("reward", "drawn"), [({"rules": []}, False), ({"rules": [{}]}, True), ({"model": "/m"}, True)]
)
def test_a_reward_pool_without_rules_or_model_is_not_drawn(reward: dict[str, Any], drawn: bool) -> None:
    live = status(roles=[{"role": "reward", "members": 1}])
    assert bool(pipeline(live, {"reward": reward}, {})["roles"]) == drawn
    assert pipeline(live, {}, {})["roles"], "nothing is known of its recipe"


def test_without_a_status_sizes_are_the_recipes_and_shares_the_last_steps(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=12)
    recipe = {
        "run": {"name": "mine", "steps": 12}, "objective": {"prefix": "student"}, "rollout": {"members": 3},
        "teacher_rollout": {"members": 1}, "scorer": {"teacher": {"members": 2, "kinds": {"wide": {"members": 3}}}},
        "reward": {"members": 1, "rules": []},
        "learner": {"ranks": 2},
    }  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    drawn = RunFiles(run).overview()["pipeline"]
    assert [(role["role"], role["size"]) for role in drawn["roles"]] == [
        ("rollout", 3),
        ("scorer.teacher", 5),
        ("learner", 1),
    ]
    rollout, scorer, learner = drawn["roles"]
    assert rollout["busy"] == pytest.approx(2.4 / 5.2) and scorer["busy"] == pytest.approx(1.1 / 5.2)
    assert learner["busy"] == pytest.approx(2.6 / 5.2) and learner["waiting"] == pytest.approx(1.9 / 5.2)
    assert drawn["publish"] == pytest.approx(0.5)
    assert (drawn["bottleneck"]["role"], drawn["measured"]) == ("learner", "steps")


def test_held_out_points_and_notes_are_of_the_summary(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=4)
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluation"]["steps"] = [{"step": 2, "reverse_kl": 0.2}]
    summary |= {"restarts": {"rollout": 2}, "biased": ["k1_in_loss"], "skipped": {"a": "empty"}}
    (run / "summary.json").write_text(json.dumps(summary))
    found = RunFiles(run).overview()
    assert [(point["step"], point["reverse_kl"]) for point in found["held_out"]] == [(0, 0.36), (2, 0.2), (4, 0.09)]
    assert found["notes"] == ["biased on request: k1_in_loss", "members replaced: rollout 2", "samples skipped: 1"]


def test_a_rank_that_writes_its_samples_later_is_news(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=3)
    late = run / "samples/step_000003.rank1.arrow"
    late.rename(tmp_path / "late")
    files = RunFiles(run)
    assert files.overview()["recorded"] == [1, 3, 3, 5]
    (tmp_path / "late").rename(late)
    assert files.overview()["recorded"] == [1, 3, 3, 6]


def test_the_page_reads_what_a_run_writes(tmp_path: Path) -> None:
    """A simulated run, with the status that its driver would write."""
    live = Live(rollout_bound(tmp_path, 8))
    assert live.go() == DONE
    directory = live.simulation.directory
    (directory / "status.json").write_text(json.dumps(live.seen[-1]))
    run = RunFiles(directory)
    found = run.overview()
    assert (found["state"]["text"], found["step"], found["steps"], found["rows"]) == ("running", 8, 8, 8)
    drawn = found["pipeline"]
    assert [role["role"] for role in drawn["roles"]] == ["rollout", "scorer.teacher", "reward", "learner"]
    assert all(role["size"] == len(role["members"]) > 0 and role["busy"] is not None for role in drawn["roles"])
    assert set(drawn["queues"]) == {"rollout", "score", "reward", "learn"}
    assert drawn["bottleneck"]["role"] == "rollout" and drawn["bottleneck"]["one_more"]["rollout"] > 0.3
    page = run.samples.page(found["recorded"][1], 0)
    assert page is not None and page["samples"][0]["tokens"] and not page["readable"]
