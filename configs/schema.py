"""What a recipe means: every key, its type and its default. What is refused beyond that is in configs/rules/.

A recipe is one YAML file read into one frozen tree. Unknown keys, wrong types and combinations without a meaning are
refused before any actor starts, in one line that names the path, the value and what is allowed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.node import START, STUDENT, Members, Momentum, Node, NonNegative, Positive
from configs.objective import (
    Objective,
)

LOST_AT_MOST = 50  # steps between two checkpoints, unless a recipe says how many

Seconds = Annotated[float, Field(gt=0.0)]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: the fastest that computes the model
Dtype = Literal["bfloat16", "float32", "auto"]  # auto: bfloat16 where the hardware computes it, else float32


# what rendering a prompt sets itself; never an argument of a template
_RENDERING = {
    "conversation",
    "messages",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
}
_RENDERING |= {"padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"}
_RENDERING |= {"return_assistant_tokens_mask"}


class Run(Node):
    """Where a run lives and how long it is. `steps` counts learner updates. After a SIGTERM the step under way has
    `grace_seconds` to end and be saved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    root: str = "runs"
    seed: NonNegative = 0
    steps: Positive
    grace_seconds: Seconds = 20.0


class Model(Node):
    """A model directory in Hugging Face format (safetensors), or `bundled:NAME` for one that set-up converted.

    `system` and `prompt` make a privileged prompt: they replace the student's in front of the same response tokens.
    `prompt` is a format string over the fields of the prompt row, e.g. "{prompt}\\n\\nReference: {solution}".
    `template` holds arguments of the tokenizer's chat template, e.g. {enable_thinking: false}.
    `weights`: `frozen` are the directory's; `live` follow the student version by version and `ema` average it with
    `decay`: both start from the student's, so `path` is left out. `swaps`: from a step on, the weights of another
    directory, e.g. {121: /models/teacher-2}; `logratio swap` adds to them.
    """

    path: str | None = None
    system: str | None = None
    prompt: str = "{prompt}"
    template: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["frozen", "ema", "live"] = "frozen"
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    swaps: dict[Annotated[int, Field(ge=2)], str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        if (self.path is None) == (self.weights == "frozen"):
            raise ValueError("needs a path when its weights are frozen, and none when they follow the student")
        return self

    @field_validator("template")
    @classmethod
    def _is_the_templates(cls, template: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_RENDERING & template.keys()):
            raise ValueError(
                f"{', '.join(taken)}: is no argument of a chat template, or one that every prompt sets itself"
            )
        return template

    @property
    def privileged(self) -> bool:
        return self.system is not None or self.prompt != "{prompt}"


class Data(Node):
    """JSON lines, a row a prompt: {"prompt": text, ...}. `prefix: dataset` also needs "response" in each row.

    `responses` is the folder that keeps what a teacher wrote under `prefix: teacher`; null: in the user's cache.
    """

    prompts: str
    heldout: str | None = None
    shuffle: bool = True
    responses: str | None = None


class Batch(Node):
    """One learner step trains on prompts_per_step x samples_per_prompt samples, in `updates` passes over all of them,
    each an optimizer step. From the second pass on the policy has left the one that a trust region refers to."""

    prompts_per_step: Positive
    samples_per_prompt: Positive = 1
    tokens_per_microbatch: Positive = 512
    updates: Positive = 1


class Sampling(Node):
    """How the student samples. `max_response_tokens` includes the end token."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_response_tokens: Positive


class Resources(Node):
    """What one actor of a role takes. `cpus` and `gpus` may be fractions; `threads` is the OpenMP pool."""

    cpus: Annotated[float, Field(ge=0.0)] = 0.5
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = 2
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1 it must be whole; Ray gives a share of one GPU, or whole ones")
        return gpus


class Rollout(Node):
    """Student rollout members. `max_concurrent` bounds the responses one engine decodes at a time.

    `on_update`: across a weight update running responses go on (`keep`; every token carries its version), or end there
    and are sampled again (`abort`). `keep_key_values`: those that go on keep the key-values of the old weights instead
    of computing them anew.
    """

    engine: Literal["vllm", "simulated"] = "vllm"
    members: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    max_context_tokens: Positive = 512
    max_concurrent: Positive = 64
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    tensor_parallel: Positive = 1
    eager: bool = True
    on_update: Literal["keep", "abort"] = "keep"
    keep_key_values: bool = False


class Scorer(Node):
    """Members that score responses under one teacher or reference. A request batch holds up to `tokens_per_batch`.

    `cache_tokens` bounds the key-values kept between the segments of responses, prompts included; 0 keeps none.
    `score_cache_mib` bounds the scores kept of teachers' and datasets' own responses, which come again.
    `max_queued_tokens`: with so many tokens a member is given no further request, and while more wait for each member,
    nothing new is sampled. `hedge_seconds`: a request that takes longer is asked of a second member too, and the first
    answer counts; null never does.
    """

    engine: Literal["torch", "vllm", "simulated"] = "torch"
    members: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    tokens_per_batch: Positive = 1024
    cache_tokens: NonNegative = 16384
    score_cache_mib: NonNegative = 64
    max_queued_tokens: Positive = 262_144
    hedge_seconds: Seconds | None = None
    max_context_tokens: Positive = 1024
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9


class Rule(Node):
    """One rule reward. `length` counts response tokens (1 inside [low, high]); `overlong` is 0 up to `low` tokens and
    falls to -1 at `high` (DAPO); the others look at the text."""

    kind: Literal["length", "contains", "regex", "exact", "overlong"]
    weight: float = 1.0
    text: str | None = None  # contains, regex: the pattern
    field: str = "answer"  # exact: the row field that holds the expected text; dots lead into what is nested
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
    """Reward workers: the weighted sum of `rules`, plus the score of a reward model, a sequence classifier with one
    output that shares the student's tokenizer, where `model` names its directory."""

    engine: Literal["rules", "simulated"] = "rules"
    members: Members = 1
    resources: Resources = Resources(cpus=0.1, threads=1)
    rules: tuple[Rule, ...] = ()
    model: str | None = None
    model_weight: float = 1.0

    @property
    def earns(self) -> bool:
        return bool(self.rules) or self.model is not None


class Optimizer(Node):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


class ValueHead(Node):
    """Optimizer of a value head, beside the policy's: its gradient takes no part in the policy's norm. AdamW with the
    policy's betas, warm-up and decay. A linear map that starts at zero takes a larger rate than a pretrained policy."""

    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-4
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


class Learner(Node):
    """DeepSpeed learner. `ranks` actors form one member. `tokens_per_chunk` bounds the [tokens, vocabulary] tensors.

    `packing`: several sequences in a row without padding. `auto`: where a probe finds that none sees another; true: the
    same, and a model that leaks is refused; false: never.

    `dropout`: drop what the student's configuration says while it trains; by default nothing, so that log-probs are
    those of the policy that sampled.
    """

    engine: Literal["deepspeed", "simulated"] = "deepspeed"
    ranks: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu"] = "none"
    gradient_checkpointing: bool = False
    attention: Attention = "auto"
    packing: Literal["auto"] | bool = "auto"
    tokens_per_chunk: Positive = 256
    dropout: bool = False
    optimizer: Optimizer
    value_head: ValueHead = ValueHead()

    @property
    def deepspeed_stage(self) -> int:
        """The stage that DeepSpeed is asked for. Under bf16 its stage 0 takes no float32 gradients, and stage 1 keeps
        them twice and moves no states to the host: stage 2 takes the same steps, and shards gradients too."""
        return max(2, self.zero_stage) if self.dtype == "bfloat16" else self.zero_stage


class Simulated(Node):
    """Speeds of members with `engine: simulated`, which sleep instead of computing."""

    rollout_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0
    score_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0
    learn_seconds_per_token: Annotated[float, Field(ge=0.0)] = 0.0


class EarlyStop(Node):
    """A response is cut once `after_tokens` of it are scored and the mean log-ratio of the tokens scored so far, log p
    of the teacher less log q of the sampler, is below `log_ratio`, nats a token."""

    log_ratio: Annotated[float, Field(lt=0.0, allow_inf_nan=False)]
    after_tokens: Positive


class Stream(Node):
    """A block leaves a rollout member this many milliseconds after its first response, or when it holds this many."""

    coalesce_ms: Annotated[float, Field(ge=0.0)] = 20.0
    coalesce_samples: Positive = 64


class Deadlines(Node):
    """Seconds after which a member that has not answered counts as hung, and is replaced. `generate`: between two
    blocks, while it owes some; `start`: also to swap in other weights; `load`: also to take in what it is asked for;
    `learn`: an update, an evaluation, a save."""

    start: Seconds = 900.0
    generate: Seconds = 1800.0
    score: Seconds = 600.0
    reward: Seconds = 300.0
    load: Seconds = 600.0
    learn: Seconds = 3600.0

    def of(self, method: str) -> float:
        """The deadline of a call by the method's name."""
        return getattr(self, _DEADLINE_OF.get(method, method), self.learn)


_DEADLINE_OF = {"blocks": "generate", "projection": "load", "swap": "start", "canary": "score"} | dict.fromkeys(
    ("submit", "cut", "ping"), "load"
)


class Bounds(Node):
    """Members that autoscaling may give a role."""

    min: Members
    max: Members

    @model_validator(mode="after")
    def _has_room(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self


class Evaluate(Node):
    """Evaluation on the held-out prompts before the first step, after the last, and every `every` steps (0: never)."""

    every: NonNegative = 0
    samples_per_prompt: Positive = 1


class Checkpoint(Node):
    """A checkpoint every `every` steps (0: only when the run ends or is stopped; null: a fifth of the run, at most
    LOST_AT_MOST steps); the newest `keep` stay."""

    every: NonNegative | None = None
    keep: Positive = 1


class Metrics(Node):
    """What is logged beyond what the objective reads. `start_kl`: KL(student||its starting weights), which enters no
    loss: the mean k1 of the tokens that the student drew, or exact over the vocabulary. The weights are scored as the
    model `start`."""

    start_kl: Literal["sampled", "exact"] | None = None


class Record(Node):
    """Trained samples are written to samples/ every `every` steps."""

    every: Positive = 1


class Cluster(Node):
    """`address` joins a running Ray cluster; null starts one on this machine (RAY_ADDRESS also joins)."""

    address: str | None = None
    object_store_mib: Positive | None = None


class Recipe(Node):
    """The whole tree. `max_staleness` is in policy versions: 0 is strictly on-policy.

    `stream_tokens`: responses are handed on in segments of so many tokens while they are being sampled, and scored as
    they come; 0: whole. `early_stop` cuts those that their teacher would not have written.

    `on_stale`: what becomes of tokens that would be older. `wait`: the learner waits for them before they are;
    `mask_tokens`: they carry no loss; `drop`: the prompt is sampled again, which drops long responses first. null: wait
    where the objective reads whole responses, else mask_tokens.

    `colocate`: learner and engines share GPUs and take turns on them: engines sleep while the learner works, and the
    learner while they do.

    `teacher_rollout` are the members that sample from the first teacher, where `objective.prefix` names it. `autoscale`
    has an entry for each role (rollout, scorer.NAME, reward, ...) that may change its size by itself.
    """

    run: Run
    models: dict[str, Model]
    data: Data
    batch: Batch
    sampling: Sampling
    objective: Objective
    learner: Learner
    rollout: Rollout = Rollout()
    teacher_rollout: Rollout = Rollout()
    scorer: dict[str, Scorer] = Field(default_factory=dict)
    reward: Reward = Reward()
    simulated: Simulated = Simulated()
    stream: Stream = Stream()
    stream_tokens: NonNegative = 0
    early_stop: EarlyStop | None = None
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()
    record: Record = Record()
    deadlines: Deadlines = Deadlines()
    autoscale: dict[str, Bounds] = Field(default_factory=dict)
    cluster: Cluster = Cluster()
    colocate: bool = False
    max_staleness: NonNegative = 0
    on_stale: Literal["wait", "mask_tokens", "drop"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _knows_its_start(cls, tree: Any) -> Any:
        """The student's starting weights are a model like any other, where something is compared with them."""
        metrics, models = (tree.get(name) for name in ("metrics", "models")) if isinstance(tree, dict) else (None, None)
        if not isinstance(metrics, dict) or not isinstance(models, dict) or metrics.get("start_kl") is None:
            return tree
        return (
            tree if STUDENT not in models else tree | {"models": models | {START: models.get(START, models[STUDENT])}}
        )

    @property
    def scored_models(self) -> tuple[str, ...]:
        """Names of the models that score responses; empty for cross-entropy on a response's own tokens."""
        return tuple(self.support_of)

    @property
    def support_of(self) -> dict[str, str]:
        """What each model that scores is asked for, by the objective and the metrics: sampled | topk | full."""
        start = {"sampled": "sampled", "exact": "full"}.get(self.metrics.start_kl or "")
        return self.objective.support_of | ({START: start} if start else {})

    @property
    def sampled_teacher(self) -> str | None:
        """The model that writes responses under `prefix: teacher`: the first target, or the only model there is."""
        if "teacher" not in self.objective.sources:
            return None
        apart = (STUDENT, START) if self.metrics.start_kl else (STUDENT,)
        return next(iter((*self.objective.teachers, *(name for name in self.models if name not in apart))), None)

    @property
    def served_models(self) -> tuple[str, ...]:
        """Models that some member needs the files or the prompts of, the student apart."""
        writer = (self.sampled_teacher,) if self.sampled_teacher else ()
        return tuple(dict.fromkeys((*self.scored_models, *writer)))

    @property
    def age_policy(self) -> str:
        """`on_stale`, or what the objective makes of its absence."""
        return self.on_stale or ("wait" if self.objective.reads_whole_responses else "mask_tokens")

    @property
    def saved_every(self) -> int:
        """`checkpoint.every`, or what the length of the run makes of its absence; 0: never on the way."""
        every = self.checkpoint.every
        return min(LOST_AT_MOST, -(-self.run.steps // 5)) if every is None else every

    @property
    def elastic_roles(self) -> dict[str, int]:
        """Roles whose members may come and go in a live run, and how many each starts with. Rollouts are there where
        the student samples: its own prefixes, or the evaluation's."""
        sizes: dict[str, int] = {}
        if "student" in self.objective.sources or self.data.heldout is not None:
            sizes["rollout"] = self.rollout.members
        if self.sampled_teacher:
            sizes["teacher_rollout"] = self.teacher_rollout.members
        sizes |= {f"scorer.{model}": self.scorer_of(model).members for model in self.scored_models}
        return sizes | {"reward": self.reward.members}

    @property
    def resources_of_roles(self) -> dict[str, Resources]:
        """What one actor of each role takes that has any, the dataset's apart."""
        found = {"rollout": self.rollout.resources, "teacher_rollout": self.teacher_rollout.resources}
        found |= {f"scorer.{model}": self.scorer_of(model).resources for model in self.scored_models}
        found["reward"] = self.reward.resources
        return {role: found[role] for role in self.elastic_roles} | {"learner": self.learner.resources}

    def path_of(self, model: str, swap: int = 0) -> str:
        """A model's path, or the one swapped in for step `swap`; that of one that follows the student is the
        student's."""
        return self.models[model].swaps.get(swap) or self.models[model].path or str(self.models[STUDENT].path)

    def swap_at(self, model: str, step: int) -> int:
        """The swap that gave a model the weights that it has at a step; 0 before the first."""
        return max((first for first in self.models[model].swaps if first <= step), default=0)

    def scored_with(self, weights: str) -> tuple[str, ...]:
        """Scored models with `frozen`, `live` or `ema` weights."""
        return tuple(name for name in self.scored_models if self.models[name].weights == weights)

    def scorer_of(self, model: str) -> Scorer:
        return self.scorer.get(model, Scorer())

    @property
    def learner_temperature(self) -> float:
        """What the learner divides the student's logits by: 1, but for a reward alone."""
        return self.sampling.temperature if self.objective.reward_only else 1.0

    @property
    def samples_what_it_reads(self) -> bool:
        """The sampler's log-probs are of the distribution that the learner's are of: their ratio is that of two
        policies, and not of two temperatures."""
        return self.sampling.top_p == 1.0 and self.sampling.temperature == self.learner_temperature

    @property
    def samples_per_step(self) -> int:
        return self.batch.prompts_per_step * self.batch.samples_per_prompt
