"""Response-length schedules: a fixed cap, a ladder of caps, and a ladder with an entropy gate before each next cap.

A pure state machine: steps and measurements in, the cap and the next action out. Stage m trains
`steps_per_stage` steps at cap L_m. Then H_m, the student's entropy per token on held-out prompts at one length for all
stages, decides (Zhao et al. 2026, arXiv 2605.16826). After a failure the longest cap that passed is L*, L_0 if none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from configs.objective import EntropyGate, Length


class Action(Enum):
    """What the run does after a stage is judged."""

    ADVANCE = "advance"  # the next stage, at the next cap
    FINISH = "finish"  # the last stage passed: continue at its cap
    HOLD = "hold"  # continue at L*
    ROLLBACK = "rollback"  # continue at L* from the weights that passed there
    STOP = "stop"  # end the run


@dataclass(frozen=True)
class Ladder:
    """State of a length curriculum. `stage` indexes the caps, `steps` counts the stage's steps; `passed` is the last
    stage that passed, -1 before any; `settled`: no stage is judged any more. `first_entropy` is H_0, nats."""

    stage: int = 0
    steps: int = 0
    passed: int = -1
    settled: bool = False
    first_entropy: float | None = None

    def cap(self, length: Length) -> int:
        """Longest response, tokens."""
        return length.caps[self.stage]

    def stepped(self) -> Ladder:
        """The state after one more learner step."""
        return replace(self, steps=self.steps + 1)

    def due(self, length: Length) -> bool:
        """Whether the stage's steps are done and it has to be judged."""
        return not self.settled and self.steps >= length.steps_per_stage

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def judge(
    ladder: Ladder, length: Length, entropy: float | None = None, truncated: float = 0.0
) -> tuple[Ladder, Action]:
    """Judge a stage whose steps are done. `entropy` (H_m, nats a token) and `truncated` (share of the held-out
    responses that were cut at the gate's length) are needed where there is a gate.

    Raises ValueError when no judgement is due, or a gate has no entropy to judge by.
    """
    if not ladder.due(length):
        raise ValueError(f"stage {ladder.stage} has made {ladder.steps} of {length.steps_per_stage} steps")
    gate = length.gate
    if gate is not None:
        if entropy is None:
            raise ValueError("the gate needs the entropy of held-out responses; give data.heldout")
        if ladder.first_entropy is None:
            ladder = replace(ladder, first_entropy=entropy)
        if not _passes(gate, ladder, entropy, truncated):
            return _failed(ladder, gate)
    passed = replace(ladder, passed=ladder.stage, steps=0)
    if ladder.stage + 1 == len(length.caps):
        return replace(passed, settled=True), Action.FINISH
    return replace(passed, stage=ladder.stage + 1), Action.ADVANCE


def _passes(gate: EntropyGate, ladder: Ladder, entropy: float, truncated: float) -> bool:
    floor = gate.minimum
    if gate.fraction is not None:
        assert ladder.first_entropy is not None
        floor = gate.fraction * ladder.first_entropy
    assert floor is not None
    return entropy >= floor and truncated <= gate.truncation


def _failed(ladder: Ladder, gate: EntropyGate) -> tuple[Ladder, Action]:
    actions = {"hold": Action.HOLD, "rollback": Action.ROLLBACK, "stop": Action.STOP}
    return replace(ladder, stage=max(0, ladder.passed), steps=0, settled=True), actions[gate.on_fail]
