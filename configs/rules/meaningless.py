"""Combinations that contradict each other or have no effect: always refused, the first in the order below."""

from __future__ import annotations

from configs.node import START, STUDENT
from configs.objective import DATA, NONE, Route, Schedule
from configs.rules.of_adapters import OF_ADAPTERS
from configs.rules.of_carriers import OF_CARRIERS
from configs.rules.of_kinds import OF_KINDS
from configs.rules.of_roles import OF_ROLES
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe

VLLM_MAX_TOPK = 256  # log-probs that a vLLM request may ask for; without a limit one request may exhaust memory


def _unknown_models(recipe: Recipe) -> Refusal:
    if STUDENT not in recipe.models:
        return f"models: no model named {STUDENT!r}; add models.{STUDENT}.path"
    if recipe.models[STUDENT].weights != "frozen":
        return "models.student.weights: the student is what is trained; leave them frozen, its path is where it starts"
    known = [name for name in recipe.models if name != STUDENT]
    objective = recipe.objective
    wanted = {f"objective.target: {name!r}": name for name in objective.teachers}
    if objective.extrapolate:
        wanted["objective.extrapolate.base"] = objective.extrapolate.base
    if objective.reference:
        wanted["objective.reference.model"] = objective.reference.model
    for path, name in wanted.items():
        if name not in known:
            return f"{path} names no model ({name}); allowed: {[*known, DATA, NONE]}"
    for name in recipe.scorer:
        if name not in known:
            return f"scorer.{name}: no such model; allowed: {known}"
    return None


def _writers(recipe: Recipe) -> Refusal:
    if "teacher" in recipe.objective.sources and recipe.sampled_teacher is None:
        return "objective.prefix: 'teacher' has no model to write with; add one to models"
    return None


def _weighted_targets(recipe: Recipe) -> Refusal:
    target = recipe.objective.target
    if target == {}:
        return f"objective.target: names no model; give one, {DATA!r} or {NONE!r}"
    if isinstance(target, dict) and min(target.values()) <= 0.0:
        return "objective.target: a weight of 0 or less is no teacher; remove it, or give it a positive weight"
    return None


def _nothing_to_learn(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.target == NONE and not objective.rewarded:
        return (
            "objective.target: 'none' without outcome.weight leaves nothing to learn; name a teacher or set the weight"
        )
    if objective.target == DATA and objective.support != "sampled":
        return "objective.support: target: data is the response's own tokens; set support: sampled"
    if objective.target == DATA and objective.reverse_weight != 0.0:
        return "objective.reverse_weight: cross-entropy is forward KL to the data; set it to 0"
    if objective.target == DATA and (_clips(recipe) or objective.discount or objective.baseline != "none"):
        return "objective.clip: cross-entropy has no log-ratio; remove clip, discount and baseline"
    if objective.target == DATA and "student" in objective.sources and not _rejection_sampling(recipe):
        return (
            "objective.target: 'data' on the student's own samples has no gradient in expectation; set prefix: dataset "
            "or teacher, or keep rewarded samples only: outcome.combine: gate"
        )
    if _rejection_sampling(recipe) and not recipe.reward.gives_rewards:
        return "objective.outcome.combine: gate needs reward.rules or reward.model to select by"
    return None


def _clips_of_supports(recipe: Recipe) -> Refusal:
    objective, clip = recipe.objective, recipe.objective.clip
    if clip.log_ratio is not None and (not objective.teachers or objective.estimator != "reward"):
        return "objective.clip.log_ratio: bounds the log-ratio in estimator: reward to a teacher; remove it"
    if clip.log_ratio is not None and objective.distributional:
        return (
            "objective.clip.log_ratio: bounds the sampled log-ratio; remove it, set support: sampled, or use "
            "vocab_element or token_sum"
        )
    if (clip.vocab_element or clip.token_sum) and not objective.distributional:
        return "objective.clip: vocab_element and token_sum cut a divergence; they need support: topk or full"
    return None


def _axes_without_part(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if (objective.distributional or not objective.teachers) and (objective.estimator != "reward" or objective.discount):
        return (
            "objective.estimator, objective.discount: are of the sampled signal to a teacher; set support: sampled and "
            "name one in objective.target, or remove them"
        )
    if objective.baseline != "none" and objective.estimator != "reward":
        return "objective.baseline: is of the reward's signal; set estimator: reward, or baseline: none"
    if objective.baseline == "value" and not objective.teachers:
        return "objective.baseline: is of the signal to a teacher; for a reward set outcome.baseline: value"
    if objective.baseline == "value" and (objective.support != "sampled" or objective.outcome.baseline == "value"):
        return (
            "objective.baseline: 'value' is of the sampled signal, and there is one value head; set support: sampled "
            "and another outcome.baseline"
        )
    if objective.family == "power" and objective.clip.log_ratio is not None:
        return "objective.clip.log_ratio: the power family's signal is bounded and no log-ratio; remove it"
    if objective.loss and objective.teachers and _shaped(recipe):
        return (
            "objective.loss: decides by itself what becomes of log-probs; remove reverse_weight, family, clip, "
            "baseline and discount, or set them in your function"
        )
    if objective.baseline == "exact" and (not objective.teachers or objective.support != "full"):
        return "objective.baseline: 'exact' needs the teacher's whole distribution; set support: full"
    if objective.topk_of != "teacher" and objective.support != "topk":
        return f"objective.topk_of: {objective.topk_of!r} needs support: topk"
    if objective.tail != "bucket" and objective.support != "topk":
        return f"objective.tail: {objective.tail!r} needs support: topk"
    if objective.topk_of != "teacher" and recipe.sampling.top_p < 1.0:
        return "sampling.top_p: below 1 the sampler ranks only its nucleus; with topk_of: student or union set it to 1"
    if objective.topk_of != "teacher" and objective.sources != ("student",):
        return f"objective.topk_of: {objective.topk_of!r} is taken where the student samples; set prefix: student"
    if objective.loss and not objective.teachers:
        return "objective.loss: replaces the divergence to a teacher; name one in objective.target"
    if objective.loss and (objective.support == "sampled" and objective.estimator != "reward"):
        return "objective.estimator: objective.loss decides how the log-ratio is used; remove one of them"
    return None


def _families(recipe: Recipe) -> Refusal:
    objective, weight = recipe.objective, recipe.objective.reverse_weight
    if objective.family == "power" and weight != 1.0:
        return "objective.reverse_weight: the power family has no second direction; set it to 1"
    moves = isinstance(weight, Schedule)
    if objective.family == "jsd" and moves and ({weight.start, weight.end} & {0.0, 1.0}):
        return (
            "objective.reverse_weight: a jsd schedule that touches 0 or 1 jumps there (the divergence vanishes towards "
            "them and is a KL at them); keep it inside, or use family: linear"
        )
    if objective.scale == "unit" and objective.family != "jsd":
        return "objective.scale: 'unit' divides a jsd by its own weight; it needs family: jsd"
    if objective.family == "skew" and objective.alpha >= 1.0:
        return f"objective.alpha: {objective.alpha:g} skews the mixture beyond the student; keep it under 1"
    return None


def _estimators(recipe: Recipe) -> Refusal:
    """An estimator in the loss has one direction, whatever reverse_weight is."""
    objective = recipe.objective
    for estimator, direction, weight in (("k2_in_loss", "reverse", 1.0), ("k3_in_loss", "forward", 0.0)):
        if objective.estimator == estimator and (objective.reverse_weight != weight or objective.family != "linear"):
            return (
                f"objective.reverse_weight: {estimator} has the gradient of the {direction} KL alone; "
                f"set it to {weight:g}, with family: linear"
            )
    return None


def _extrapolations(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.extrapolate is None:
        return None
    if len(objective.teachers) != 1 or objective.support == "topk":
        return "objective.extrapolate: needs one teacher and support: sampled or full"
    if objective.support == "sampled" and (objective.reverse_weight != 1.0 or objective.family != "linear"):
        return (
            "objective.extrapolate: on sampled support the target is known up to its normaliser, which only the "
            "log-ratio reward (linear, reverse_weight: 1) does without; use support: full"
        )
    return None


def _self_distillation(recipe: Recipe) -> Refusal:
    for name in recipe.objective.teachers:
        model = recipe.models[name]
        own = model.template == recipe.models[STUDENT].template and not model.privileged
        if model.weights == "live" and own:
            return (
                f"models.{name}: live weights behind the student's own prompt are the student, nothing to learn; give "
                "it a privileged system or prompt, or weights: ema"
            )
    reference = recipe.objective.reference
    if reference and recipe.models[reference.model].weights == "live":
        return f"models.{reference.model}: a live reference holds back nothing; use weights: frozen or ema"
    for name in recipe.scored_models:
        scorer = recipe.scorer_of(name)
        if recipe.models[name].weights != "frozen" and scorer.is_vllm:
            return f"scorer.{name}.engine: {scorer.engine!r} keeps its weights; a moving teacher needs engine: torch"
    if recipe.sampled_teacher and recipe.models[recipe.sampled_teacher].weights != "frozen":
        return "objective.prefix: responses of a moving teacher cannot be kept; use a frozen teacher or prefix: student"
    return None


def _swaps(recipe: Recipe) -> Refusal:
    for name, model in recipe.models.items():
        if not model.swaps:
            continue
        if name not in recipe.scored_models:
            return f"models.{name}.swaps: no scorer serves it; allowed: {list(recipe.scored_models)}"
        if recipe.scorer_of(name).engine == "server":
            return f"models.{name}.swaps: its server keeps its weights; remove them, or use another engine"
        if model.weights != "frozen":
            return f"models.{name}.swaps: its {model.weights} weights follow the student; remove them, or freeze it"
        if name == recipe.sampled_teacher:
            return f"models.{name}.swaps: it also writes responses, and its writers keep their weights; remove them"
        if (last := max(model.swaps)) > recipe.run.steps:
            return f"models.{name}.swaps: {last} is beyond the last step, {recipe.run.steps}; name an earlier one"
    return None


def _end_tokens(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.end_tokens == "same":
        return None
    if not objective.teachers and recipe.sampled_teacher is None:
        return "objective.end_tokens: 'class' joins the student's with a target's, and there is none; set it to same"
    for name in objective.target_models:
        if recipe.scorer_of(name).is_vllm:
            return (
                f"scorer.{name}.engine: {recipe.scorer_of(name).engine!r} gives the mass of its likeliest tokens, and "
                "objective.end_tokens: class needs that of every end token; use engine: torch"
            )
    reference = objective.reference.model if objective.reference else None
    if reference in objective.target_models:
        return (
            f"objective.reference.model: {reference!r} is a target as well, and with end_tokens: class scores classes "
            "where a reference needs tokens; name its directory a second time in models"
        )
    return None


def _start_kl(recipe: Recipe) -> Refusal:
    objective, sampling, kind = recipe.objective, recipe.sampling, recipe.metrics.start_kl
    if kind is None:
        return None
    if recipe.models[START] != recipe.models[STUDENT] or START in objective.support_of:
        return f"models.{START}: with metrics.start_kl it is the student as it starts; give your model another name"
    if kind == "sampled" and "student" not in objective.sources:
        return "metrics.start_kl: 'sampled' reads what the student draws, and others write here; set it to exact"
    if kind == "sampled" and (sampling.temperature != 1.0 or sampling.top_p != 1.0):
        return (
            f"metrics.start_kl: at temperature {sampling.temperature:g}, top_p {sampling.top_p:g} 'sampled' reads "
            "tokens that are not drawn from the student; set it to exact"
        )
    return None


def _supports_of_engines(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    for name, support in recipe.support_of.items():
        engine = recipe.scorer_of(name).engine
        if not recipe.scorer_of(name).is_vllm:
            continue
        if support == "full":
            return f"scorer.{name}.engine: {engine!r} has no hidden states; support: full needs engine: torch"
        if support == "topk" and objective.topk_of != "teacher":
            return f"scorer.{name}.engine: {engine!r} ranks its own tokens; topk_of: {objective.topk_of} needs torch"
        if support == "topk" and objective.topk > VLLM_MAX_TOPK:
            return f"objective.topk: {objective.topk} exceeds the {VLLM_MAX_TOPK} of engine: {engine}; use torch"
    if objective.topk_of != "teacher" and objective.topk > VLLM_MAX_TOPK:
        return f"objective.topk: {objective.topk} exceeds the {VLLM_MAX_TOPK} that the rollout engine returns"
    return None


def _outcomes(recipe: Recipe) -> Refusal:
    objective, outcome = recipe.objective, recipe.objective.outcome
    if objective.rewarded and not recipe.reward.gives_rewards:
        return "objective.outcome.weight: no reward.rules to earn it; add a rule or a reward.model, or set it to 0"
    if objective.rewarded and "student" not in objective.sources:
        return "objective.outcome.weight: rewards need the student's own samples; set prefix: student"
    if outcome.baseline in ("mean", "rloo") and recipe.batch.samples_per_prompt == 1:
        return "objective.outcome.baseline: a group baseline needs batch.samples_per_prompt > 1, or baseline: none"
    if outcome.scale == "std" and recipe.batch.samples_per_prompt == 1:
        return "objective.outcome.scale: one sample has no spread; set batch.samples_per_prompt > 1, or scale: none"
    if outcome.scale == "std" and outcome.baseline == "value":
        return "objective.outcome.scale: 'std' is a group's, a value baseline looks at no group; set scale: none"
    if outcome.combine in ("sign", "gate") and outcome.baseline == "value":
        return f"objective.outcome.baseline: {outcome.combine!r} reads a response's advantage; use mean, rloo or none"
    if outcome.combine == "sign" and outcome.truncated == "mask":
        return "objective.outcome.truncated: under combine: sign there is no outcome term to mask; use as_zero"
    joins = outcome.combine != "add" and objective.target != DATA
    if joins and not (objective.rewarded and objective.teachers):
        return f"objective.outcome.combine: {outcome.combine!r} joins a teacher and a reward; it needs both"
    if outcome.combine == "gate" and objective.sources != ("student",):
        return (
            "objective.outcome.combine: 'gate' selects by advantage, which only the student's own samples have; set "
            "prefix: student"
        )
    plain = bool(objective.teachers) and objective.estimator == "reward" and objective.loss is None
    if outcome.combine == "sign" and (objective.distributional or not plain):
        return "objective.outcome.combine: 'sign' gives the log-ratio of the sampled token a sign; set support: sampled"
    if recipe.batch.updates > 1 and not objective.policy_gradient:
        return "batch.updates: more than one pass needs a sampled signal; this objective has no ratio to hold it"
    if objective.trust.kind != "none" and not objective.policy_gradient:
        return f"objective.trust.kind: {objective.trust.kind!r} bounds a policy gradient; this objective has none"
    return None


def _value_heads(recipe: Recipe) -> Refusal:
    head = recipe.learner.value_head
    if head != type(head)() and "value" not in recipe.objective.terms:
        return "learner.value_head: nothing reads its values; set baseline or outcome.baseline: value, or remove it"
    return None


def _references(recipe: Recipe) -> Refusal:
    objective, reference = recipe.objective, recipe.objective.reference
    if reference is None:
        return None
    if not objective.rewarded:
        return "objective.reference: holds back a reward; set outcome.weight, or make the model a target"
    routed = isinstance(objective.target, Route) and reference.model in objective.teachers
    if reference.placement == "exact" and routed and objective.support == "sampled":
        return "objective.reference.placement: 'exact' to one of the routed teachers needs support: full"
    if objective.outcome.combine == "sign" and reference.placement not in ("loss_k2", "exact"):
        return "objective.reference.placement: under combine: sign no reward is left to hold back; use loss_k2 or exact"
    return None


def _clips(recipe: Recipe) -> bool:
    clip = recipe.objective.clip
    return any(bound is not None for bound in (clip.log_ratio, clip.vocab_element, clip.token_sum))


def _shaped(recipe: Recipe) -> bool:
    """Some key shapes the divergence."""
    objective = recipe.objective
    kinds = (objective.reverse_weight, objective.family, objective.baseline, objective.discount)
    return _clips(recipe) or kinds != (1.0, "linear", "none", 0.0)


def _rejection_sampling(recipe: Recipe) -> bool:
    objective = recipe.objective
    return objective.target == DATA and objective.outcome.combine == "gate"


def _dynamic_sampling(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if not recipe.batch.max_replacements:
        return None
    if not objective.reward_only:
        return (
            "batch.max_replacements: groups of equal rewards still learn from a target; set target: none, or remove it"
        )
    if objective.outcome.baseline not in ("mean", "rloo"):
        return (
            "batch.max_replacements: a group of equal rewards has no signal only where its mean is taken off; set "
            "outcome.baseline: mean or rloo, or remove it"
        )
    return None


MEANINGLESS: tuple[Rule, ...] = (
    _unknown_models,
    _writers,
    _weighted_targets,
    _nothing_to_learn,
    _clips_of_supports,
    _axes_without_part,
    _families,
    _estimators,
    _extrapolations,
    _self_distillation,
    _swaps,
    _end_tokens,
    _start_kl,
    _supports_of_engines,
    _outcomes,
    _value_heads,
    _references,
    _dynamic_sampling,
    *OF_ROLES,
    *OF_ADAPTERS,
    *OF_CARRIERS,
    *OF_KINDS,
)
