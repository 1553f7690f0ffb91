"""How many tokens one forward pass takes: of a learner rank with its backward pass, and of a scorer.

Estimates of the memory that is left after weights, optimizer and the rows of logits. A token's activations are those of
`layer_numbers`: with gradient checkpointing a layer keeps its input alone, and one layer at a time is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from configs.roles.learner import Learner
from configs.roles.scorer import Scorer
from orchestrator.preflight.budgets.concurrency import GRAPHS
from orchestrator.preflight.budgets.room import TRUSTED, Room
from orchestrator.preflight.estimates import WIDTH, Size, gpu_rank_bytes, key_value_bytes

LEAST, STEP = 512, 256
MOST_LEARNED, MOST_SCORED = 32_768, 16_384  # beyond it a GPU's matrix products are not faster
ROWS = {"sampled": 3, "topk": 4, "full": 8}  # tensors of a chunk's [tokens, vocabulary] at a time, float32
SCORED_ROWS = 256 * 3 * 4  # bytes a logit: rows that a torch scorer reads at a time, tensors, float32
BUCKETS = 2 * 250_000_000 * 4  # bytes at most: two of DeepSpeed's buckets of gradients, float32


def learned(
    of: Size,
    learner: Learner,
    gpu: int,
    vocabulary: int,
    support: str,
    states: Iterable[int] = (),
    beside: Mapping[str, int] = MappingProxyType({}),
) -> Room | None:
    """Tokens of a micro-batch. `gpu`: bytes that the rank has; `states`: widths of the hidden states of models that are
    read over the whole vocabulary; `beside`: what else it holds, bytes by name. None if the student's layers are
    unknown."""
    if of.layers is None or of.layer is None:
        return None
    kept = of.layers * (of.hidden if learner.gradient_checkpointing else of.layer)
    head = 0 if of.adapters is not None else 4 * vocabulary * of.hidden
    return Room(
        have=int(TRUSTED * gpu),
        taken={
            "of weights, gradients and optimizer": gpu_rank_bytes(of, learner),
            "for gradients on the way": head + min(BUCKETS, 8 * of.trained),
            **beside,
            "for rows of logits": ROWS[support] * 4 * learner.rows_per_chunk(vocabulary) * vocabulary,
        },
        each=WIDTH[learner.dtype] * (kept + of.layer + 4 * of.hidden + sum(states)),
        unit="a token",
        least=LEAST,
        most=MOST_LEARNED,
        step=STEP,
    )


def scored(of: Size, scorer: Scorer, gpu: int, vocabulary: int, cached: bool) -> Room | None:
    """Tokens of a scorer's forward pass. `gpu`: bytes that a torch scorer has, or of one GPU of a vLLM scorer.
    `cached`: segments are scored, whose beginnings are kept. None if the model's layers are unknown, or its cache where
    one is kept."""
    vllm = scorer.engine == "vllm"
    if of.layer is None or (of.key_values is None and (vllm or cached)):
        return None
    token = key_value_bytes(of.key_values or 0, 1, scorer.dtype)
    kept = token * scorer.cache_tokens if cached and not vllm else 0
    rows = GRAPHS * scorer.tensor_parallel if vllm else SCORED_ROWS * vocabulary
    have = scorer.gpu_memory_fraction * gpu * scorer.tensor_parallel if vllm else TRUSTED * gpu
    return Room(
        have=int(have),
        taken={
            "of weights": of.parameters * WIDTH[scorer.dtype],
            "of cached beginnings": kept,
            "for a forward pass" if vllm else "for rows of logits": rows,
        },
        each=WIDTH[scorer.dtype] * (of.layer + 2 * of.hidden) + (token if vllm else 0),
        unit="a token",
        least=LEAST,
        most=MOST_SCORED,
        step=STEP,
    )
