"""The learner is woken the moment a block is judged: nobody waits for the cut of what the block ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.pools.transport import ValueLost
from orchestrator.samples.intake import Intake, _Response, _Wanted


@pytest.mark.parametrize("lost", [False, True], ids=["a response is rejected", "its payload is lost"])
def test_who_waits_for_a_batch_is_woken_before_a_cut_is_waited_for(lost: bool) -> None:
    done: list[str] = []

    async def judge(block: Any, prompts: Any) -> Any:
        if lost:
            raise ValueLost("gone")
        return [], {"00000000.000": "bad"}

    async def cut(*arguments: Any) -> None:
        done.append("cut")
        await asyncio.Event().wait()

    async def story() -> None:
        member: Any = SimpleNamespace(number=0)
        pool = SimpleNamespace(members=[member], call_member=cut, role="rollout")
        anything: Any = SimpleNamespace(
            judge=judge, drop=lambda *a: None, count=lambda *a: None, forget=lambda uid: None, lose=lambda *a: []
        )
        intake = Intake(
            flow=anything,
            writers={"student": pool},  # type: ignore[dict-item]
            prompts=anything,
            dispatch=anything,
            buffer=anything,
            meter=anything,
            early_stop=None,
            notice=lambda text: None,
            moved=lambda: done.append("moved"),
            skipped={},
            segments=anything,
        )
        response = _Response("00000000.000", anything, anything, anything)
        wanted = _Wanted(member, running={response.uid: response})
        block: Any = SimpleNamespace(source="student", samples=())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(intake.judge(block, wanted, {response.uid: response}), 0.05)

    asyncio.run(story())
    assert done == ["moved", "cut"]
