"""Numbers that move with the step."""

from __future__ import annotations

import math

import pytest

from configs.objective import Schedule
from objectives.schedule import Dials, adapted_beta, dials_at, fractions_at, initial_beta, value_at
from tests.objectives.enumeration import assert_equal, gradient, log_probs, logits, mixture, recipe, step

LINEAR = Schedule(start=1.0, end=0.2, steps=4)
COSINE = Schedule(start=1.0, end=0.2, steps=4, shape="cosine")


def test_a_fixed_number_stays() -> None:
    assert [value_at(0.3, at) for at in (1, 7, 1000)] == [0.3] * 3


def test_a_linear_schedule_starts_at_step_one_and_rests_at_its_end() -> None:
    assert [value_at(LINEAR, at) for at in (1, 2, 3, 4, 5, 6, 99)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_a_cosine_schedule_has_the_same_ends_and_middle_and_is_flat_at_them() -> None:
    values = [value_at(COSINE, at) for at in (1, 2, 3, 4, 5, 99)]
    quarter = 0.5 * (1 - math.cos(math.pi / 4))
    assert values == pytest.approx([1, 1 - 0.8 * quarter, 0.6, 0.2 + 0.8 * quarter, 0.2, 0.2])


def test_before_the_first_step_a_schedule_is_at_its_start() -> None:
    assert value_at(LINEAR, 0) == 1.0


@pytest.mark.parametrize("support", ["sampled", "full"])
@pytest.mark.parametrize("at, weight", [(1, 1.0), (3, 0.6), (9, 0.2)])
def test_a_scheduled_lambda_is_the_lambda_of_the_step(support: str, at: int, weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    config = recipe(support=support, reverse_weight=LINEAR)
    expected = gradient(mixture(theta.log_softmax(-1), p, weight), theta)
    assert_equal(step(config, theta, p, dials=dials_at(config, at)), expected)


def test_dials_without_schedules_are_the_recipes_numbers() -> None:
    assert dials_at(recipe(reverse_weight=0.3), 5) == Dials(reverse_weight=0.3)
    reference = {"model": "ref", "beta": 0.05}
    assert dials_at(recipe(target="none", reference=reference), 5).beta == 0.05


def test_a_switch_turns_distillation_off_when_it_turns_the_reward_on() -> None:
    config = recipe(outcome={"weight": 1.0, "combine": "switch", "switch_step": 3})
    on = [(dials_at(config, at).distillation, dials_at(config, at).outcome) for at in (1, 2, 3, 4)]
    assert on == [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("combine", ["add", "gate", "sign"])
def test_no_other_combine_turns_anything_off(combine: str) -> None:
    dials = dials_at(recipe(outcome={"weight": 1.0, "combine": combine}), 100)
    assert (dials.distillation, dials.outcome) == (1.0, 1.0)


ADAPTIVE = recipe(target="none", reference={"model": "ref", "beta": {"initial": 0.1, "target": 6.0, "horizon": 1000.0}})


@pytest.mark.parametrize("kl, share", [(6.0, 0.0), (6.6, 0.1), (5.7, -0.05), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)])
def test_an_adaptive_beta_moves_by_the_clipped_error_times_samples_over_horizon(kl: float, share: float) -> None:
    assert adapted_beta(ADAPTIVE, 0.4, kl, 50) == pytest.approx(0.4 * (1 + share * 50 / 1000))


def test_an_adaptive_beta_starts_at_its_initial_value_and_the_dials_show_where_it_stands() -> None:
    assert initial_beta(ADAPTIVE) == 0.1 == dials_at(ADAPTIVE, 1).beta
    assert dials_at(ADAPTIVE, 1, beta=0.7).beta == 0.7


def test_a_fixed_beta_and_no_reference_do_not_adapt() -> None:
    fixed = recipe(target="none", reference={"model": "ref", "beta": 0.05})
    assert adapted_beta(fixed, 0.05, 60.0, 50) == 0.05
    assert adapted_beta(recipe(), 0.0, 60.0, 50) == 0.0 == initial_beta(recipe())


def test_one_source_of_prefixes_has_all_of_them() -> None:
    assert fractions_at(recipe(prefix="teacher"), 3) == {"teacher": 1.0}


def test_fractions_of_prefixes_move_and_sum_to_one() -> None:
    mixed = recipe(prefix={"teacher": Schedule(start=1.0, end=0.0, steps=4), "student": 1.0})
    for at, teacher in ((1, 0.5), (3, 0.5 / 1.5), (5, 0.0), (50, 0.0)):
        assert fractions_at(mixed, at) == pytest.approx({"teacher": teacher, "student": 1.0 - teacher})
