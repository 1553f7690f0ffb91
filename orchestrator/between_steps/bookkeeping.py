"""After a step: adapt what the next step depends on, and make the line of metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from actors.metrics import step_line
from configs.schema import Recipe
from objectives.schedule import Dials, adapted_beta
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.samples.buffer import Batch, Scored
from orchestrator.samples.credit import groups_without_signal, rewards_by_group
from orchestrator.samples.silent_rewards import SilentRewards

SAMPLES_LOST = ("samples_cut", "samples_aged", "samples_dropped")


class Bookkeeping:
    """`meter` is read and reset at each step; `notice` is called when groups have had no reward signal for long."""

    def __init__(self, recipe: Recipe, progress: Progress, meter: Meter, notice: Callable[[str], None]) -> None:
        self._recipe = recipe
        self._progress = progress
        self._meter = meter
        self._notice = notice
        self._signals = SilentRewards()

    def stepped(self, batch: Batch, metrics: Mapping[str, Any]) -> None:
        """Adapt coefficients and counts after a step, and check its rewards for a signal."""
        self._adapt(batch, metrics)
        self._check_signal(batch)

    def line(self, batch: Batch, version: int, dials: Dials, metrics: Mapping[str, Any], cap: int) -> dict[str, Any]:
        """The step's line, by the names of actors/metrics.py. `version`: the weights that the step began with; `cap`:
        tokens of a response, at most."""
        self._meter.count("tokens_trained", _trained(batch))
        counts, objective = self._meter.read_and_reset(), self._recipe.objective
        seconds = {f"seconds_{role}" for role in ("rollout", "score", "reward", "learn", "publish", "wait")}
        names = {"tokens_generated", "tokens_scored", "scores_suspicious", "tails_floored", "bytes_inlined"}
        names |= {"scores_from_files", *SAMPLES_LOST, *seconds}
        scored_tokens, aged = counts.get("tokens_scored", 0), counts.get("samples_aged", 0)
        return step_line(
            {name: counts.get(name, 0) for name in names}
            | dict(metrics)
            | described(batch, version)
            | {
                "time": time.time(),
                "step": self._progress.step,
                "policy_version": self._progress.version,
                "kl_support": objective.support if objective.teachers else None,
                "reverse_weight": dials.reverse_weight if objective.teachers else None,
                "beta": dials.beta if objective.reference else None,
                "response_cap": cap,
                "score_bytes_per_token": counts.get("score_bytes", 0) / scored_tokens if scored_tokens else None,
                "response_length_aged": counts.get("tokens_aged", 0) / aged if aged else None,
                "seconds_step": counts["seconds_step"],
            }
        )

    def _adapt(self, batch: Batch, metrics: Mapping[str, Any]) -> None:
        """Adapt the reference's coefficient to the step's KL, and count the step in the length curriculum."""
        kl, drawn = metrics.get("reference_kl"), [s.header for s in batch.samples if s.source == "student"]
        if kl is not None and drawn and self._progress.skips.moved(self._progress.step):
            of_response = kl * sum(h.loss_tokens for h in drawn) / len(drawn)
            self._progress.beta = adapted_beta(self._recipe.objective, self._progress.beta, of_response, len(drawn))
        if self._recipe.objective.length:
            self._progress.ladder = self._progress.ladder.stepped()

    def _check_signal(self, batch: Batch) -> None:
        """Notice when the rewards of groups have not differed for long."""
        centred = self._recipe.objective.outcome.baseline in ("mean", "rloo")
        self._signals, warning = self._signals.after(rewards_by_group(self._recipe, batch.samples), centred)
        if warning:
            self._notice(warning)


def described(batch: Batch, version: int) -> dict[str, Any]:
    """Metrics of a batch, from headers, by names of actors/metrics.py. `version`: weights that the step began from."""
    samples = batch.samples
    headers = [scored.header for scored in samples]
    rewards = [s.reward for s in samples if s.reward is not None and s.source == "student"]
    ages = [(version - v, tokens) for s in samples if s.source == "student" for v, tokens in s.header.versions]
    drawn = sum(count for _, count in ages)
    masked = batch.masked
    return {
        "reward_mean": fmean(rewards) if rewards else None,
        "reward_component": component_means(samples),
        "teacher_entropy": _teacher_entropy(samples),
        "groups_without_signal": groups_without_signal(samples),
        "foreign_fraction": fmean(scored.source != "student" for scored in samples),
        "response_length": fmean(h.response_tokens for h in headers),
        "response_length_masked": fmean(h.response_tokens for h in masked) if masked else None,
        "truncated_fraction": fmean(h.finish == "length" for h in headers),
        "staleness_mean": sum(age * count for age, count in ages) / drawn if drawn else None,
        "staleness_max": max((age for age, _ in ages), default=None),
        "tokens_trained": _trained(batch),
        "tokens_masked": batch.tokens_masked,
    }


def component_means(batch: Sequence[Scored]) -> dict[str, float] | None:
    """The mean of each component over the responses that the student drew; None without any."""
    drawn = [scored.components for scored in batch if scored.components and scored.source == "student"]
    names = dict.fromkeys(name for components in drawn for name in components)
    return {name: fmean(parts[name] for parts in drawn if name in parts) for name in names} or None


def _teacher_entropy(batch: Sequence[Scored]) -> float | None:
    """Nats a token; the mean over teachers if several score a response. None if a scorer does not give it."""
    known = [scored.teacher_entropy for scored in batch if scored.teacher_entropy is not None]
    tokens = sum(scored.header.response_tokens for scored in batch)
    return sum(known) / tokens if len(known) == len(batch) else None


def _trained(batch: Batch) -> int:
    """Loss tokens of a batch."""
    return sum(count for scored in batch.samples for _, count in scored.header.versions)
