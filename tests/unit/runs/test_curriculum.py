"""The ladder of response caps: when it climbs, and where it falls back to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.objective import EntropyGate, Length
from objectives.curriculum import Action, Ladder, judge

CAPS = (4, 8, 16)


def length(on_fail: str = "hold", steps: int = 2, caps: tuple[int, ...] = CAPS, **gate: Any) -> Length:
    bounds = {"eval_length": 8} | gate
    return Length(caps=caps, steps_per_stage=steps, gate=EntropyGate(on_fail=on_fail, **bounds) if gate else None)


def climb(config: Length, trace: list[tuple[float | None, float]]) -> Iterator[tuple[Ladder, Action]]:
    """Judge each entry of the trace (entropy, truncated share) until the ladder is settled."""
    ladder = Ladder()
    for entropy, truncated in trace:
        while not ladder.due(config):
            ladder = ladder.stepped()
        ladder, action = judge(ladder, config, entropy, truncated)
        yield ladder, action
        if ladder.settled:
            return


def caps_and_actions(config: Length, *entropies: float | None, truncated: float = 0.0) -> list[tuple[int, str]]:
    trace = [(entropy, truncated) for entropy in entropies]
    return [(ladder.cap(config), action.value) for ladder, action in climb(config, trace)]


def test_a_ladder_without_a_gate_climbs_by_its_steps_alone() -> None:
    assert caps_and_actions(length(), None, None, None) == [(8, "advance"), (16, "advance"), (16, "finish")]


def test_a_ladder_of_one_cap_finishes_at_it() -> None:
    assert caps_and_actions(length(caps=(4,)), None) == [(4, "finish")]


def test_a_judgement_is_due_after_the_steps_of_a_stage_and_resets_their_count() -> None:
    config, ladder = length(steps=3), Ladder()
    due = []
    for _ in range(3):
        ladder = ladder.stepped()
        due.append(ladder.due(config))
    assert due == [False, False, True]
    assert not judge(ladder, config)[0].due(config)


def test_an_absolute_gate_opens_at_its_minimum_and_not_below() -> None:
    config = length(minimum=0.5)
    assert caps_and_actions(config, 0.5, 0.9, 0.5) == [(8, "advance"), (16, "advance"), (16, "finish")]
    assert caps_and_actions(config, 0.9, 0.49) == [(8, "advance"), (4, "hold")]


def test_a_relative_gate_compares_with_the_first_stage() -> None:
    config = length(fraction=0.5)
    assert caps_and_actions(config, 2.0, 1.0, 1.0) == [(8, "advance"), (16, "advance"), (16, "finish")]
    assert caps_and_actions(config, 2.0, 1.5, 0.9) == [(8, "advance"), (16, "advance"), (8, "hold")]


def test_a_relative_gate_above_one_fails_its_own_first_stage() -> None:
    assert caps_and_actions(length(fraction=1.1), 2.0) == [(4, "hold")]


@pytest.mark.parametrize("on_fail", ["hold", "rollback", "stop"])
def test_a_failure_returns_to_the_longest_cap_that_passed(on_fail: str) -> None:
    config = length(on_fail, minimum=0.5)
    assert caps_and_actions(config, 0.9, 0.9, 0.1, 0.9)[-1] == (8, on_fail)
    assert caps_and_actions(config, 0.9, 0.1, 0.9)[-1] == (4, on_fail)


@pytest.mark.parametrize("on_fail", ["hold", "rollback", "stop"])
def test_a_failure_in_the_first_stage_stays_at_the_first_cap(on_fail: str) -> None:
    ((ladder, action),) = climb(length(on_fail, minimum=0.5), [(0.1, 0.0), (0.9, 0.0)])
    assert (ladder.cap(length()), ladder.passed, action.value) == (4, -1, on_fail)


def test_too_many_truncated_responses_fail_at_any_entropy() -> None:
    config = length(minimum=0.5, truncation=0.25)
    assert caps_and_actions(config, 9.0, truncated=0.25)[0] == (8, "advance")
    assert caps_and_actions(config, 9.0, truncated=0.26) == [(4, "hold")]


def test_a_judgement_that_is_not_due_or_lacks_an_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 0 has made 1 of 2 steps"):
        judge(Ladder(steps=1), length())
    with pytest.raises(ValueError, match=r"needs the entropy of held-out responses; give data\.heldout"):
        judge(Ladder(steps=2), length(minimum=0.5))
    with pytest.raises(ValueError, match="has made"):
        judge(Ladder(steps=9, settled=True), length())


LENGTHS = st.builds(
    length,
    on_fail=st.sampled_from(["hold", "rollback", "stop"]),
    steps=st.integers(1, 4),
    caps=st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True).map(sorted).map(tuple),
    minimum=st.floats(0.1, 2.0),
    truncation=st.floats(0.0, 1.0),
)
TRACES = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 1.0)), min_size=6, max_size=6)


@given(LENGTHS, TRACES)
def test_on_any_trace_caps_climb_by_one_and_end_at_the_longest_that_passed(
    config: Length, trace: list[tuple[float, float]]
) -> None:
    assert config.gate is not None and config.gate.minimum is not None
    passes = [h >= config.gate.minimum and cut <= config.gate.truncation for h, cut in trace]
    climbed = [*passes, False].index(False)
    stages = list(climb(config, trace))
    *before, (last, action) = stages
    assert [ladder.stage for ladder, _ in before] == list(range(1, len(stages)))
    assert {a for _, a in before} <= {Action.ADVANCE} and last.settled
    if climbed >= len(config.caps):
        assert (last.stage, action) == (len(config.caps) - 1, Action.FINISH)
    else:
        assert len(stages) == climbed + 1, "one failure is the last judgement"
        assert (last.stage, action.value) == (max(0, climbed - 1), config.gate.on_fail)


@given(LENGTHS, TRACES)
def test_a_ladder_saved_and_restored_at_every_step_climbs_the_same(
    config: Length, trace: list[tuple[float, float]]
) -> None:
    ladder = Ladder()
    for (entropy, cut), (expected, action) in zip(trace, climb(config, trace), strict=False):
        while not ladder.due(config):
            ladder = Ladder(**json.loads(json.dumps(ladder.stepped().to_state())))
        ladder, found = judge(ladder, config, entropy, cut)
        assert (ladder, found) == (expected, action)
