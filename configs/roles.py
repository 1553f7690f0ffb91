"""The keys of each role: members, resources, engines, deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from configs.names.own_code import or_own
from configs.node import FromMemory, Members, Momentum, Node, NonNegative, Positive, Seconds
from configs.reward_rules import AnyRule, ProgramRule, component_names

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: the fastest that supports the model

Dtype = Literal["bfloat16", "float32", "auto"]  # auto: bfloat16 where the hardware computes it, else float32


Spreading = Literal["pack", "strict_pack", "spread", "strict_spread"]  # of a role's actors over nodes

_NAMED_OTHERWISE = {"CPU": "cpus", "GPU": "gpus", "memory": None, "object_store_memory": None}  # Ray's own resources


class Resources(Node):
    """What one actor of a role takes. `cpus` and `gpus` may be fractions; `threads` is the OpenMP pool; `custom` are
    resources that the cluster's nodes were started with, by name.

    `placement`: where the role's actors lie. `pack`: on few nodes; `strict_pack`: all on one; `spread`: on many nodes;
    `strict_spread`: each on a node of its own. Of the learner these are its ranks, of other roles their members.
    """

    cpus: Annotated[float, Field(ge=0.0)] = 0.5
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = 2
    labels: dict[str, str] = Field(default_factory=dict)
    custom: dict[str, Annotated[float, Field(gt=0.0)]] = Field(default_factory=dict)
    placement: Spreading = "pack"

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1 it must be whole; Ray gives a share of one GPU, or whole ones")
        return gpus

    @field_validator("custom")
    @classmethod
    def _leaves_rays_own_alone(cls, custom: dict[str, float]) -> dict[str, float]:
        for name in custom:
            if name in _NAMED_OTHERWISE:
                key = _NAMED_OTHERWISE[name]
                raise ValueError(f"{name} is Ray's own; {f'set {key}' if key else 'remove it'}")
        return custom


class RoleSize(NamedTuple):
    """What a role takes when a run starts: `members` of so many `actors`, each with `resources`. The number of members
    may change where it is `elastic`. `kinds`: its further members, by kind; their number stays."""

    members: int
    actors: int
    resources: Resources
    elastic: bool = True
    kinds: Mapping[str, RoleSize] = MappingProxyType({})

    @property
    def gpus(self) -> float:
        """GPUs of all members."""
        return self.members * self.actors * self.resources.gpus + sum(kind.gpus for kind in self.kinds.values())


def name_of(role: str, kind: str) -> str:
    """What the members of a kind are called, which is also their place in a recipe; `kind` "": the role's own."""
    return f"{role}.kinds.{kind}" if kind else role


def role_of(name: str) -> str:
    """The role of the members that are called so by `name_of`."""
    return name.partition(".kinds.")[0]


Share = Annotated[float, Field(gt=0.0, le=1.0)]
KindName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Kind(Node):
    """Further members of a role, of another size or in another place. What it leaves out, `members` aside, is the
    role's; `resources` are taken over key by key."""

    members: Members = 1
    resources: Resources = Resources()
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Share = 0.9
    tensor_parallel: Positive = 1


class RolloutKind(Kind):
    max_concurrent: FromMemory = 64


class ScorerKind(Kind):
    tokens_per_batch: FromMemory = 1024
    cache_tokens: NonNegative = 16384
    max_queued_tokens: Positive = 262_144


def _with_whole_kinds(tree: Any, cls: type[Kind]) -> Any:
    """A role's tree, unchecked, with the role's keys filled in for each kind that leaves them out. If one of these is
    wrong, the tree as it is, so that the error is reported once, for the role."""
    kinds = tree.get("kinds") if isinstance(tree, dict) else None
    if not isinstance(kinds, dict):
        return tree
    left_out = {key: tree[key] for key in cls.model_fields if key in tree and key != "members"}
    try:
        cls.model_validate(left_out)
    except ValidationError:
        return tree
    return tree | {"kinds": {name: _whole(kind, left_out) for name, kind in kinds.items()}}


def _whole(kind: Any, left_out: Mapping[str, Any]) -> Any:
    if not isinstance(kind, dict):
        return kind
    taken, own = left_out.get("resources"), kind.get("resources")
    merged = {"resources": taken | own} if isinstance(taken, dict) and isinstance(own, dict) else {}
    return {**left_out, **kind, **merged}


class Rollout(Node):
    """Student rollout members. `max_concurrent` bounds the responses one engine decodes at a time.

    `on_update`: at a weight update running responses continue (`keep`; every token carries its version), or end and are
    resampled (`abort`). `keep_key_values`: responses that continue keep the KV cache of the old weights instead of
    recomputing it. `carrier`: how versions reach the members: through Ray's object store, by CUDA IPC on one node, by
    NCCL from GPU to GPU, or by a class of the user's own. `kinds`: further members of another size or place, by name.
    """

    engine: Annotated[str, or_own("vllm")] = "vllm"
    carrier: Annotated[str, or_own("object_store", "ipc", "nccl")] = "object_store"
    members: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    max_context_tokens: Positive = 512
    max_concurrent: FromMemory = 64
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Share = 0.9
    tensor_parallel: Positive = 1
    eager: bool = True
    on_update: Literal["keep", "abort"] = "keep"
    keep_key_values: bool = False
    kinds: dict[KindName, RolloutKind] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete_kinds(cls, tree: Any) -> Any:
        return _with_whole_kinds(tree, RolloutKind)

    def of_kind(self, kind: str) -> Rollout:
        """The keys of a member of a kind; "": of the role's own."""
        return self.model_copy(update={"kinds": {}} | (dict(self.kinds[kind]) if kind else {}))

    @property
    def direct(self) -> bool:
        """Whether versions come from the learner's GPU, past the object store."""
        return self.carrier in ("ipc", "nccl")


class Server(Node):
    """A vLLM server that runs elsewhere and serves the scored model. `model`: what the server calls it; null: the only
    one that it serves. `token_file`: a file on the machines of driver and scorers that holds the server's API key.
    `max_concurrent`: responses that one member asks about at a time."""

    address: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$")]
    model: str | None = None
    token_file: Annotated[str, Field(pattern="^/")] | None = None
    max_concurrent: Positive = 64


class Scorer(Node):
    """Members that score responses under one teacher or reference. A request batch holds up to `tokens_per_batch`.

    `engine: server` asks a vLLM server that runs elsewhere; of the model's directory its members read nothing.
    `cache_tokens` bounds the KV cache between the segments of responses, prompts included; 0 keeps none.
    `score_cache_mib` bounds the cached scores of teachers' and datasets' own responses, which recur every epoch.
    `cache`: a folder on the members' machines in which these are kept across runs, `cache_gib` of them; of frozen
    weights, not on full support.
    `tensor_parallel`: GPUs of one vLLM engine.
    `turns`: scorers with the same name here share GPUs in turns; the members of one are awake, those of others sleep.
    `max_queued_tokens`: a member with this load gets no further request; while more tokens wait for each member,
    no response is sampled. `hedge_seconds`: a slower request is repeated on a second member, and the first answer
    counts; null never repeats. `kinds`: further members of another size or place, by name.
    """

    engine: Annotated[str, or_own("torch", "vllm", "server")] = "torch"
    server: Server | None = None
    members: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    tokens_per_batch: FromMemory = 1024
    cache_tokens: NonNegative = 16384
    score_cache_mib: NonNegative = 64
    cache: Annotated[str, Field(pattern="^/")] | None = None
    cache_gib: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 4.0
    max_queued_tokens: Positive = 262_144
    hedge_seconds: Seconds | None = None
    max_context_tokens: Positive = 1024
    kv_cache_gib: Positive = 1
    gpu_memory_fraction: Share = 0.9
    tensor_parallel: Positive = 1
    turns: Annotated[str, Field(min_length=1)] | None = None
    kinds: dict[KindName, ScorerKind] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete_kinds(cls, tree: Any) -> Any:
        return _with_whole_kinds(tree, ScorerKind)

    def of_kind(self, kind: str) -> Scorer:
        """The keys of a member of a kind; "": of the role's own."""
        return self.model_copy(update={"kinds": {}} | (dict(self.kinds[kind]) if kind else {}))

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM computes: its weights stay, and it gives log-probs of sampled tokens and of its own top k."""
        return self.engine in ("vllm", "server")


class Reward(Node):
    """Reward workers: the weighted sum of `rules`, plus `model_weight` times the score of the reward model in directory
    `model`: a sequence classifier with one output and the student's tokenizer, which reads up to `tokens_per_batch`
    tokens at a time, padding included."""

    engine: Annotated[str, or_own("rules")] = "rules"
    members: Members = 1
    resources: Resources = Resources(cpus=0.1, threads=1)
    rules: tuple[AnyRule, ...] = ()
    model: str | None = None
    model_weight: float = 1.0
    tokens_per_batch: Positive = 4096

    @model_validator(mode="after")
    def _names_its_components(self) -> Reward:
        component_names(self.rules, self.model is not None)
        return self

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the parts that a reward is the weighted sum of, the reward model's last."""
        return component_names(self.rules, self.model is not None)

    @property
    def runs_programs(self) -> bool:
        """Whether a rule runs programs of responses, in a sandbox."""
        return any(isinstance(rule, ProgramRule) for rule in self.rules)

    @property
    def gives_rewards(self) -> bool:
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
    """A value head's own AdamW, with the policy's betas, warm-up and decay; its gradient norm is clipped separately. A
    linear map that starts at zero needs a larger rate than a pretrained policy."""

    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-4
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0 does not clip


class Lora(Node):
    """Trains low-rank adapters instead of the weights: W + alpha / rank B A, with A [rank, in] and B [out, rank] for
    each linear layer that `targets` name; B starts at 0, and the base W stays as it is.

    `targets`: ends of module names, e.g. [q_proj, v_proj], or `all-linear`. `serving`: how a vLLM rollout uses a
    version: `adapter` by vLLM's own LoRA layers, `merged` into its weights; `auto`: adapter on GPUs, merged on a CPU.
    """

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 32.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    serving: Literal["auto", "adapter", "merged"] = "auto"

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank

    def merges(self, gpus: float) -> bool:
        """Whether a rollout with so many GPUs merges versions into its weights."""
        return self.serving == "merged" or (self.serving == "auto" and not gpus)


DATASET = RoleSize(1, 1, Resources(cpus=0.05, threads=1), elastic=False)  # the role that reads given responses


CHUNK_BYTES = 2**28


class Learner(Node):
    """DeepSpeed learner. `ranks` actors form one member. `tokens_per_chunk` bounds the [tokens, vocabulary] tensors;
    null: as many rows as CHUNK_BYTES hold in float32. A micro-batch of one chunk is not computed again in the backward
    pass.

    `packing`: several sequences in a row without padding. `auto`: if a probe finds that no sequence attends to another;
    true: always, and a model whose sequences leak is refused; false: never.

    `dropout`: train with the dropout of the student's configuration. Off by default, so that log-probs are those of the
    policy that sampled. `lora`: train adapters instead of the weights; null: all weights.
    """

    engine: Annotated[str, or_own("deepspeed")] = "deepspeed"
    ranks: Members = 1
    resources: Resources = Resources()
    dtype: Dtype = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu"] = "none"
    gradient_checkpointing: bool = False
    attention: Attention = "auto"
    packing: Literal["auto", True, False] = "auto"
    tokens_per_chunk: Positive | None = None
    dropout: bool = False
    lora: Lora | None = None
    optimizer: Optimizer
    value_head: ValueHead = ValueHead()

    def rows_per_chunk(self, vocabulary: int) -> int:
        """Rows of the largest [tokens, vocabulary] tensor."""
        return self.tokens_per_chunk or max(1, CHUNK_BYTES // (4 * vocabulary))

    @property
    def deepspeed_stage(self) -> int:
        """The ZeRO stage passed to DeepSpeed, at least 2 under bf16: stage 0 has no float32 gradients there, stage 1
        keeps them twice and cannot move states to the host, and stage 2 makes the same steps."""
        return max(2, self.zero_stage) if self.dtype == "bfloat16" else self.zero_stage


class EarlyStop(Node):
    """Cuts a response once `after_tokens` of it are scored and their mean log-ratio, teacher less sampler, is below
    `log_ratio` nats a token."""

    log_ratio: Annotated[float, Field(lt=0.0, allow_inf_nan=False)]
    after_tokens: Positive


class Stream(Node):
    """A block leaves a rollout member `coalesce_ms` after its first response, or with `coalesce_samples` of them."""

    coalesce_ms: Annotated[float, Field(ge=0.0)] = 20.0
    coalesce_samples: Positive = 64


class Deadlines(Node):
    """Seconds after which a member without an answer counts as hung and is replaced. `generate`: between two blocks,
    while responses are in flight; `start`: also a swap of weights; `load`: also accepting requests; `learn`: a step, an
    evaluation, a save. `transfer`: how long an end of a transfer by NCCL waits for the others before it lets go by
    itself."""

    start: Seconds = 900.0
    generate: Seconds = 1800.0
    score: Seconds = 600.0
    reward: Seconds = 300.0
    load: Seconds = 600.0
    learn: Seconds = 3600.0
    transfer: Seconds = 120.0

    def of(self, method: str) -> float:
        """The deadline of a call, seconds, by the method's name."""
        if method in _OF_TRANSFERS:
            return self.transfer + LETTING_GO
        return getattr(self, _DEADLINE_OF.get(method, method), self.learn)


_DEADLINE_OF = {"blocks": "generate", "projection": "load", "swap": "start", "canary": "score"} | dict.fromkeys(
    ("submit", "cut", "ping", "load_shared", "mint_group"), "load"
)
_OF_TRANSFERS = ("open_group", "join_group", "send_group", "receive")
LETTING_GO = 60.0  # seconds for an end to let go by itself, and for what a member does around a transfer


class Bounds(Node):
    """The least and most members that autoscaling may give a role."""

    min: Members
    max: Members

    @model_validator(mode="after")
    def _has_room(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self
