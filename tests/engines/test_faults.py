"""One real process of each role is killed in mid-run on real engines: the run finishes and nothing is lost or left."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.shared_memory import shared_folder
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.weights.learner_group import LearnerGroup
from tests.engines.shared import Engines, Watcher
from tests.processes import alive, descendants

STEPS = 6
KILLED = {1: "rollout", 2: "scorer.teacher", 3: "reward", 5: "learner"}  # after which step, which role


@dataclass
class Killer(Watcher):
    """Kills a member's process after a step: of the learner a rank that is not its head, of the rollouts one that is
    at work."""

    dead: set[int] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    owed: int = 0  # responses, by the rollout that was killed
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def step(self, line: Mapping[str, Any]) -> None:
        super().step(line)
        role = KILLED.get(line["step"])
        if role and role not in self.done:
            self.done.append(role)
            self.tasks.append(asyncio.get_running_loop().create_task(self.kill(role)))

    async def kill(self, role: str) -> None:
        pool = self.pools[role]
        member = pool.members[0]
        pid = await self._halted_at_work(pool, member) if role == "rollout" else await _begun(pool, member)
        self.dead |= {pid, *descendants(pid)}
        os.kill(pid, signal.SIGKILL)

    async def _halted_at_work(self, pool: Pool, member: PoolMember) -> int:
        """The stopped process of a member that has begun what it owes, and can no longer yield the rest of it: between
        seeing it at work and killing it, a fast machine would finish."""
        while True:
            while not member.load:
                await asyncio.sleep(0.001)
            pid = await _begun(pool, member)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.2)  # what it had yielded arrives
            self.owed = member.load
            if self.owed:
                return pid
            os.kill(pid, signal.SIGCONT)


async def _begun(pool: Pool, member: PoolMember) -> int:
    """The process of the member's last actor, once every call before this one has begun."""
    return await pool.transport.value(pool.transport.call(member.actors[-1], "ping")[0])


@dataclass
class Notices(Watcher):
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.mark.timeout(600)
def test_a_kill_of_each_role_loses_nothing_and_leaves_nothing(engines: Engines) -> None:
    recipe = engines.recipe(
        run={"steps": STEPS},
        reward={"rules": [{"kind": "length"}]},
        sampling={"max_response_tokens": 64},  # long enough to be met at work
        checkpoint={"every": 2},
        max_staleness=1,
        on_stale="wait",
    )
    killer = Killer()
    done = engines.run(recipe, killer)
    assert done.code == 0 and killer.done == list(KILLED.values())
    rows = [row for step in range(1, STEPS + 1) for row in done.samples(f"step_{step:06d}")]
    expected = [f"{group:08d}.{sample:03d}" for group in range(STEPS * 4) for sample in range(2)]
    assert sorted(row["uid"] for row in rows) == expected, "each sample once over the surviving lineage"
    again = [row for row in rows if row["attempt"]]
    assert 0 < len(again) <= killer.owed, "the rollout was at work, and what it had not yielded was sampled again"
    assert [line["step"] for line in done.lines] == list(range(1, STEPS + 1))
    versions = [line["policy_version"] for line in done.lines]
    assert versions == sorted(set(versions))
    for line in done.lines:
        began, rows = line["policy_version"] - 1, done.samples(f"step_{line['step']:06d}")
        assert all(began - 1 <= version <= began for row in rows for version in row["versions"])
        assert not line["tokens_masked"] and not line["samples_aged"], "who waits need not leave any out"
    assert (
        done.summary["learner_rebuilds"] == 1
        and {"rollout", "scorer.teacher", "reward"} <= done.summary["restarts"].keys()
    )
    engines.runner.run(_until_whole(killer.pools))
    assert not alive(killer.dead), "what a killed process had started ended with it"
    shared = Path(shared_folder(engines.base.run.name, engines.base.run.root))
    assert len(list(shared.iterdir())) == 3, "a folder a living writer"
    assert not list(shared.rglob("v*"))
    assert _objects_left() == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("zero_stage", "file"),
    [
        (0, "mp_rank_00_model_states.pt"),
        (2, "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        (3, "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_a_rank_that_cannot_write_a_checkpoint_goes_on_with_the_others(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, zero_stage: int, file: str
) -> None:
    """One rank writes the file, and a folder is in its place; the others meet that rank in the step that follows."""
    save = LearnerGroup.save

    async def save_in_vain(learner: LearnerGroup, folder: Path) -> None:
        if folder.name == "step_1.partial":
            (folder / "deepspeed" / file).mkdir(parents=True)
        await save(learner, folder)

    monkeypatch.setattr(LearnerGroup, "save", save_in_vain)
    watcher = Notices()
    done = engines.run(
        engines.recipe(run={"steps": 2}, checkpoint={"every": 1}, learner={"zero_stage": zero_stage}), watcher
    )
    assert done.code == 0 and [line["step"] for line in done.lines] == [1, 2]
    assert [notice for notice in watcher.notices if "step 1 was not saved" in notice]
    assert done.summary["learner_rebuilds"] == 0
    assert [folder.name for folder in (done.directory / "checkpoints").iterdir()] == ["step_2"]


async def _until_whole(pools: Mapping[str, Pool]) -> None:
    """Replacements are up: other tests use these pools."""
    async with asyncio.timeout(180):
        while not (len(pools["rollout"].members.serving()) == len(pools["scorer.teacher"].members.serving()) == 2):
            await asyncio.sleep(0.2)
        while not pools["reward"].members.serving():
            await asyncio.sleep(0.2)


def _objects_left() -> int:
    """Objects in the store once everything that nobody refers to has gone."""
    from ray._private.internal_api import memory_summary

    deadline, left = time.monotonic() + 20, -1
    while left and time.monotonic() < deadline:
        gc.collect()
        found = re.search(r"Plasma memory usage .*?, (\d+) objects", memory_summary(stats_only=True))
        left = int(found[1]) if found else -1
        time.sleep(0.5)
    return left
