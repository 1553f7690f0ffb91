"""Bytes that a run takes, from its recipe and the headers of its models' files. Pure.

Payloads are upper bounds: every response has the length of its cap and follows the longest prompt. Checkpoints and
exports are exact to a percent. Memory is a lower bound: weights, optimizer and KV caches, without the engines' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from configs.node import STUDENT
from configs.roles.learner import Learner
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.roles.sizes import name_of
from configs.schema import SHOWN, Recipe
from orchestrator.preflight.comparison import GIB, MIB

WIDTH = {"bfloat16": 2, "float32": 4}  # bytes a number
SAMPLE_BYTES = 144  # of a row beside its tokens: ids, seed, spans, offsets
SCORE_BYTES = 64  # of a row beside its tokens, at most by the wire's contract


@dataclass(frozen=True)
class Size:
    """A model's parameters, width of its hidden states, and numbers in the KV cache for a token over all layers (None
    if the configuration does not say). Of a student with adapters also the numbers in these, and in the weights that
    they adapt; None: all is trained. `layers` and `layer`: see layer_numbers; None if unknown."""

    parameters: int
    hidden: int
    key_values: int | None
    adapters: int | None = None
    adapted: int | None = None
    layers: int | None = None
    layer: int | None = None

    @property
    def trained(self) -> int:
        return self.parameters if self.adapters is None else self.adapters


@dataclass(frozen=True)
class Extent:
    """What sizes depend on beside the recipe: tokens of the longest prompt under the student, number of held-out
    prompts, the models' common logit width, bytes of a weight version, parameters of the student."""

    longest_prompt: int
    heldout: int
    vocabulary: int
    version_bytes: int
    parameters: int


@dataclass(frozen=True)
class Planned:
    """Upper bounds of bytes in object stores at a time. `version`: one weight version; `versions`: all `alive`
    ones; `file`: what a vLLM rollout writes to shared memory to load one; `samples`, `scores` (by model): all responses
    in flight; `projections`: LM heads of models on full support."""

    version: int
    versions: int
    alive: int
    file: int
    samples: int
    scores: Mapping[str, int]
    projections: Mapping[str, int]

    @property
    def payloads(self) -> int:
        return self.samples + sum(self.scores.values()) + sum(self.projections.values())


def sample_bytes(prompt_tokens: int, response_tokens: int, topk: int = 0) -> int:
    """Bytes of a row of a samples payload: 4 a prompt token; id, log-prob and version of a response token 4 each, and 4
    for each of the student's own top k; 144 a row."""
    return 4 * prompt_tokens + (12 + 4 * topk) * response_tokens + SAMPLE_BYTES


def score_bytes(support: str, response_tokens: int, topk: int = 0, hidden: int = 0, dtype: str = "float32") -> int:
    """Bytes of a row of a scores payload: 4 a token on sampled support, 6k + 8 on topk, 4 + width x bytes of `dtype` on
    full; 64 a row."""
    token = {"sampled": 4, "topk": 6 * topk + 8, "full": 4 + hidden * WIDTH[dtype]}[support]
    return token * response_tokens + SCORE_BYTES


def checkpoint_bytes(size: Size, learner: Learner, averages: int = 0) -> int:
    """Bytes that DeepSpeed writes. For each trained parameter: weights in the learner's dtype (none under ZeRO-3, which
    saves the master copy only), a float32 master copy (none under ZeRO-0 in float32) and two float32 moments under
    AdamW. And 4 for each number of an average: of all weights, or of those that adapters adapt."""
    weights = 0 if learner.zero_stage == 3 else WIDTH[learner.dtype]
    averaged = size.parameters if size.adapted is None else size.adapted
    return size.trained * (weights + _optimizer_bytes(learner)) + 4 * averages * averaged


def export_bytes(parameters: int, dtype: str) -> int:
    """Bytes of the exported model: weights in the learner's dtype."""
    return parameters * WIDTH[dtype]


def rank_bytes(size: Size, learner: Learner) -> int:
    """Lower bound of a CPU rank's memory: weights in the learner's dtype, and of what is trained float32 gradients,
    master copy and moments. ZeRO-1 shards the last two over the ranks, ZeRO-2 also gradients, ZeRO-3 also weights; in
    bf16, 0 and 1 run as 2."""
    gradients = size.trained * 4 / (learner.ranks if learner.deepspeed_stage >= 2 else 1)
    return int(state_bytes(size, learner) + gradients)


def state_bytes(size: Size, learner: Learner) -> int:
    """Bytes that a rank keeps between steps, and moves to the host when it sleeps: `rank_bytes` without gradients."""
    stage, ranks = learner.deepspeed_stage, learner.ranks
    weights = (size.parameters + (size.adapters or 0)) * WIDTH[learner.dtype] / (ranks if stage == 3 else 1)
    return int(weights + size.trained * _optimizer_bytes(learner) / (ranks if stage >= 1 else 1))


def gpu_rank_bytes(size: Size, learner: Learner) -> int:
    """Lower bound of a rank's GPU memory while it steps, without activations: `rank_bytes`, less what is offloaded."""
    return rank_bytes(size, learner) - _offloaded(size, learner)


def copy_bytes(recipe: Recipe, student: Size) -> int:
    """Bytes of the copy of the weights that rank 0 of the learner keeps on its GPU for its members to read."""
    return student.parameters * WIDTH[recipe.rollout.dtype] if recipe.rollout.carrier == "ipc" else 0


def head_bytes(recipe: Recipe, sizes: Mapping[str, Size], model: str, vocabulary: int) -> int:
    """Bytes of the LM heads of a model that is scored on full support: two of one that moves."""
    moves = model in {*recipe.scored_with("live"), *recipe.scored_with("ema")}
    return vocabulary * sizes[model].hidden * WIDTH[recipe.scorer_of(model).dtype] * (1 + moves)


def key_value_bytes(key_values: int, tokens: int, dtype: str) -> int:
    """Bytes of the KV cache of `tokens` tokens."""
    return key_values * tokens * WIDTH[dtype]


def recorded_bytes(recipe: Recipe, prompt_tokens: int, heldout: int) -> int:
    """Upper bound of the files under samples/: the rows of recorded steps, evaluations and greedy answers. A row is a
    sample, the student's and the teacher's log-probs (4 bytes a token each), and 32 bytes."""
    row = sample_bytes(prompt_tokens, recipe.sampling.max_response_tokens, _student_topk(recipe))
    row += 8 * recipe.sampling.max_response_tokens + 32
    steps, every = recipe.run.steps, recipe.evaluate.every
    evaluations = 2 + ((steps - 1) // every if every else 0)
    trained = recipe.samples_per_step * (steps // recipe.record.every)
    evaluated = evaluations * heldout * recipe.evaluate.samples_per_prompt + 2 * min(SHOWN, heldout)
    return row * (trained + evaluated) + kept_bytes(recipe) * (steps // recipe.record.every)


def kept_bytes(recipe: Recipe) -> int:
    """Upper bound of the scores that a recorded step keeps. On full support that is the recipe's own bound: hidden
    states are as wide as their model."""
    most, supports = recipe.record.scores_mib * MIB, recipe.objective.support_of.values()
    if "full" in supports:
        return most
    row = sum(score_bytes(s, recipe.sampling.max_response_tokens, _scored_topk(recipe)) for s in supports)
    return min(most, row * recipe.samples_per_step)


def planned(
    recipe: Recipe, sizes: Mapping[str, Size], version: int, prompt_tokens: int, heldout: int, vocabulary: int
) -> Planned:
    """What a run keeps in object stores.

    Weights: the current and the next version, of the student and of each average. Responses in flight:
    samples_per_step x (max_staleness + 1), with the rows of their segments, since a block is kept whole; and those of
    an evaluation, without segments. LM heads: vocabulary x width x bytes of the scorer's dtype; two for a live or ema
    model. `version` is in bytes, `prompt_tokens` the longest prompt, `heldout` the number of held-out prompts.
    """
    length = recipe.sampling.max_response_tokens
    trained = recipe.samples_per_step * (recipe.max_staleness + 1)
    evaluated = heldout * recipe.evaluate.samples_per_prompt
    topk = _scored_topk(recipe)

    def row_bytes(tokens: int) -> int:
        return sample_bytes(prompt_tokens, tokens, _student_topk(recipe))

    rows, scores, projections = _rows(recipe), {}, {}
    for model, support in ((model, recipe.support_of[model]) for model in recipe.scored_models):
        hidden, dtype = sizes[model].hidden, recipe.scorer_of(model).dtype
        whole = score_bytes(support, length, topk, hidden, dtype)
        scores[model] = trained * (whole + SCORE_BYTES * (len(rows) - 1)) + evaluated * whole
        if support == "full":
            projections[model] = head_bytes(recipe, sizes, model, vocabulary)
    stored, averages = recipe.stores_versions, len(recipe.scored_with("ema"))
    return Planned(
        version=version,
        versions=2 * (stored * version + averages * _average_bytes(recipe, sizes[STUDENT], version)),
        alive=2 * (stored + averages) if version else 0,
        file=0 if recipe.rollout.direct else _file_bytes(recipe, sizes[STUDENT], version),
        samples=trained * sum(map(row_bytes, rows)) + evaluated * row_bytes(length),
        scores=scores,
        projections=projections,
    )


def memory_bytes(recipe: Recipe, sizes: Mapping[str, Size], role: str) -> int:
    """Lower bound of one actor's host memory: an engine's weights and vLLM's KV cache, or a rank's `rank_bytes`. On
    GPUs: what it moves to the host when it sleeps, and an offloaded optimizer. 0 if unknown."""
    if role == "learner":
        learner, student = recipe.learner, sizes[STUDENT]
        if learner.resources.gpus and not recipe.colocate:
            return _offloaded(student, learner)
        return (state_bytes if learner.resources.gpus else rank_bytes)(student, learner)
    model, engine = engines(recipe).get(role, (STUDENT, None))
    in_turns = {f"scorer.{m}" for models in recipe.scorers_in_turns.values() for m in models}
    sleeps = recipe.colocate or role in in_turns
    if engine is None or (engine.resources.gpus and not sleeps):
        return 0
    cache = engine.kv_cache_gib * GIB if engine.engine == "vllm" and not engine.resources.gpus else 0
    return sizes[model].parameters * WIDTH[engine.dtype] + cache


def engines(recipe: Recipe) -> dict[str, tuple[str, Rollout | Scorer]]:
    """Roles, and kinds of their members, that hold a served model's weights, with the model's name and their keys."""
    found: dict[str, tuple[str, Rollout | Scorer]] = {"rollout": (STUDENT, recipe.rollout)}
    if recipe.sampled_teacher:
        found["teacher_rollout"] = (recipe.sampled_teacher, recipe.teacher_rollout)
    scorers = {model: recipe.scorer_of(model) for model in recipe.scored_models}
    found |= {f"scorer.{m}": (m, scorer) for m, scorer in scorers.items() if scorer.engine != "server"}
    return {
        name_of(role, kind): (model, engine.of_kind(kind))
        for role, (model, engine) in found.items()
        for kind in ("", *engine.kinds)
    }


def _offloaded(size: Size, learner: Learner) -> int:
    """Bytes of a GPU rank's optimizer states that lie on the host."""
    if not learner.resources.gpus or learner.offload_optimizer == "none":
        return 0
    return int(size.trained * _optimizer_bytes(learner) / (learner.ranks if learner.deepspeed_stage >= 1 else 1))


def _average_bytes(recipe: Recipe, student: Size, version: int) -> int:
    """Bytes of a version of an average: of adapters it holds the weights that they adapt."""
    return version if student.adapted is None else student.adapted * WIDTH[recipe.rollout.dtype]


def _file_bytes(recipe: Recipe, student: Size, version: int) -> int:
    """Bytes of the file by which a rollout loads a version: all weights, where it merges adapters."""
    lora, rollout = recipe.learner.lora, recipe.rollout
    merges = lora is not None and lora.merges(rollout.resources.gpus)
    return student.parameters * WIDTH[rollout.dtype] if merges and version else version


def _optimizer_bytes(learner: Learner) -> int:
    """Bytes of a parameter's float32 master copy and moments."""
    master = 0 if learner.zero_stage == 0 and learner.dtype == "float32" else 4
    return master + (8 if learner.optimizer.name == "adamw" else 0)


def _rows(recipe: Recipe) -> list[int]:
    """Response tokens in each row of a response at its cap: those of one segment, and in the last row all."""
    cap, every = recipe.sampling.max_response_tokens, recipe.stream_tokens
    return [every] * (-(-cap // every) - 1) + [cap] if every else [cap]


def _scored_topk(recipe: Recipe) -> int:
    """Number of top-k ids that a scorer returns at each position."""
    objective = recipe.objective
    return objective.topk * (2 if objective.topk_of == "union" else 1) + (objective.end_tokens == "class")


def _student_topk(recipe: Recipe) -> int:
    """Number of top-k ids that the student returns at each position."""
    return recipe.objective.topk if recipe.objective.topk_of != "teacher" else 0
