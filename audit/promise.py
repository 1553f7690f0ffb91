"""The target that a recipe promises, as a function of the student; its gradient is the expected one."""

from __future__ import annotations

import torch
from torch import Tensor

from audit import targets
from audit.bench import GROUP, Bench
from configs.objective import DATA
from objectives import divergence
from objectives.objective import family, teacher_slots


def known(bench: Bench, student: Tensor) -> dict[str, Tensor]:
    """The KLs and the negative reward that exist here, by name, to be minimised. student [S, V] log-probs."""
    tree, found, outcomes = bench.outcome_tree, {}, bench.outcomes(student)
    teachers = bench.teachers or (
        [(1.0, bench.writer(next(iter(bench.mixing))))] if bench.config.target == DATA else []
    )
    own = visits(bench)

    if teachers:
        reverse, forward, whole_reverse, whole_forward = [], [], [], []
        for weight, p in teachers:
            reverse.append((weight, targets.token_kl(outcomes, p, 1.0, tree.visits(outcomes))))
            forward.append((weight, targets.token_kl(outcomes, p, 0.0, own)))
            whole_reverse.append((weight, targets.sequence_reverse_kl(tree, outcomes, p)))
            whole_forward.append((weight, targets.sequence_forward_kl(tree, outcomes, p)))
        found["token reverse KL"] = targets.weighted(reverse)
        found["sequence reverse KL"] = targets.weighted(whole_reverse)
        found["token forward KL"] = targets.weighted(forward)
        found["sequence forward KL"] = targets.weighted(whole_forward)
    found |= _on_supports(bench, student)
    rewarded = bench.config.rewarded or bench.whole
    return found | ({"reward (-J)": -_objective_of_reward(bench, student)} if rewarded else {})


def promised(bench: Bench, student: Tensor) -> tuple[str, Tensor] | None:
    """Description and value of the recipe's target; None where its terms combine to no known gradient."""
    config, dials = bench.config, bench.dials
    parts: list[tuple[str, float, Tensor]] = []
    if "distillation" in config.terms and dials.distillation:
        if config.outcome.combine in ("gate", "sign") or config.loss:
            return None
        parts.append((_divergence_name(bench), dials.distillation, _divergence(bench, student)))
    if "outcome" in config.terms and dials.outcome:
        parts.append(("-E[R]", dials.outcome * _shrink(bench), -_reward(bench, student)))
    if config.reference:
        parts.append(("beta KL to the reference", dials.beta, _held_back(bench, student)))
    name = " + ".join(name for name, _, _ in parts)
    return (name, targets.weighted([(weight, value) for _, weight, value in parts])) if parts else None


def visits(bench: Bench) -> Tensor:
    """Expected visits of each prefix by the recipe's responses, [S]."""
    parts = [share * bench.tree.visits(bench.writer(source)) for source, share in bench.mixing.items()]
    return torch.stack(parts).sum(0)


def _on_supports(bench: Bench, student: Tensor) -> dict[str, Tensor]:
    config = bench.config
    if len(bench.teachers) != 1 or config.topk_of == "union" or not (bench.whole or config.support == "topk"):
        return {}
    (slot,) = teacher_slots(config)
    support = bench.support(slot)
    q, p = (targets.merged(bench.outcomes(x), support) for x in (student, bench.model_of(slot)))
    own = visits(bench)
    return {
        "top-k reverse KL with its tail": targets.token_kl(q, p, 1.0, own),
        "top-k forward KL with its tail": targets.token_kl(q, p, 0.0, own),
    }


def _divergence_name(bench: Bench) -> str:
    config, weight = bench.config, bench.dials.reverse_weight
    if config.target == DATA:
        return "cross-entropy on the responses"
    if config.discount:
        return f"reverse KL with discount {config.discount:g}"
    if config.family == "power":
        return f"power divergence, alpha {config.alpha:g}"
    if config.family != "linear":
        return f"{config.family} with lambda {weight:g}"
    ends = {1.0: "token reverse KL", 0.0: "token forward KL"}
    return ends.get(weight, f"{weight:g} reverse + {1.0 - weight:g} forward KL")


def _divergence(bench: Bench, student: Tensor) -> Tensor:
    config, tree, outcomes = bench.config, bench.outcome_tree, bench.outcomes(student)
    if config.target == DATA:
        writers = [(share, bench.writer(source)) for source, share in bench.mixing.items()]
        return targets.weighted([(s, targets.token_kl(student, p, 0.0, tree.visits(p))) for s, p in writers])
    if config.discount:
        found = [(w, targets.discounted_reverse_kl(tree, outcomes, p, config.discount)) for w, p in bench.teachers]
    elif config.family == "linear":
        weight = bench.dials.reverse_weight
        found = [(w, targets.token_kl(outcomes, p, weight, visits(bench))) for w, p in bench.teachers]
    else:
        kind, weight = family(config), bench.dials.reverse_weight
        found = [
            (w, (visits(bench) * divergence.divergence(outcomes, p, weight, kind)).sum()) for w, p in bench.teachers
        ]
    return targets.weighted(found)


def _shrink(bench: Bench) -> float:
    """Scale of the mean gradient: (n - 1) / n where the group's mean includes the response itself."""
    outcome = bench.config.outcome
    return (GROUP - 1) / GROUP if outcome.baseline == "mean" and outcome.scale == "none" else 1.0


def _reward(bench: Bench, student: Tensor) -> Tensor:
    masked = bench.config.outcome.truncated == "mask"
    reward = torch.where(bench.tree.truncated, 0.0, bench.reward) if masked else bench.reward
    return targets.expected_reward(bench.tree, student, reward)


def _held_back(bench: Bench, student: Tensor) -> Tensor:
    """KL to the reference by placement: of whole responses where it is part of the reward, else by token."""
    reference = bench.config.reference
    assert reference is not None
    model = bench.world.models[reference.model]
    if reference.placement in ("reward_sum", "reward_token"):
        shrink = _shrink(bench) if reference.placement == "reward_sum" else 1.0
        return shrink * targets.sequence_reverse_kl(bench.tree, student, model)
    return targets.token_kl(student, model, 1.0, bench.tree.visits(student))


def _objective_of_reward(bench: Bench, student: Tensor) -> Tensor:
    """J = E[R] - beta KL(student||reference) over responses."""
    earned, reference = _reward(bench, student), bench.config.reference
    if reference is None:
        return earned
    held = targets.sequence_reverse_kl(bench.tree, student, bench.world.models[reference.model])
    return earned - bench.dials.beta * held
