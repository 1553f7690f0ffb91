"""The learner is woken as soon as a block is scored, before the cut of responses that the block ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.pools.transport import ValueLost
from orchestrator.samples.intake import Intake, _Response, _Work


@pytest.mark.parametrize("lost", [False, True], ids=["a response is rejected", "its payload is lost"])
def test_the_learner_is_woken_before_a_cut_is_awaited(lost: bool) -> None:
    done: list[str] = []

    async def score_and_reward(block: Any, prompts: Any) -> Any:
        if lost:
            raise ValueLost("gone")
        return [], {"00000000.000": "bad"}

    async def cut(*arguments: Any) -> None:
        done.append("cut")
        await asyncio.Event().wait()

    async def story() -> None:
        member: Any = SimpleNamespace(number=0)
        pool = SimpleNamespace(members=[member], call_member=cut, role="rollout")
        stub: Any = SimpleNamespace(
            score_and_reward=score_and_reward,
            drop=lambda *a: None,
            count=lambda *a: None,
            forget=lambda uid: None,
            lose=lambda *a: [],
        )
        intake = Intake(
            flow=stub,
            writers={"student": pool},  # type: ignore[dict-item]
            prompts=stub,
            leases=stub,
            buffer=stub,
            meter=stub,
            early_stop=None,
            notice=lambda text: None,
            changed=lambda: done.append("changed"),
            skipped={},
            segments=stub,
        )
        response = _Response("00000000.000", stub, stub, stub)
        work = _Work(member, running={response.uid: response})
        block: Any = SimpleNamespace(source="student", samples=())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(intake._score_and_buffer(block, work, {response.uid: response}), 0.05)

    asyncio.run(story())
    assert done == ["changed", "cut"]
