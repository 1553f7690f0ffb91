"""Scored models beside the student: which weights they serve, and the heads that the learner needs of them.

A `live` model follows the student version by version, an `ema` one follows an average that the learner keeps. A frozen
model keeps its directory's weights, until another directory is swapped in. All are as the next step is to have them
before anything is scored for it.
"""

from __future__ import annotations

from functools import partial

from actors.wire.records import SwapRefused
from configs.load import model_directory
from configs.schema import Recipe
from orchestrator.pools.layout import scorer_spec
from orchestrator.pools.pool import Pool, RoleFailed
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.weights.canary_watch import CanaryWatch
from orchestrator.weights.carriers import Carrier, Directories
from orchestrator.weights.learner_group import LearnerGroup
from orchestrator.weights.versions import Versions


class SwapFailed(RoleFailed):
    """A directory could not be swapped in. Some members may have it already: all follow a recipe that does without."""

    def __init__(self, model: str, step: int, why: str) -> None:
        super().__init__(
            f"models.{model}.swaps.{step}: {why}; repair the directory, or take the swap out of the run's recipe.yaml"
        )
        self.swap = model, step


class Teachers:
    """`student` are the student's versions, which live models share; averages travel by the same carrier. `vocabulary`
    is the models' common logit width. `recipe` says which swaps there are, and may be another later."""

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        vocabulary: int,
        learner: LearnerGroup,
        student: Versions,
        carrier: Carrier,
        watch: CanaryWatch,
    ) -> None:
        self.recipe = recipe
        self._pools = pools
        self._vocabulary = vocabulary
        self._learner = learner
        self._student = student
        self._heads: dict[str, tuple[int, int]] = {}  # version and oldest version that the learner was given last
        self._moving = {model: student for model in recipe.scored_with("live")}
        self._moving |= {model: Versions(learner, carrier, model, watch=watch) for model in recipe.scored_with("ema")}
        self._frozen = {
            model: Versions(learner, Directories(partial(self._directory, model)), model, watch=watch)
            for model in recipe.scored_with("frozen")
        }
        self._given = {model: pools.scorers[model].spec for model in self._frozen}  # before any swap

    def followers(self) -> list[tuple[Pool, Versions]]:
        """Pools of scorers, and the versions they pull."""
        return [(self._pools.scorers[model], versions) for model, versions in (self._moving | self._frozen).items()]

    async def aim(self, step: int) -> None:
        """Say which weights frozen models are to have at a step: who starts now starts with them."""
        for model in self._frozen:
            await self._aim(model, self.recipe.swap_at(model, step))

    async def start(self, step: int) -> None:
        """Bring everybody to the weights of a step, and give the learner its heads."""
        self._heads.clear()  # the learner is a new one
        await self.aim(step)
        for model, versions in self._frozen.items():
            await versions.pull_all(self._pools.scorers[model])
            await self._load_head(model, self.recipe.swap_at(model, step), oldest=0)
        await self._follow_student()

    async def publish(self, number: int) -> None:
        """Make the averages of the learner's weights current too, in its turn."""
        for versions in self._moving.values():
            if versions is not self._student:
                await versions.publish(number)

    async def follow(self, step: int) -> None:
        """Bring models to what they are to have at the coming step: the student's new version, its new average, or a
        directory that is swapped in. Raises SwapFailed."""
        await self._follow_student()
        for model, versions in self._frozen.items():
            assert versions.current is not None
            swap = self.recipe.swap_at(model, step)
            if versions.current.number != swap:
                await self._swap(model, versions, swap)
            await self._load_head(model, swap, oldest=self.recipe.swap_at(model, step - self.recipe.max_staleness - 1))

    async def _follow_student(self) -> None:
        assert self._student.current is not None
        number = self._student.current.number
        for model, versions in self._moving.items():
            await versions.pull_all(self._pools.scorers[model])
            await self._load_head(model, number, oldest=number - self.recipe.max_staleness - 1)

    async def _swap(self, model: str, versions: Versions, swap: int) -> None:
        """One member first: the others serve on until it has shown that the directory can be served."""
        pool = self._pools.scorers[model]
        try:
            await self._try_out(versions, swap, pool)
            await self._aim(model, swap)
            await versions.pull_all(pool)
        except (SwapRefused, MemberDied) as reason:
            raise SwapFailed(model, swap, str(reason)) from reason

    async def _try_out(self, versions: Versions, swap: int, pool: Pool) -> None:
        """Raises MemberDied when as many members as make DEATHS died of it, of those that lived when they were asked:
        replacements come up as they were."""
        for attempt in range(1, DEATHS + 1):
            try:
                return await versions.try_out(swap, pool, await pool.living())
            except MemberDied:
                if attempt == DEATHS:
                    raise

    async def _aim(self, model: str, swap: int) -> None:
        pool, recipe = self._pools.scorers[model], self.recipe
        pool.spec = (lambda _: scorer_spec(recipe, model, self._vocabulary, swap)) if swap else self._given[model]
        await self._frozen[model].publish(swap)

    def _directory(self, model: str, swap: int) -> str:
        return str(model_directory(self.recipe.path_of(model, swap)))

    async def _load_head(self, model: str, version: int, oldest: int) -> None:
        """Full-vocabulary targets travel as hidden states: the learner holds the head that they need. Those of versions
        before `oldest` are let go: nothing that they scored is still to be trained."""
        if self.recipe.support_of[model] != "full" or self._heads.get(model) == (version, oldest):
            return
        head, found = await self._pools.scorers[model].call("projection", returns=2, patience="living")
        if found != version:
            raise RuntimeError(f"scorer.{model} gave the head of version {found}, version {version} was published")
        try:
            await self._learner.load_projection(model, version, oldest, head)
            self._heads[model] = version, oldest
        except ValueLost:  # with the node of the scorer that gave it
            await self._load_head(model, version, oldest)
