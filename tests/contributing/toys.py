"""One toy of each thing that an engineer may add: what CONTRIBUTING.md says goes into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from actors.rewarding.reward import Reward
from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.jobs import LearnerSpec, Share
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from objectives import objective
from objectives.tokens import Scores, Tokens
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.weights.carriers import Version
from orchestrator.weights.learner_group import LearnerGroup

# an objective


def capped_distillation(student_logprobs: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """[n] losses, nats: minus the log-ratio to the teacher, at most 1 nat, times log q of the sampled token."""
    log_q = student_logprobs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
    log_ratio = tokens.scores["teacher"].logprob - log_q.detach()
    return -log_ratio.clamp(-1.0, 1.0) * log_q


# member engines: classes with the built-in member's constructor


class NumberReward(Reward):
    """Reads the token ids as text: simulated models have no tokenizer."""

    def _decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class PlainRollout(SimulatedRollout):
    def __init__(self, config: Rollout, model: str, shared: str) -> None:
        super().__init__(Speeds(), config.on_update)


class PlainScorer(SimulatedScorer):
    def __init__(self, config: Scorer, model: str, vocabulary: int, version: int) -> None:
        super().__init__(Speeds(), vocabulary, version)


LOGPROBS = torch.linspace(-1.0, 1.0, 64).log_softmax(-1)  # of the learner's made-up student


class LossLearner(SimulatedLearner):
    """A simulated learner whose loss is the recipe's own objective, on a made-up student of 64 tokens."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(Speeds(), rank, ranks)
        self._objective: objective.Objective | None = None

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        super().start(spec, meeting)
        self._objective = objective.build(spec.objective)

    def evaluate(self, share: Share) -> dict[str, Any]:
        assert self._objective is not None
        ids = [token for sample in self._samples(share) for token in sample.response_ids]
        tokens = tokens_of(torch.tensor(ids))
        logprobs = LOGPROBS.expand(len(ids), 64)
        streams = self._objective.read(logprobs, tokens, share.dials)
        return super().evaluate(share) | {"loss": float(streams["distillation"].mean())}


def tokens_of(ids: torch.Tensor) -> Tokens:
    """One response of these ids; a teacher that gives each token a probability of 1/50."""
    zeros = torch.zeros(len(ids))
    return Tokens(
        token_ids=ids,
        sequence=torch.zeros_like(ids),
        position=torch.arange(len(ids)),
        on=torch.ones_like(ids, dtype=torch.bool),
        weights={"distillation": zeros + 1 / len(ids)},
        rollout_logprob=zeros - 1.0,
        advantage=zeros,
        reward=zeros,
        drawn=torch.ones_like(ids, dtype=torch.bool),
        scores={"teacher": Scores(torch.full((len(ids),), 1 / 50).log())},
    )


# a carrier


class NamedVersions:
    """Versions by name: the learner's buckets stay here, and members are given the name's."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Any, ...]] = {}
        self.pulled: list[str] = []

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        headers, buckets = await learner.publish(model)
        name = f"{model or 'student'}-{number}"
        self.kept[name] = (tuple(headers), *buckets)
        return Version(number, (name,))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        (name,) = version.parts
        self.pulled.append(name)
        return await pool.call_member(member, "load", version.number, *self.kept[name])


# a command


def steps(run: Annotated[Path, typer.Argument(help="A run's directory.")]) -> None:
    """Print how many steps a run has made."""
    typer.echo(len((run / "metrics.jsonl").read_text().splitlines()))
