"""Combinations of roles and resources that cannot work; a part of MEANINGLESS."""

from __future__ import annotations

from collections import Counter

from configs.refusal import shown
from configs.roles.scorer import Scorer
from configs.rules.of_kinds import of_each_kind
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe


def _split_engines(recipe: Recipe) -> Refusal:
    scorers = {f"scorer.{model}": recipe.scorer_of(model) for model in recipe.scored_models}
    engines = {"rollout": recipe.rollout, "teacher_rollout": recipe.teacher_rollout, **scorers}
    for role, config in of_each_kind(engines):
        gpus, parallel = config.resources.gpus, config.tensor_parallel
        if parallel > 1 and config.engine == "torch":
            return f"{role}.tensor_parallel: {parallel} is for engine: vllm; a torch scorer has one GPU; remove it"
        if parallel > 1 and gpus != parallel:
            return f"{role}.tensor_parallel: {parallel} needs {role}.resources.gpus: {parallel}, found {gpus:g}"
    return None


def _servers(recipe: Recipe) -> Refusal:
    for model in recipe.scored_models:
        role, config = f"scorer.{model}", recipe.scorer_of(model)
        if (config.engine == "server") != (config.server is not None):
            wanted = "set server: {address: http://HOST:PORT}" if config.server is None else "set engine: server"
            return f"{role}.server: goes with engine: server, found engine: {config.engine}; {wanted}, or remove it"
        if config.engine == "server" and (config.resources.gpus or config.tensor_parallel > 1):
            key = "resources.gpus" if config.resources.gpus else "tensor_parallel"
            return f"{role}.{key}: the server has GPUs of its own, its members compute nothing; remove it"
    return None


def _caches(recipe: Recipe) -> Refusal:
    for model in recipe.scored_models:
        role, config, weights = f"scorer.{model}", recipe.scorer_of(model), recipe.models[model].weights
        if config.cache is None:
            if config.cache_gib != Scorer().cache_gib:
                return f"{role}.cache_gib: bounds a folder that {role}.cache names; name one, or remove it"
            continue
        if weights != "frozen":
            return f"{role}.cache: its {weights} weights follow the student, no score comes again; remove it"
        if config.engine not in ("torch", "vllm"):
            return f"{role}.cache: which weights {config.engine!r} serves is not known here; remove it"
        if recipe.support_of[model] == "full":
            return f"{role}.cache: keeps log-probs, full support takes hidden states; use sampled or topk, or remove it"
        if recipe.objective.sources == ("student",):
            return (
                f"{role}.cache: no response of the student comes again; remove it, or name teacher or dataset in "
                "objective.prefix"
            )
    return None


def _placements(recipe: Recipe) -> Refusal:
    for role, size in recipe.parts.items():
        if size.resources.placement == "strict_pack" and role != "learner":
            return (
                f"{role}.resources.placement: strict_pack is for the learner's ranks; members of {role} come and go "
                "alone; use pack, or name the node by labels"
            )
    return None


def _scorers_in_turns(recipe: Recipe) -> Refusal:
    """Turns need another scorer with the same name of turns, a share of a GPU for each, and engines that sleep."""
    named = Counter(scorer.turns for scorer in recipe.scorer.values() if scorer.turns)
    for model, scorer in recipe.scorer.items():
        key = f"scorer.{model}.turns"
        if scorer.turns and recipe.colocate:
            return f"{key}: under colocate all engines have one turn and the learner the other; remove one of the two"
        if scorer.turns and named[scorer.turns] == 1:
            return f"{key}: no other scorer names {shown(scorer.turns)}; give another the same name, or remove it"
        if scorer.turns and scorer.hedge_seconds is not None:
            return (
                f"scorer.{model}.hedge_seconds: a request that waits for its scorer's turn would be computed twice; "
                "remove it, or turns"
            )
    for models in recipe.scorers_in_turns.values():
        for model in models:
            role, scorer = f"scorer.{model}", recipe.scorer_of(model)
            if scorer.resources.gpus >= 1:
                return (
                    f"{role}.resources.gpus: {scorer.resources.gpus:g} leaves no room for others on its GPU; scorers "
                    f"that take turns need a share below 1"
                )
            if scorer.engine == "server":
                return f"{role}.turns: its GPUs are those of a server, which does not sleep; remove it"
    return None


def _colocations(recipe: Recipe) -> Refusal:
    """Turns need alternating phases, shares of GPUs, and a learner whose states can move to the host."""
    if not recipe.colocate:
        return None
    if recipe.max_staleness:
        return (
            f"colocate: learner and rollouts take turns, so nothing can run ahead; set max_staleness: 0, found "
            f"{recipe.max_staleness}, or give the learner GPUs of its own"
        )
    for role, size in recipe.roles.items():
        if size.resources.gpus >= 1:
            return (
                f"{role}.resources.gpus: {size.resources.gpus:g} leaves no room for others on its GPU; under colocate "
                "give each role a share below 1"
            )
    learner = recipe.learner
    if learner.ranks > 1 and 0 < learner.resources.gpus <= 0.5:
        return (
            f"learner.resources.gpus: two ranks of {learner.resources.gpus:g} may come to lie on one GPU, which NCCL "
            "refuses; under colocate give a rank more than half"
        )
    if learner.engine == "deepspeed" and learner.zero_stage == 0:
        return "learner.zero_stage: DeepSpeed moves no states under 0; under colocate use 1, or 2 or 3"
    if learner.engine == "deepspeed" and learner.zero_stage == 3 and learner.offload_optimizer == "none":
        return (
            "learner.offload_optimizer: under zero_stage: 3 DeepSpeed moves no optimizer but its own; under colocate "
            "set it to cpu, or use zero_stage: 2"
        )
    return None


def _streams(recipe: Recipe) -> Refusal:
    if recipe.early_stop and not recipe.stream_tokens:
        return "early_stop: judges a response by the segments scored so far; set stream_tokens, or remove it"
    if recipe.rollout.keep_key_values and recipe.rollout.on_update == "abort":
        return "rollout.keep_key_values: under on_update: abort no running response has any left; use on_update: keep"
    return None


def _autoscales(recipe: Recipe) -> Refusal:
    members = recipe.elastic_roles
    for role, bounds in recipe.autoscale.items():
        if role not in members:
            return f"autoscale.{role}: no elastic role of this recipe; allowed: {[*members]}"
        if not bounds.min <= members[role] <= bounds.max:
            return (
                f"autoscale.{role}: {role}.members: {members[role]} is outside [{bounds.min}, {bounds.max}]; start "
                "with a number inside"
            )
    return None


def _contexts(recipe: Recipe) -> Refusal:
    response = recipe.sampling.max_response_tokens
    if response >= recipe.rollout.max_context_tokens:
        return (
            f"sampling.max_response_tokens: {response} leaves no room for a prompt in "
            f"rollout.max_context_tokens: {recipe.rollout.max_context_tokens}"
        )
    if recipe.sampled_teacher and response >= recipe.teacher_rollout.max_context_tokens:
        return (
            f"sampling.max_response_tokens: {response} leaves no room for a prompt in "
            f"teacher_rollout.max_context_tokens: {recipe.teacher_rollout.max_context_tokens}"
        )
    length = recipe.objective.length
    if length and length.caps[-1] > response:
        return (
            f"objective.length.caps: {length.caps[-1]} exceeds sampling.max_response_tokens: {response}, for which "
            "room is made; raise that"
        )
    if length and length.gate and length.gate.eval_length > response:
        return f"objective.length.gate.eval_length: {length.gate.eval_length} exceeds sampling.max_response_tokens"
    if length and length.gate and recipe.data.heldout is None:
        return "objective.length.gate: the entropy is measured on held-out prompts; give data.heldout"
    if length and length.gate and (recipe.sampling.temperature, recipe.sampling.top_p) != (1.0, 1.0):
        return (
            "objective.length.gate: the entropy is that of responses sampled at temperature 1; set "
            "sampling.temperature: 1.0 and top_p: 1.0, or remove the gate"
        )
    return None


OF_ROLES: tuple[Rule, ...] = (
    _servers,
    _split_engines,
    _caches,
    _placements,
    _scorers_in_turns,
    _colocations,
    _streams,
    _autoscales,
    _contexts,
)
