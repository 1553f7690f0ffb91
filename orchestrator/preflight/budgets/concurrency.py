"""How many responses one vLLM engine decodes at a time: as many as its KV cache holds at their full length.

Then none is preempted, whose cache would be computed anew. Bytes, of all GPUs of the engine together.
"""

from __future__ import annotations

from configs.roles.rollout import Rollout
from orchestrator.preflight.budgets.room import Room
from orchestrator.preflight.comparison import GIB, size
from orchestrator.preflight.estimates import WIDTH, Size, key_value_bytes

MOST = 1024  # vLLM's own bound on large GPUs
GRAPHS = 2 * GIB  # of an engine's GPU: CUDA graphs and the activations of a forward pass
SAMPLER = 3 * 4  # bytes a logit of a response: float32 logits, their log-softmax, and the sorted copy


def responses(of: Size, engine: Rollout, gpu: int, tokens: int, vocabulary: int) -> Room | None:
    """`gpu`: bytes of one; `tokens`: of the longest response with its prompt. None if the model's cache is unknown."""
    if of.key_values is None:
        return None
    cache = key_value_bytes(of.key_values, tokens, engine.dtype)
    weights = (of.parameters + (of.adapters or 0)) * WIDTH[engine.dtype]
    return Room(
        have=int(engine.gpu_memory_fraction * gpu) * engine.tensor_parallel,
        taken={"of weights": weights, "for CUDA graphs": GRAPHS * engine.tensor_parallel},
        each=cache + SAMPLER * vocabulary,
        unit=f"a response of {tokens} tokens, {size(cache)} of it KV cache,",
        least=1,
        most=MOST,
        step=1,
    )
