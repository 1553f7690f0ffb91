"""Recipe to roles: the resources each one needs, its environment, and the specification of its members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.learning.compiled import own_folder
from actors.learning.learner import Learner
from actors.rewarding.reward import Reward
from actors.rollout.dataset import Dataset
from actors.rollout.rollout import Rollout
from actors.rollout.teacher_rollout import TeacherRollout
from actors.scoring.scorer import Scorer
from actors.shared_memory import shared_folder
from configs.load import cache_directory, model_directory
from configs.names.own_code import imported, is_own
from configs.node import STUDENT
from configs.roles.deadlines import Deadlines
from configs.roles.lora import Lora
from configs.roles.scorer import Scorer as ScorerConfig
from configs.roles.sizes import DATASET, Resources, name_of
from configs.schema import Recipe
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.startup import Spec
from orchestrator.pools.transport import GangSpec, Transport
from orchestrator.pools.waiting import WaitingLine


@dataclass(frozen=True)
class Demand:
    """What the members of one kind need of the cluster: `members` x `actors` bundles of CPUs and GPUs. `kind` "": those
    that the role calls its own."""

    role: str
    members: int
    actors: int
    resources: Resources
    kind: str = ""

    @property
    def name(self) -> str:
        return name_of(self.role, self.kind)

    @property
    def cpus(self) -> float:
        return self.of("CPU")

    @property
    def gpus(self) -> float:
        return self.of("GPU")

    def each(self, name: str) -> float:
        """What one actor takes of a resource, by Ray's name."""
        own = {"CPU": self.resources.cpus, "GPU": self.resources.gpus}
        return own[name] if name in own else self.resources.custom.get(name, 0.0)

    def of(self, name: str) -> float:
        """What they take of a resource, by Ray's name."""
        return self.members * self.actors * self.each(name)


@dataclass(frozen=True)
class MemberSpecs:
    """The member specification of each role. `scorer` takes the recipe, the model, the models' common logit width, and
    the step of the swap that gives the model its weights, 0 for its first ones."""

    rollout: Callable[[Recipe], GangSpec]
    teacher_rollout: Callable[[Recipe], GangSpec]
    scorer: Callable[[Recipe, str, int, int], GangSpec]
    reward: Callable[[Recipe], GangSpec]
    learner: Callable[[Recipe], GangSpec]
    dataset: Callable[[Recipe], GangSpec] = lambda recipe: GangSpec("dataset", Dataset, ((),), DATASET.resources)

    def of(self, role: str, kind: str, recipe: Recipe, vocabulary: int) -> Spec:
        """The specification of each member of a role's kind, by its number, before any swap."""
        made_by, (first, _, model) = recipe.of_kind(role, kind), role.partition(".")
        if first == "scorer":
            return lambda _: self.scorer(made_by, model, vocabulary, 0)
        return lambda _: getattr(self, first)(made_by)


def demands(recipe: Recipe) -> list[Demand]:
    """The demand of every role of a recipe and of its kinds, in the order of the data flow."""
    return [
        Demand(role, part.members, part.actors, part.resources, kind)
        for role, size in recipe.roles.items()
        for kind, part in {"": size, **size.kinds}.items()
    ]


def build_pools(
    recipe: Recipe, transport: Transport, vocabulary: int, logs: Path | None, members: MemberSpecs | None = None
) -> Pools:
    """The pools of a recipe, not started. `vocabulary` is the models' common logit width; `members` default to REAL."""
    specs = members or REAL
    scored = {f"scorer.{model}": recipe.scorer_of(model) for model in recipe.scored_models}

    def pool(role: str) -> Pool:
        more: dict[str, Any] = {}
        if scorer := scored.get(role):
            more = {"line": _line(scorer), "hedge": scorer.hedge_seconds}
        spec, *others = (specs.of(role, kind, recipe, vocabulary) for kind in ("", *recipe.roles[role].kinds))
        more["kinds"] = dict(zip(recipe.roles[role].kinds, others, strict=True))
        together = role == "learner"
        return Pool(role, transport, spec, starts_alone=not together, logs=logs, deadlines=_deadlines(recipe), **more)

    pools = {role: pool(role) for role in recipe.roles}
    return Pools(
        rollout=pools.get("rollout"),
        teacher_rollout=pools.get("teacher_rollout"),
        dataset=pools.get("dataset"),
        scorers={model: pools[f"scorer.{model}"] for model in recipe.scored_models},
        reward=pools["reward"],
        learner=pools["learner"],
        swapped_scorer=lambda recipe, model, swap: specs.scorer(recipe, model, vocabulary, swap),
    )


def _line(scorer: ScorerConfig) -> WaitingLine:
    return WaitingLine(scorer.max_queued_tokens, {name: kind.max_queued_tokens for name, kind in scorer.kinds.items()})


def _deadlines(recipe: Recipe) -> Deadlines:
    """A request to a reward worker has the time that its rules may take for each response, on top of its own."""
    seconds = sum(rule.longest(recipe.stream.coalesce_samples) for rule in recipe.reward.rules)
    return recipe.deadlines.model_copy(update={"reward": recipe.deadlines.reward + seconds})


def environment(resources: Resources, kv_cache_gib: int = 1, eager: bool = True) -> dict[str, str]:
    """Environment of one actor. OpenMP waits are passive: spinning threads of two engines on shared cores halve each
    other's speed."""
    variables = {
        "OMP_NUM_THREADS": str(resources.threads),
        "MKL_NUM_THREADS": str(resources.threads),
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONDONTWRITEBYTECODE": "",  # share the bytecode cache, or each process compiles vLLM again
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCH_EXTENSIONS_DIR": str(own_folder()),
    }
    if not resources.gpus:
        variables |= {
            "DS_ACCELERATOR": "cpu",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no processes of vLLM's own: each imports everything again
            "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        }
        if eager:  # else vLLM compiles one function that counts ranks: half a minute of the first run on a machine
            variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables


def _rollout(recipe: Recipe) -> GangSpec:
    config = recipe.rollout
    cls = _member_class(config.engine, Rollout)
    arguments = (config, _path(recipe, STUDENT), shared_folder(recipe.run.name, recipe.run.root), *_adapted(recipe))
    surroundings = environment(config.resources, config.kv_cache_gib, config.eager)
    return GangSpec("rollout", cls, (arguments,), config.resources, surroundings)


def _teacher_rollout(recipe: Recipe) -> GangSpec:
    config, writer = recipe.teacher_rollout, recipe.sampled_teacher
    assert writer is not None
    cls = _member_class(config.engine, TeacherRollout)
    shared = shared_folder(recipe.run.name, recipe.run.root)
    kept = recipe.data.responses or str(cache_directory() / "responses")
    arguments = (config, _path(recipe, writer), shared, kept)
    surroundings = environment(config.resources, config.kv_cache_gib, config.eager)
    return GangSpec("teacher_rollout", cls, (arguments,), config.resources, surroundings)


def _scorer(recipe: Recipe, model: str, vocabulary: int, swap: int) -> GangSpec:
    config = recipe.scorer_of(model)
    cls = _member_class(config.engine, Scorer)
    follows = recipe.models[model].weights != "frozen"
    arguments = (config, _path(recipe, model, swap), vocabulary, swap, *(_adapted(recipe) if follows else ()))
    surroundings = environment(config.resources, config.kv_cache_gib)
    return GangSpec(f"scorer.{model}", cls, (arguments,), config.resources, surroundings)


def _reward(recipe: Recipe) -> GangSpec:
    resources, model = recipe.reward.resources, recipe.reward.model
    cls = _member_class(recipe.reward.engine, Reward)
    arguments = (_path(recipe, STUDENT), model and str(model_directory(model)), recipe.reward.model_weight)
    arguments += (recipe.reward.tokens_per_batch, recipe.reward.runs_programs)
    return GangSpec("reward", cls, (arguments,), resources, environment(resources))


def _learner(recipe: Recipe) -> GangSpec:
    config = recipe.learner
    cls = _member_class(config.engine, Learner)
    arguments = tuple((rank, config.ranks) for rank in range(config.ranks))
    return GangSpec("learner", cls, arguments, config.resources, environment(config.resources))


def _adapted(recipe: Recipe) -> tuple[Lora, ...]:
    """A last argument for members that pull the student's versions, where those are adapters."""
    return () if recipe.learner.lora is None else (recipe.learner.lora,)


def _member_class(engine: str, built_in: type) -> type:
    """What a role's members are made of: a class of a user's own, with the same constructor, or the built-in one."""
    return imported(engine) if is_own(engine) else built_in


def _path(recipe: Recipe, model: str, swap: int = 0) -> str:
    """The directory of a model's weights; `swap` as in MemberSpecs."""
    return str(model_directory(recipe.path_of(model, swap)))


REAL = MemberSpecs(_rollout, _teacher_rollout, _scorer, _reward, _learner)
