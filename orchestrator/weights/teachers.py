"""Scored models: the weights that they serve, and their LM heads that the learner needs.

A `live` model follows the student version by version; an `ema` model follows an average that the learner keeps. A
frozen model serves a directory's weights until another directory is swapped in. All have the weights of the coming step
before anything is scored for it.
"""

from __future__ import annotations

from functools import partial

from actors.wire.records import SwapRefused
from configs.load import model_directory
from configs.schema import Recipe
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.startup import RoleFailed, Spec
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.weights.canary_watch import CanaryWatch
from orchestrator.weights.carriers import Carrier, Directories
from orchestrator.weights.learner_group import LearnerGroup
from orchestrator.weights.versions import Versions


class SwapFailed(RoleFailed):
    """A directory could not be swapped in. Members that have it already are reset when the recipe drops the swap."""

    def __init__(self, model: str, step: int, why: str) -> None:
        super().__init__(
            f"models.{model}.swaps.{step}: {why}; repair the directory, or take the swap out of the run's recipe.yaml"
        )
        self.swap = model, step


class Teachers:
    """`student`: the student's versions, which live models share; averages travel by the same carrier. `recipe` holds
    the swaps and is replaced when they change."""

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        learner: LearnerGroup,
        student: Versions,
        carrier: Carrier,
        watch: CanaryWatch,
    ) -> None:
        self.recipe = recipe
        self._pools = pools
        self._learner = learner
        self._student = student
        self._heads: dict[str, tuple[int, int]] = {}  # model -> (version, oldest) that the learner has
        self._moving = {model: student for model in recipe.scored_with("live")}
        self._moving |= {model: Versions(learner, carrier, model, watch=watch) for model in recipe.scored_with("ema")}
        self._frozen = {
            model: Versions(learner, Directories(partial(self._directory, model)), model, watch=watch, idle=True)
            for model in recipe.scored_with("frozen")
        }
        startups = {model: pools.scorers[model].startup for model in self._frozen}
        self._original_specs = {model: (s.spec, s.kinds) for model, s in startups.items()}  # before any swap

    def followers(self) -> list[tuple[Pool, Versions]]:
        """Pools of scorers that pull weights, each with its versions."""
        return [(self._pools.scorers[model], versions) for model, versions in (self._moving | self._frozen).items()]

    async def set_swaps(self, step: int) -> None:
        """Set the directories of frozen models at a step. Members that start later start with them."""
        for model in self._frozen:
            await self._set_swap(model, self.recipe.swap_at(model, step))

    async def load(self, step: int) -> None:
        """Bring all scorers to the weights of a step, and give a new learner its heads."""
        self._heads.clear()  # a new learner has none
        await self.set_swaps(step)
        for model, versions in self._frozen.items():
            await versions.pull_all(self._pools.scorers[model])
            await self._load_head(model, self.recipe.swap_at(model, step), oldest=0)
        await self._follow_student()

    async def publish(self, number: int) -> None:
        """Publish the averages of the learner's weights. Called in its turn."""
        for versions in self._moving.values():
            if versions is not self._student:
                await versions.publish(number)

    async def follow(self, step: int) -> None:
        """Bring models to the weights of the coming step: the student's new version, its new average, or a swap. Raises
        SwapFailed."""
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
        """Swap one member first; the others follow once it can serve the directory."""
        pool = self._pools.scorers[model]
        try:
            await self._try_out(versions, swap, pool)
            await self._set_swap(model, swap)
            await versions.pull_all(pool)
        except (SwapRefused, MemberDied) as reason:
            raise SwapFailed(model, swap, str(reason)) from reason

    async def _try_out(self, versions: Versions, swap: int, pool: Pool) -> None:
        """Load a swap into one living member. Raises MemberDied after DEATHS members died of it; their replacements
        start with the old weights."""
        for attempt in range(1, DEATHS + 1):
            try:
                return await versions.try_out(swap, pool, await pool.living())
            except MemberDied:
                if attempt == DEATHS:
                    raise

    async def _set_swap(self, model: str, swap: int) -> None:
        spec, kinds = self._original_specs[model]
        if swap:
            spec, kinds = self._swapped(model, swap), {kind: self._swapped(model, swap, kind) for kind in kinds}
        startup = self._pools.scorers[model].startup
        startup.spec, startup.kinds = spec, kinds
        await self._frozen[model].publish(swap)

    def _swapped(self, model: str, swap: int, kind: str = "") -> Spec:
        recipe, spec = self.recipe.of_kind(f"scorer.{model}", kind), self._pools.swapped_scorer
        assert spec is not None
        return lambda _: spec(recipe, model, swap)

    def _directory(self, model: str, swap: int) -> str:
        return str(model_directory(self.recipe.path_of(model, swap)))

    async def _load_head(self, model: str, version: int, oldest: int) -> None:
        """Give the learner a model's LM head, if its targets travel as hidden states. Heads of versions before `oldest`
        are dropped: all that they scored is trained."""
        if self.recipe.support_of[model] != "full" or self._heads.get(model) == (version, oldest):
            return
        head, found = await self._pools.scorers[model].call("projection", returns=2, patience="living")
        if found != version:
            raise RuntimeError(f"scorer.{model} gave the head of version {found}, version {version} was published")
        try:
            await self._learner.load_projection(model, version, oldest, head)
            self._heads[model] = version, oldest
        except ValueLost:  # the node of the scorer died
            await self._load_head(model, version, oldest)
