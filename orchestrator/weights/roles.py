"""Brings the roles of a run up, and each member to the weights that it is to serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from actors.wire.jobs import LearnerSpec
from configs.load import model_directory
from configs.node import STUDENT
from configs.schema import Recipe
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.startup import Admit, DiedStarting
from orchestrator.weights.canary_watch import CanaryWatch
from orchestrator.weights.carriers import Carrier
from orchestrator.weights.learner_group import LearnerDied, LearnerGroup
from orchestrator.weights.scorer_turns import ScorerTurns, wake
from orchestrator.weights.teachers import Teachers
from orchestrator.weights.turns import Colocated
from orchestrator.weights.versions import Versions


class Roles:
    """`vocabulary`: the models' common logit width. `claim` is called with each version number before it is published,
    `notice` with messages for a person. Members that serve already are kept."""

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        vocabulary: int,
        carrier: Carrier,
        claim: Callable[[int], None],
        notice: Callable[[str], None],
        end_token_ids: Sequence[int] = (),
    ) -> None:
        self._recipe = recipe
        self._end_token_ids = end_token_ids
        self._pools = pools
        self._vocabulary = vocabulary
        self._notice = notice
        self._learner_died = False
        self.learner = LearnerGroup(recipe, pools.learner, self._sharing())
        self.canaries = CanaryWatch(recipe, pools, vocabulary, notice)
        if isinstance(self.learner.turns, Colocated):
            self.learner.turns.on_wake = self.canaries.check_woken
        for pool in pools.scorers.values():
            pool.turn = nullcontext
        for models in recipe.scorers_in_turns.values():
            self._take_turns([pools.scorers[model] for model in models])
        self.versions = Versions(self.learner, carrier, claim=claim, watch=self.canaries)
        self.teachers = Teachers(recipe, pools, self.learner, self.versions, carrier, self.canaries)

    async def bring_up(self, step: int, version: int, saved: Path | None) -> None:
        """Start the learner, from the checkpoint `saved` if there is one, and every role without members. Publishes the
        student as `version` and sets scored models to their weights at `step`."""
        pools = self._pools.all()
        for pool in pools.values():
            pool.members.notice = self._notice
            pool.startup.starting = self.learner.turns.engine if pool.turn is nullcontext else pool.turn
        await self._wake_all()
        await self.teachers.set_swaps(step)
        for pool, versions in self._followers():
            pool.startup.admit = _admit_to(pool, versions)
            for member in pool.members:
                member.version = -1  # a number of another run means nothing here
        cold = [role for role, pool in pools.items() if role != "learner" and not pool.members]
        if self._recipe.colocate:
            await self._bring_up_learner(version, saved)
            await self._start_in_order(cold)
        else:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._bring_up_learner(version, saved))
                for roles in self._together(cold):
                    tasks.create_task(self._start_in_order(roles))

    async def _wake_all(self) -> None:
        """Wake members of pools without turns that slept when an earlier run ended."""
        for pool in self._pools.scorers.values():
            if pool.turn is nullcontext:
                woken = (wake(pool, member) for member in pool.members if member.asleep)
                await asyncio.gather(*woken, return_exceptions=True)  # a dead one is replaced

    async def _start_in_order(self, roles: Sequence[str]) -> None:
        """Start roles one after the other: an engine takes a share of the memory that is free. The largest share of a
        GPU comes first, so that smaller ones find their places beside it."""
        sizes, pools = self._recipe.roles, self._pools.all()
        for role in sorted(roles, key=lambda role: -sizes[role].resources.gpus):
            kinds = {name: kind.members for name, kind in sizes[role].kinds.items()}
            await pools[role].members.start(sizes[role].members, kinds)

    def _together(self, roles: Sequence[str]) -> list[list[str]]:
        """The roles, those together that share GPUs in turns."""
        groups = {f"scorer.{m}": group for group, models in self._recipe.scorers_in_turns.items() for m in models}
        found: dict[str, list[str]] = {}
        for role in roles:
            found.setdefault(groups.get(role, role), []).append(role)
        return list(found.values())

    async def load(self, step: int) -> None:
        """Bring all members to the weights of `step`."""
        await self.pull()
        await self.teachers.load(step)

    async def publish(self, number: int) -> None:
        """Publish the student's weights and their averages as a version. Called in the learner's turn."""
        await self.versions.publish(number)
        await self.teachers.publish(number)

    async def pull(self) -> None:
        """Bring all members that write responses to the current version."""
        await asyncio.gather(*(self.versions.pull_all(pool) for pool in self._pools.writers().values()))

    async def discard_learner(self) -> None:
        """End the ranks of a dead learner, so that `bring_up` builds another."""
        self._learner_died, self.versions.current = True, None
        await self._pools.learner.members.discard()
        self.learner.forget()

    def release(self) -> None:
        """Drop the references to the last weights: pools outlive the run."""
        for _, versions in self._followers():
            versions.current = None

    async def _bring_up_learner(self, version: int, saved: Path | None) -> None:
        """Build the learner and publish its first weights, in its turn: pulls from a dead learner end before it."""
        async with self.learner.turns.learner():
            if not self._pools.learner.members:
                await self._start_learner()
            await self.learner.start(self._learner_spec())
            if saved:
                await self.learner.restore(saved)
            await self.publish(version)

    async def _start_learner(self) -> None:
        try:
            await self._pools.learner.members.start(1)
        except DiedStarting as death:
            if self._learner_died:  # it ran before, so it may start again
                raise LearnerDied(str(death)) from death
            raise

    def _learner_spec(self) -> LearnerSpec:
        recipe = self._recipe
        return LearnerSpec(
            config=recipe.learner,
            objective=recipe.objective,
            model=str(model_directory(recipe.path_of(STUDENT))),
            vocabulary=self._vocabulary,
            steps=recipe.run.steps,
            seed=recipe.run.seed,
            publish_dtype=recipe.rollout.dtype,
            updates=recipe.batch.updates,
            start_kl=recipe.metrics.start_kl,
            end_tokens=tuple(self._end_token_ids) if recipe.objective.end_tokens == "class" else (),
            temperature=recipe.learner_temperature,
            compares_sampler=recipe.sampler_matches_learner,
            base=recipe.base_models,
            averages={m: recipe.models[m].decay for m in recipe.scored_with("ema")},
        )

    def _take_turns(self, scorers: Sequence[Pool]) -> None:
        turns = ScorerTurns(scorers, self.canaries.check_woken)
        for pool in scorers:
            pool.turn = partial(turns.of, pool)

    def _sharing(self) -> list[Pool]:
        """Pools of engines on the learner's GPUs, in the order in which samples pass them."""
        pools = self._pools.all().values() if self._recipe.colocate else ()
        return [pool for pool in pools if pool is not self._pools.learner]

    def _followers(self) -> list[tuple[Pool, Versions]]:
        """Pools whose members pull weights, each with its versions."""
        return [*((pool, self.versions) for pool in self._pools.writers().values()), *self.teachers.followers()]


def _admit_to(pool: Pool, versions: Versions) -> Admit:
    async def admit(member: PoolMember) -> None:
        with suppress(LearnerDied):  # after the rebuild every member pulls
            await versions.pull(pool, member)

    return admit
