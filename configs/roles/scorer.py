"""The keys of scorers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from configs.names.own_code import or_own
from configs.node import FromMemory, Members, Node, NonNegative, Positive, Seconds
from configs.roles.computing import Attention, Dtype
from configs.roles.kinds import KindName, ScorerKind, Share, with_whole_kinds
from configs.roles.sizes import Resources


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
        return with_whole_kinds(tree, ScorerKind)

    def of_kind(self, kind: str) -> Scorer:
        """The keys of a member of a kind; "": of the role's own."""
        return self.model_copy(update={"kinds": {}} | (dict(self.kinds[kind]) if kind else {}))

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM computes: its weights stay, and it gives log-probs of sampled tokens and of its own top k."""
        return self.engine in ("vllm", "server")
