"""Members of real engines keep no event loop waiting: armed, they refuse whatever would. Neither does their driver."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import RayTransport
from tests.engines.shared import EVERYTHING, Engines, merged
from tests.off_the_loop import OURS, OnTheLoop, off_the_loop


@pytest.mark.parametrize("role", ["rollout", "teacher_rollout", "scorer", "scorer under vLLM"])
def test_a_member_that_blocks_its_loop_is_found(engines: Engines, role: str) -> None:
    pools = {
        "rollout": engines.pools.rollout,
        "teacher_rollout": engines.pools.teacher_rollout,
        "scorer": engines.pools.scorers["teacher"],
        "scorer under vLLM": engines.vllm_scorer,
    }
    pool = pools[role]
    assert isinstance(pool, Pool)

    def block() -> None:
        engines.runner.run(pool.call_member(pool.members.serving()[0], "block"))

    with pytest.raises(AssertionError, match=r"were kept waiting: .'a fingerprint in actors/"), engines.armed():
        with pytest.raises(AssertionError, match=r"^a fingerprint in actors/"):
            block()
        assert len(pool.members.serving()) == len(pool.members), "it goes on"
    block()  # nobody minds any more


def test_a_driver_that_blocks_its_loop_is_found(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = engines.pools.reward

    async def blocking(transport: RayTransport, ref: Any) -> Any:
        return ray.get(ref)

    monkeypatch.setattr("tests.off_the_loop.OURS", (*OURS, __file__))  # as if this were the program
    monkeypatch.setattr(RayTransport, "value", blocking)
    with pytest.raises(OnTheLoop, match=r"^ray\.get in tests/engines/test_armed"), off_the_loop():
        engines.runner.run(pool.call_member(pool.members.serving()[0], "ping"))


@pytest.mark.timeout(300)
def test_a_run_of_every_role_keeps_no_loop_waiting(engines: Engines) -> None:
    """Two steps with a checkpoint, evaluations, new weights for rollouts and for a live scorer."""
    changes = merged(engines.everything(), {"data": {"heldout": str(engines.prompts["heldout_data"])}})
    recipe = engines.recipe(**EVERYTHING, **changes, run={"steps": 2}, checkpoint={"every": 1})
    with engines.armed(), off_the_loop():
        done = engines.run(recipe)
    assert done.code == 0 and len(done.lines) == 2


@pytest.mark.timeout(300)
def test_a_run_over_a_vllm_scorer_keeps_no_loop_waiting(engines: Engines) -> None:
    recipe = engines.recipe(scorer={"teacher": {"engine": "vllm"}}, objective={"support": "sampled"})
    with engines.armed(), off_the_loop():
        assert engines.run(recipe).code == 0
