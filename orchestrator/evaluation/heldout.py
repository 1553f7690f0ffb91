"""Evaluation on held-out prompts: the student samples, scorers score, the learner computes means. No update."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.metrics import EVALUATION_COUNTS, EVALUATION_METRICS, OF_TOKENS, finite
from configs.objective import Objective
from configs.schema import SHOWN, Recipe, Sampling
from objectives.schedule import Dials
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import Suspects
from orchestrator.pools.telemetry import Meter
from orchestrator.samples.buffer import Batch, Buffer, Scored
from orchestrator.samples.flow import Flow
from orchestrator.samples.leases import Leases
from orchestrator.samples.ledger import Ledger
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.rollouts import Rollouts
from orchestrator.weights.learner_group import LearnerGroup, PayloadsLost

HELDOUT_INDEX = 90_000_000  # number of the first held-out prompt group; training groups stay below
COMPONENT = "component/"  # before a reward's component, in the values of a sample
Sums = Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """`means`: by the names of EVALUATION_METRICS and EVALUATION_COUNTS. `each`: the values of every sample by uid,
    KLs and entropy as sums over its `tokens` (nats), others once a response, with each component of its reward."""

    means: Mapping[str, Any]
    each: Mapping[str, Sums]

    def among(self, uids: Iterable[str]) -> dict[str, Any]:
        """The means over these samples; for all samples, the learner's own means."""
        mine = [self.each[uid] for uid in sorted(uids)]
        if len(mine) == len(self.each):
            return dict(self.means)
        found = {name: mean_of(mine, name) for name in EVALUATION_METRICS}
        skipped = self.means["samples"] + self.means["samples_skipped"] - len(mine)
        counts = dict(zip(EVALUATION_COUNTS, (len(mine), skipped), strict=True))
        return found | counts | {"kl_support": self.means["kl_support"]}

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"means": dict(self.means), "each": {uid: dict(sums) for uid, sums in self.each.items()}}


class Evaluation:
    """Uses the same prompts and seeds every time, so that before and after differ by weights alone. Samples take the
    same path as those of training. A prompt that kills its members, or a sample that cannot be scored, is left out,
    noticed and entered in `skipped` by uid."""

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        flow: Flow,
        learner: LearnerGroup,
        prompts: Sequence[Prompt],
        suspects: Suspects,
        meter: Meter,
        notice: Callable[[str], None],
        skipped: dict[str, str],
        first: int = HELDOUT_INDEX,
        objective: Objective | None = None,
    ) -> None:
        self._first = first
        self._objective = objective
        self._recipe = recipe
        self._pools = pools
        self._flow = flow
        self._learner = learner
        self._prompts = prompts
        self._suspects = suspects
        self._meter = meter
        self._notice = notice
        self._skipped = skipped

    @property
    def prompts(self) -> int:
        """Their number."""
        return len(self._prompts)

    async def run(self, version: int, dials: Dials, record: Path | None, cap: int | None = None) -> Found | None:
        """Evaluate responses of up to `cap` tokens. Returns means over tokens (KLs, entropy: nats) and over responses
        (length, reward); None without held-out prompts, or if no sample could be scored."""
        if not self._prompts or self._pools.rollout is None:
            return None
        sampling = self._recipe.sampling
        if cap:
            sampling = sampling.model_copy(update={"max_response_tokens": cap})
        batch, metrics = await self.read(version, dials, record, sampling)
        scored, each = batch.samples, metrics.pop("each", {})
        if not scored:
            return None
        rewards = [s.reward for s in scored if s.reward is not None]
        headers = [s.header for s in scored]
        values = metrics | {
            "kl_support": self._recipe.objective.support if self._recipe.objective.teachers else None,
            "reward_mean": sum(rewards) / len(rewards) if rewards else None,
            "response_length": sum(h.response_tokens for h in headers) / len(headers),
            "truncated_fraction": sum(h.finish == "length" for h in headers) / len(headers),
            "samples": len(scored),
            "samples_skipped": len(self._prompts) * self._recipe.evaluate.samples_per_prompt - len(scored),
        }
        means = {name: finite(values.get(name)) for name in (*EVALUATION_METRICS, *EVALUATION_COUNTS)}
        return Found(means, {s.header.uid: finite(each[s.header.uid] | _of_response(s)) for s in scored})

    async def read(
        self, version: int, dials: Dials, record: Path | None, sampling: Sampling
    ) -> tuple[Batch, dict[str, Any]]:
        """The scored samples, and what the learner says of them: all metrics of a step without an update, and `each`;
        nothing if no sample could be scored."""
        rollouts = self._rollouts(self._prompts, self._recipe.evaluate.samples_per_prompt, self._skipped)
        return await self._read(rollouts, version, dials, record, sampling)

    async def answer_greedily(self, version: int, dials: Dials, record: Path) -> None:
        """Record a greedy response (temperature 0) to each of the first SHOWN held-out prompts."""
        greedy = self._recipe.sampling.model_copy(update={"temperature": 0.0})
        await self._read(self._rollouts(self._prompts[:SHOWN], 1, skipped={}), version, dials, record, greedy)

    async def _read(
        self, rollouts: Rollouts, version: int, dials: Dials, record: Path | None, sampling: Sampling
    ) -> tuple[Batch, dict[str, Any]]:
        """Sample, score and let the learner read one batch. Samples lost with a node are resampled."""
        with rollouts.listening():
            async with asyncio.TaskGroup() as tasks:
                rolling = tasks.create_task(self._roll_out(rollouts, version, sampling))
                try:
                    while True:
                        batch = await rollouts.batch(version)
                        for index in batch.groups:  # asked for again by the next evaluation: old deaths do not count
                            self._suspects.acquit(index)
                        if not batch.samples:
                            return batch, {}
                        try:
                            return batch, await self._read_by_learner(batch, version, dials, record)
                        except PayloadsLost as loss:
                            rollouts.intake.requeue(batch, loss.uids)
                finally:
                    rolling.cancel()

    async def _read_by_learner(self, batch: Batch, version: int, dials: Dials, record: Path | None) -> dict[str, Any]:
        async with self._learner.turns.learner():
            with self._meter.clock("learn").busy():
                return await self._learner.evaluate(batch.samples, version, dials, record, self._objective)

    async def _roll_out(self, rollouts: Rollouts, version: int, sampling: Sampling) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                rollouts.lease_out(tasks, 0, version, sampling)
                await rollouts.changed.wait()

    def _rollouts(self, prompts: Sequence[Prompt], each: int, skipped: dict[str, str]) -> Rollouts:
        """One step of `each` responses to all of `prompts`."""
        groups, first = len(prompts), self._first
        assert self._pools.rollout is not None
        return Rollouts(
            recipe=self._recipe,
            flow=self._flow,
            writers={"student": self._pools.rollout},
            prompts={first + i: prompt for i, prompt in enumerate(prompts)},
            leases=Leases(groups, each, 0, 1, Ledger(first), suspects=self._suspects, passed_over=first),
            buffer=Buffer(groups, each),
            meter=self._meter,
            notice=self._notice,
            skipped=skipped,
        )


def _of_response(scored: Scored) -> dict[str, float]:
    """The metrics of a response as a whole, by the names of EVALUATION_METRICS."""
    header = scored.header
    known = {"response_length": float(header.response_tokens), "truncated_fraction": float(header.finish == "length")}
    known |= {f"{COMPONENT}{name}": value for name, value in scored.components.items()}
    return known if scored.reward is None else known | {"reward_mean": scored.reward}


def compared(before: Found, after: Found) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The means of two evaluations over the samples that both scored; None, None without any."""
    common = before.each.keys() & after.each.keys()
    return (before.among(common), after.among(common)) if common else (None, None)


def mean_of(samples: Iterable[Sums], name: str) -> float | None:
    """Mean over the samples that have the value, of KLs and entropy over their tokens; None if none has."""
    known = [sums for sums in samples if name in sums]
    count = sum(sums["tokens"] if name in OF_TOKENS else 1 for sums in known)
    return sum(sums[name] for sums in known) / count if count else None
