"""What a recipe means, and what is refused. The only place that decides either.

A recipe is one YAML file read into one frozen tree. Unknown keys, wrong types and combinations without a meaning are
refused before any actor starts, in one line that names the path, the value and what is allowed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dtype = Literal["bfloat16", "float32", "auto"]  # auto: bfloat16 where the hardware computes it, else float32

STUDENT = "student"
VLLM_MAX_TOPK = 256  # cap on log-probs a vLLM request may ask for; unlimited would let one exhaust memory
DATA = "data"  # objective.target when the dataset's own tokens are the target


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Node):
    """Where a run lives and how long it is. `steps` counts learner updates."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    root: str = "runs"
    seed: NonNegative = 0
    steps: Positive


class Model(Node):
    """A model directory in Hugging Face format (safetensors), or `bundled:NAME` for one that set-up converted.

    `system` and `prompt` make a privileged prompt: they replace the student's in front of the same response tokens.
    `prompt` is a format string over the fields of the prompt row, e.g. "{prompt}\\n\\nReference: {solution}".
    """

    path: str
    system: str | None = None
    prompt: str = "{prompt}"


class Data(Node):
    """JSON lines, a row a prompt: {"prompt": text, ...}. `prefix: dataset` also needs "response" in each row."""

    prompts: str
    heldout: str | None = None
    shuffle: bool = True


class Batch(Node):
    """One learner step trains on prompts_per_step x samples_per_prompt samples."""

    prompts_per_step: Positive
    samples_per_prompt: Positive = 1
    tokens_per_microbatch: Positive = 512


class Sampling(Node):
    """How the student samples. `max_response_tokens` includes the end token."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_response_tokens: Positive


class Outcome(Node):
    """Outcome reward in the objective: weight * (reward - group baseline) on every response token."""

    weight: float = 0.0
    baseline: Literal["none", "mean", "rloo"] = "none"


class Objective(Node):
    """A point of the objective algebra; docs/objectives.md defines each axis.

    `reverse_weight` (lambda) weights REVERSE KL: lambda*KL(student||teacher) + (1-lambda)*KL(teacher||student).
    `clip` bounds the log-ratio (nats) before the signal is formed; a scalar c means [-c, c].
    `truncation` is the cap C of the truncated importance weight min(student/rollout, C); sampled support only.
    """

    prefix: Literal["student", "dataset"] = "student"
    target: str
    support: Literal["sampled", "topk", "full"] = "sampled"
    topk: Positive = 32
    reverse_weight: Fraction = 1.0
    clip: float | tuple[float, float] | None = None
    truncation: Annotated[float, Field(gt=0.0)] | None = 2.0
    logprob_floor: Annotated[float, Field(lt=0.0)] = -50.0
    outcome: Outcome = Outcome()
    normalise: Literal["token", "sequence"] = "token"

    @field_validator("clip", mode="before")
    @classmethod
    def _clip_is_no_switch(cls, clip: Any) -> Any:
        if isinstance(clip, bool):
            raise ValueError("needs a number of nats, or [low, high]")
        return clip

    @field_validator("clip")
    @classmethod
    def _clip_is_an_interval(cls, clip: float | tuple[float, float] | None) -> tuple[float, float] | None:
        bounds = (-clip, clip) if isinstance(clip, int | float) else clip
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError("needs low < high, or a positive number")
        return bounds

    @property
    def needs_scores(self) -> bool:
        return self.target != DATA


class Resources(Node):
    """What one actor of a role takes. `cpus` and `gpus` may be fractions; `threads` is the OpenMP pool."""

    cpus: Annotated[float, Field(ge=0.0)] = 0.5
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = 2
    labels: dict[str, str] = {}


class Rollout(Node):
    """Student rollout members. `max_concurrent` bounds the responses one engine decodes at a time."""

    engine: Literal["vllm", "simulated"] = "vllm"
    members: Positive = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    max_context_tokens: Positive = 512
    max_concurrent: Positive = 64
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    tensor_parallel: Positive = 1
    eager: bool = True


class Scorer(Node):
    """Members that score responses under one teacher or reference. A request batch holds up to `tokens_per_batch`."""

    engine: Literal["torch", "vllm", "simulated"] = "torch"
    members: Positive = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    tokens_per_batch: Positive = 1024
    max_context_tokens: Positive = 1024
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9


class Rule(Node):
    """One rule reward. `length` counts response tokens (1 inside [low, high]); the others look at the text."""

    kind: Literal["length", "contains", "regex", "exact"]
    weight: float = 1.0
    text: str | None = None  # contains, regex: the pattern
    field: str = "answer"  # exact: the row field that holds the expected text
    low: NonNegative = 0
    high: Positive = 1_000_000

    @model_validator(mode="after")
    def _has_its_pattern(self) -> Rule:
        if self.kind in ("contains", "regex") and not self.text:
            raise ValueError(f"a {self.kind} rule needs text")
        if self.kind == "regex":
            try:
                re.compile(self.text or "")
            except re.error as error:
                raise ValueError(f"{self.text!r} is no regular expression ({error})") from None
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}; no response could be that long")
        return self


class Reward(Node):
    engine: Literal["rules", "simulated"] = "rules"
    members: Positive = 1
    resources: Resources = Resources(cpus=0.1, threads=1)
    rules: tuple[Rule, ...] = ()


class Optimizer(Node):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


class Learner(Node):
    """DeepSpeed learner. `ranks` actors form one member. `tokens_per_chunk` bounds the [tokens, vocabulary] tensors."""

    engine: Literal["deepspeed", "simulated"] = "deepspeed"
    ranks: Positive = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu"] = "none"
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    packing: bool = True
    tokens_per_chunk: Positive = 256
    optimizer: Optimizer


class Simulated(Node):
    """Speeds of members with `engine: simulated`, which sleep instead of computing."""

    rollout_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0
    score_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0
    learn_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0


class Stream(Node):
    """A block leaves a rollout member this many milliseconds after its first response, or when it holds this many."""

    coalesce_ms: Annotated[float, Field(ge=0.0)] = 20.0
    coalesce_samples: Positive = 64


class Evaluate(Node):
    """Evaluation on the held-out prompts before the first step, after the last, and every `every` steps (0: never)."""

    every: NonNegative = 0
    samples_per_prompt: Positive = 1


class Checkpoint(Node):
    """A checkpoint every `every` steps (0: only when the run ends or is stopped); the newest `keep` stay."""

    every: NonNegative = 0
    keep: Positive = 1


class Record(Node):
    """Trained samples are written to samples/ every `every` steps."""

    every: Positive = 1


class Cluster(Node):
    """`address` joins a running Ray cluster; null starts one on this machine (RAY_ADDRESS also joins)."""

    address: str | None = None
    object_store_mib: Positive | None = None


class Recipe(Node):
    """The whole tree. `max_staleness` is in policy versions: 0 is strictly on-policy."""

    run: Run
    models: dict[str, Model]
    data: Data
    batch: Batch
    sampling: Sampling
    objective: Objective
    learner: Learner
    rollout: Rollout = Rollout()
    scorer: dict[str, Scorer] = {}
    reward: Reward = Reward()
    simulated: Simulated = Simulated()
    stream: Stream = Stream()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()
    cluster: Cluster = Cluster()
    max_staleness: NonNegative = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Recipe:
        for refuse in _REFUSALS:
            refuse(self)
        return self

    @property
    def scored_models(self) -> tuple[str, ...]:
        """Names of the models that score each response; empty for cross-entropy on a dataset."""
        return (self.objective.target,) if self.objective.needs_scores else ()

    def scorer_of(self, model: str) -> Scorer:
        return self.scorer.get(model, Scorer())

    @property
    def samples_per_step(self) -> int:
        return self.batch.prompts_per_step * self.batch.samples_per_prompt


def _refuse_unknown_models(recipe: Recipe) -> None:
    if STUDENT not in recipe.models:
        raise ValueError(f"models: no model named {STUDENT!r}; add models.{STUDENT}.path")
    known = [name for name in recipe.models if name != STUDENT]
    if recipe.objective.needs_scores and recipe.objective.target not in known:
        raise ValueError(f"objective.target: {recipe.objective.target!r} is no model; allowed: {[*known, DATA]}")
    for name in recipe.scorer:
        if name not in known:
            raise ValueError(f"scorer.{name}: no such model; allowed: {known}")


def _refuse_biased_estimators(recipe: Recipe) -> None:
    objective, sampling = recipe.objective, recipe.sampling
    if objective.target == DATA and (objective.prefix, objective.support) != ("dataset", "sampled"):
        raise ValueError("objective.target: 'data' needs prefix: dataset and support: sampled (cross-entropy)")
    if objective.target == DATA and (objective.reverse_weight or objective.clip or objective.outcome.weight):
        raise ValueError(
            "objective.reverse_weight: cross-entropy on data is forward KL; set it to 0, without clip and outcome"
        )
    if objective.prefix == "dataset" and objective.needs_scores and objective.support == "sampled":
        raise ValueError(
            "objective.support: 'sampled' with a teacher on dataset prefixes scores tokens the student did not draw; "
            "use topk or full, or target: data"
        )
    sampled_terms = objective.support == "sampled" or objective.outcome.weight != 0.0
    tempered = sampling.temperature != 1.0 or sampling.top_p < 1.0
    if objective.prefix == "student" and sampled_terms and tempered:
        raise ValueError(
            f"sampling: temperature {sampling.temperature}, top_p {sampling.top_p} bias sampled-token terms; "
            "use 1.0 and 1.0, or support: topk or full without outcome.weight"
        )
    if objective.outcome.weight and objective.prefix != "student":
        raise ValueError("objective.outcome.weight: rewards need the student's own samples; set prefix: student")
    if objective.support != "sampled" and objective.clip is not None:
        raise ValueError("objective.clip: bounds the sampled log-ratio; remove it, or set support: sampled")
    for name in recipe.scored_models:
        if recipe.scorer_of(name).engine != "vllm":
            continue
        if objective.support == "full":
            raise ValueError(f"scorer.{name}.engine: 'vllm' has no hidden states; support: full needs engine: torch")
        if objective.support == "topk" and objective.topk > VLLM_MAX_TOPK:
            raise ValueError(f"objective.topk: {objective.topk} exceeds the {VLLM_MAX_TOPK} of engine: vllm; use torch")


def _refuse_split_engines(recipe: Recipe) -> None:
    gpus, parallel = recipe.rollout.resources.gpus, recipe.rollout.tensor_parallel
    if parallel > 1 and gpus != parallel:
        raise ValueError(
            f"rollout.tensor_parallel: {parallel} needs rollout.resources.gpus: {parallel}, found {gpus:g}"
        )


def _refuse_small_contexts(recipe: Recipe) -> None:
    if recipe.sampling.max_response_tokens >= recipe.rollout.max_context_tokens:
        raise ValueError(
            f"sampling.max_response_tokens: {recipe.sampling.max_response_tokens} leaves no room for a prompt in "
            f"rollout.max_context_tokens: {recipe.rollout.max_context_tokens}"
        )


def _refuse_lone_groups(recipe: Recipe) -> None:
    if recipe.objective.outcome.weight and not recipe.reward.rules:
        raise ValueError("objective.outcome.weight: no reward.rules to earn it; add a rule, or set the weight to 0")
    if recipe.objective.outcome.baseline != "none" and recipe.batch.samples_per_prompt == 1:
        raise ValueError(
            "objective.outcome.baseline: a group baseline needs batch.samples_per_prompt > 1, or baseline: none"
        )


_REFUSALS = (
    _refuse_unknown_models,
    _refuse_biased_estimators,
    _refuse_split_engines,
    _refuse_small_contexts,
    _refuse_lone_groups,
)
