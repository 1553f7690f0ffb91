"""A line of metrics.jsonl has the names of the contract, each of them, and no other."""

from __future__ import annotations

import pytest

from actors.metrics import ROLES, STEP_METRICS, step_line

CONTRACT = """
step policy_version loss reverse_kl forward_kl kl_support reverse_kl_k3 kl_by_position entropy teacher_entropy
log_ratio_p1 log_ratio_p50 log_ratio_p99 topk_mass_teacher topk_mass_student topk_overlap clipped_fraction
masked_fraction held_fraction ratio_p1 ratio_p50 ratio_p99 effective_sample_size reference_kl start_kl beta
reverse_weight value_mean grad_norm updates_skipped lr reward_mean reward_component groups_without_signal
groups_replaced
foreign_fraction response_cap response_length
response_length_masked response_length_aged truncated_fraction staleness_mean staleness_max logprob_gap_mean
tokens_generated tokens_scored scores_suspicious tails_floored scores_from_files tokens_trained tokens_masked
samples_cut samples_aged samples_dropped prompts_dropped
score_bytes_per_token bytes_inlined seconds_step seconds_rollout seconds_score seconds_reward seconds_learn
seconds_publish seconds_wait time
"""
NAMES = CONTRACT.split()


def test_names_are_those_of_the_contract_in_its_order() -> None:
    assert list(STEP_METRICS) == NAMES


def test_every_metric_says_what_it_means() -> None:
    assert all(len(meaning) > 15 for meaning in STEP_METRICS.values())
    assert {f"seconds_{role}" for role in ROLES} <= STEP_METRICS.keys()


def test_what_a_step_does_not_know_is_null() -> None:
    line = step_line({"loss": 1.0, "step": 3})
    assert list(line) == NAMES
    assert (line["step"], line["loss"]) == (3, 1.0)
    assert {value for name, value in line.items() if name not in ("step", "loss")} == {None}


def test_a_name_nobody_defined_is_refused() -> None:
    with pytest.raises(KeyError, match=r"\['losss'\] are not in actors/metrics.py"):
        step_line({"losss": 1.0})
