"""Pass@k and Avg@k from rewards of several responses a prompt. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Rewards = Mapping[str, Sequence[float]]  # by prompt: the rewards of its responses


def pass_at_k(responses: int, passed: int, k: int) -> float:
    """The unbiased estimate of the probability that one of k responses to a prompt passes, when `passed` of `responses`
    did: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1), as a product of factors in [0, 1], so that
    no binomial coefficient overflows. Raises ValueError unless 0 <= passed <= responses and 1 <= k <= responses.
    """
    if not (0 <= passed <= responses and 1 <= k <= responses):
        raise ValueError(f"pass@{k} of {passed} passed among {responses}: needs 1 <= k <= responses, 0 <= passed")
    failing = 1.0  # the probability that k responses, drawn without replacement, all fail
    for index in range(k):
        failing *= max(0, responses - passed - index) / (responses - index)
    return 1.0 - failing


def passes(rewards: Rewards, k: int, pass_at: float) -> list[float]:
    """Pass@k of each prompt with at least k responses; a response passes with a reward of at least `pass_at`."""
    counted = [(len(mine), sum(reward >= pass_at for reward in mine)) for mine in rewards.values()]
    return [pass_at_k(responses, passed, k) for responses, passed in counted if responses >= k]


def averages(rewards: Rewards) -> list[float]:
    """The mean reward of each prompt that has a response: averaged over prompts, Avg@k of k responses a prompt."""
    return [sum(mine) / len(mine) for mine in rewards.values() if mine]
