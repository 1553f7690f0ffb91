"""A scorer with wrong weights is found by fixed texts and replaced; if its replacement is wrong too, the run ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from actors.scoring.canary import canary_texts, suspicion_of
from actors.wire.records import Score
from orchestrator.weights.canaries import CEILING, FLOORS, Canaries, Examined, Occasion

LOAD, WAKE, ALARM, TRIAL = Occasion.LOAD, Occasion.WAKE, Occasion.ALARM, Occasion.TRIAL
RIGHT = [-0.5, -1.5, -2.5, -3.5]


def off(by: float, of: Sequence[float] = RIGHT) -> list[float]:
    return [value + by for value in of]


def member(number: int, place: int | None = None, newest: int | None = None) -> Examined:
    return Examined(number, number if place is None else place, number + 1 if newest is None else newest)


# The state machine.


def test_the_tolerance_is_a_multiple_of_the_noise_and_never_below_rounding() -> None:
    quiet, noisy = Canaries("float32"), Canaries("bfloat16")
    quiet.judge(member(0), 0, LOAD, [RIGHT, off(1e-6)])
    assert quiet.tolerance == FLOORS["float32"]
    noisy.judge(member(0), 0, LOAD, [RIGHT, off(0.02), [*RIGHT[:3], -3.3]])
    assert noisy.tolerance == pytest.approx((0.15, 0.6))
    assert not noisy.judge(member(1), 0, LOAD, [off(0.14)]).wrong
    assert noisy.judge(member(2), 0, LOAD, [off(0.16)]).wrong == {2}


def test_a_single_token_far_off_is_found() -> None:
    canaries, many = Canaries("float32"), [*RIGHT] * 100
    canaries.judge(member(0), 0, LOAD, [many])
    assert canaries.judge(member(1), 0, WAKE, [[*many[:-1], many[-1] - 0.02]]).wrong == {1}


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([[-6.9] * 4], "all of its scores of fixed texts are -6.9"),
        ([[-1.0, float("nan"), -2.0, -3.0]], "not finite"),
        ([[-1.0, float("-inf"), -2.0, -3.0]], "not finite"),
        ([RIGHT, off(CEILING.mean * 2)], "repeats of its scores differ"),
    ],
)
def test_impossible_readings_are_wrong_without_a_reference(readings: list[list[float]], said: str) -> None:
    canaries = Canaries("float32")
    first = canaries.judge(member(0, newest=1), 0, LOAD, readings)
    assert first.wrong == {0} and said in first.why and not first.final
    assert canaries.judge(member(1, 0), 0, LOAD, readings).final
    assert canaries.noise is None, "nothing is learned of who is wrong"


def test_two_places_that_disagree_are_both_replaced() -> None:
    """Both are replaced. A replacement that agrees with the reference stays; one that differs ends the run."""
    canaries = Canaries("float32")
    assert not canaries.judge(member(0, newest=2), 0, LOAD, [RIGHT]).wrong
    assert canaries.judge(member(1, newest=2), 0, LOAD, [off(1)]).wrong == {0, 1}
    assert not canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT]).wrong
    again = canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)])
    assert again.final and "differ by 1 nats a token" in again.why and "0.001 and 0.01 are allowed" in again.why


def test_two_places_that_agree_outvote_the_reference() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [off(1)])  # half loaded, and first
    assert canaries.judge(member(1, newest=2), 0, LOAD, [RIGHT]).wrong == {0, 1}
    assert canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT]).wrong == {0}
    assert not canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT]).wrong
    assert canaries.judge(member(4, newest=5), 0, LOAD, [off(1)]).wrong == {4}


def test_a_successor_is_judged_once_the_place_of_the_reference_is_read_again() -> None:
    """If the reference was half loaded, the successor of the right one differs from it too, and may come first."""
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [off(1)])  # half loaded, and first
    assert canaries.judge(member(1, newest=2), 0, LOAD, [RIGHT]).wrong == {0, 1}
    early = canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT], joining={0, 1})
    assert early.open and not early.wrong and not early.final
    assert canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT], joining={0, 1}).wrong == {0}
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [RIGHT], joining={1}) == (frozenset(), "", False, False)


@pytest.mark.parametrize("place", ["agrees with the reference", "has no successor"])
def test_a_successor_that_waited_and_still_differs_from_the_reference_ends_the_run(place: str) -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=2), 0, LOAD, [RIGHT])
    assert canaries.judge(member(1, newest=2), 0, LOAD, [off(1)]).wrong == {0, 1}
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)], joining={0, 1}).open
    if place == "agrees with the reference":
        assert not canaries.judge(member(2, 0, 4), 0, LOAD, [RIGHT], joining={0, 1}).wrong
    assert canaries.judge(member(3, 1, 4), 0, LOAD, [off(1)], joining={1}).final


def test_a_joiner_that_disagrees_with_several_is_replaced_alone() -> None:
    canaries = Canaries("float32")
    for number in range(2):
        canaries.judge(member(number, newest=2), 0, LOAD, [RIGHT])
    assert canaries.judge(member(2, newest=3), 0, LOAD, [off(0.1)]).wrong == {2}
    assert canaries.judge(member(3, 2, 4), 0, LOAD, [off(0.1)]).final


def test_equally_wrong_replacements_of_one_place_do_not_outvote_the_reference() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    assert canaries.judge(member(1, 0, 2), 0, LOAD, [off(1)]).wrong == {1}
    assert canaries.judge(member(2, 0, 3), 0, LOAD, [off(1)]).final


def test_wakes_are_compared_with_the_loaded_reference_and_counted_apart_from_loads() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    first = canaries.judge(member(0, newest=1), 0, WAKE, [off(1)])
    assert first.wrong == {0} and not first.final
    assert not canaries.judge(member(1, 0, 2), 0, LOAD, [RIGHT]).wrong  # it starts well
    assert canaries.judge(member(1, 0, 2), 0, WAKE, [off(1)]).final, "and wakes as the one before it"


def test_a_good_wake_resets_the_count_of_bad_ones() -> None:
    canaries = Canaries("float32")
    canaries.judge(member(0, newest=1), 0, LOAD, [RIGHT])
    canaries.judge(member(0, newest=1), 0, WAKE, [off(1)])
    canaries.judge(member(1, 0, 2), 0, LOAD, [RIGHT])
    assert not canaries.judge(member(1, 0, 2), 0, WAKE, [RIGHT]).wrong
    assert not canaries.judge(member(1, 0, 2), 0, WAKE, [off(1)]).final


def test_two_members_that_wake_wrong_together_count_once() -> None:
    canaries = Canaries("float32")
    for number in range(2):
        canaries.judge(member(number, newest=2), 0, LOAD, [RIGHT])
    results = [canaries.judge(member(number, newest=2), 0, WAKE, [off(1)]) for number in range(2)]
    assert [v.wrong for v in results] == [{0}, {1}] and not any(v.final for v in results)


def test_each_version_has_its_own_reference_and_a_trial_resets_it() -> None:
    canaries = Canaries("float32")
    for version in range(20):
        assert not canaries.judge(member(0, newest=1), version, LOAD, [off(-version)]).wrong
    assert not canaries.judge(member(0, newest=1), 30, TRIAL, [off(5)]).wrong
    assert not canaries.judge(member(0, newest=1), 30, TRIAL, [off(7)]).wrong, "another directory at the same step"
    assert canaries.judge(member(0, newest=1), 31, TRIAL, [[-1.0] * 4]).wrong == {0}
    assert not canaries.judge(member(1, 0, 2), 31, TRIAL, [[-1.0] * 4]).final, "the directory is wrong, not the role"


# What raises an alarm.


def scores(logprobs: Sequence[float], entropy: float | None = None) -> list[Score]:
    return [Score("a", np.array(logprobs, np.float32), entropy_sum=entropy)]


def test_constant_or_uniform_scores_are_suspicious() -> None:
    tokens = list(range(20))
    assert "all 20 log-probs are -6.9078" in suspicion_of(scores([-np.log(1000)] * 20), tokens, 1000)
    assert suspicion_of(scores([0.0] * 20), tokens, 1000)
    varied = [-1.0 - i / 10 for i in range(20)]
    assert "mean entropy" in suspicion_of(scores(varied, 20 * 0.995 * np.log(1000)), tokens, 1000)
    assert not suspicion_of(scores(varied, 20 * 0.985 * np.log(1000)), tokens, 1000)
    assert not suspicion_of(scores(varied), tokens, 1000), "vLLM knows no entropy"


def test_equal_scores_of_one_repeated_token_are_not_suspicious() -> None:
    same = [Score(str(i), np.array([-0.25], np.float32), entropy_sum=0.5) for i in range(64)]
    assert not suspicion_of(same, [7] * 64, 1000)
    assert not suspicion_of(same, [7, 8] * 32, 1000)
    assert not suspicion_of([], [], 1000)
    assert not suspicion_of(scores([-0.5] * 8), list(range(8)), 1000), "too few to say"


@pytest.mark.parametrize(("vocabulary", "context"), [(1000, 128), (16, 8), (151_936, 2)])
def test_texts_are_within_vocabulary_and_context_and_always_the_same(vocabulary: int, context: int) -> None:
    texts = canary_texts(vocabulary, context)
    assert texts == canary_texts(vocabulary, context) and all(2 <= len(text) <= context for text in texts)
    assert all(0 <= token < vocabulary for text in texts for token in text)
    assert canary_texts(15, 128) == ()
