"""The keys of rollout members."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.names.own_code import or_own
from configs.node import FromMemory, Members, Node, Positive
from configs.roles.computing import Dtype
from configs.roles.kinds import KindName, RolloutKind, Share, with_whole_kinds
from configs.roles.sizes import Resources


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
        return with_whole_kinds(tree, RolloutKind)

    def of_kind(self, kind: str) -> Rollout:
        """The keys of a member of a kind; "": of the role's own."""
        return self.model_copy(update={"kinds": {}} | (dict(self.kinds[kind]) if kind else {}))

    @property
    def direct(self) -> bool:
        """Whether versions come from the learner's GPU, past the object store."""
        return self.carrier in ("ipc", "nccl")
