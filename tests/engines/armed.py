"""Members of real engines that can be told to refuse what blocks their event loop (tests/off_the_loop.py), in their own
processes. A refusal raises in the member, and is a line of a file besides: somebody may catch what is raised.

Learners and rewards are synchronous: Ray gives them no loop, so there is nothing to keep waiting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.member import Member
from actors.models import weights
from actors.rollout.rollout import Rollout
from actors.rollout.teacher_rollout import TeacherRollout
from actors.scoring.scorer import Scorer
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec
from tests.off_the_loop import Guard


class Lines(list[str]):
    """What a guard refuses, in a file that outlives the process."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, line: str) -> None:
        super().append(line)
        os.write(self._file, f"{line}\n".encode())


class _Armed(Member):
    """Comes before a member's own class."""

    async def arm(self, refused: str) -> None:
        """From now on refuse what blocks, with a line in the file `refused`."""
        self._patch = pytest.MonkeyPatch()
        Guard(self._patch, Lines(Path(refused))).everything()

    async def disarm(self) -> None:
        self._patch.undo()

    async def block(self) -> None:
        """What no member may do, for a test that it is refused."""
        weights.fingerprint(np.zeros(1, np.uint8))


class ArmedRollout(_Armed, Rollout): ...


class ArmedTeacherRollout(_Armed, TeacherRollout): ...


class ArmedScorer(_Armed, Scorer): ...


ARMED: Mapping[type, type] = {Rollout: ArmedRollout, TeacherRollout: ArmedTeacherRollout, Scorer: ArmedScorer}


def armable(pool: Pool) -> Pool:
    """Members of the pool that are spawned from now on can be armed, where they have a loop."""
    spec = pool.startup.spec

    def armed(number: int) -> GangSpec:
        given = spec(number)
        return replace(given, cls=ARMED.get(given.cls, given.cls))

    pool.startup.spec = armed
    return pool
