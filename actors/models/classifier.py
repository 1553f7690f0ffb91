"""The scores of a sequence classifier with one output, many sequences at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from actors.models.causal_lm import classify

_AGREE = 1e-3  # scores of a model that can be padded differ by rounding; of one that cannot, by much more


def classify_all(model: Any, sequences: Sequence[Sequence[int]], tokens_per_batch: int) -> list[float]:
    """The output for each sequence of token ids. Sequences of like length are padded on the right to one batch of up to
    `tokens_per_batch` tokens. A model whose scores padding changes reads one sequence at a time."""
    if not _can_be_padded(model):
        return [classify(model, ids) for ids in sequences]
    scores = [0.0] * len(sequences)
    for places in batches([len(ids) for ids in sequences], tokens_per_batch):
        for place, value in zip(places, _padded(model, [sequences[place] for place in places]), strict=True):
            scores[place] = value
    return scores


def batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places of sequences, in order of length: as many as padded to the longest fit in the tokens, and at least one."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[place] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.inference_mode()
def _padded(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """transformers reads the score at the last token that is no padding. Where the configuration names no padding, it
    is read at the last one; then an id that ends no sequence serves as padding."""
    if len(sequences) == 1:
        return [classify(model, sequences[0])]
    text, longest = model.config.get_text_config(), max(map(len, sequences))
    named = text.pad_token_id
    padding = named if named is not None else _unused({ids[-1] for ids in sequences})
    ids = [[*ids, *[padding] * (longest - len(ids))] for ids in sequences]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]
    try:
        text.pad_token_id = padding
        output = model(
            input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
        )
    finally:
        text.pad_token_id = named
    return output.logits[:, 0].float().tolist()


def _unused(ids: set[int]) -> int:
    """The smallest id that is none of these."""
    return next(number for number in range(len(ids) + 1) if number not in ids)


def _can_be_padded(model: Any) -> bool:
    """Whether three sequences padded to one length score what each scores alone. Found once a model."""
    if not hasattr(model, "logratio_can_be_padded"):
        tokens = min(model.config.get_text_config().vocab_size, 97)
        probes = [
            [(7 * place + start) % tokens for place in range(length)] for start, length in ((3, 5), (11, 17), (29, 9))
        ]
        alone = torch.tensor([classify(model, ids) for ids in probes])
        apart = (torch.tensor(_padded(model, probes)) - alone).abs().max()
        model.logratio_can_be_padded = bool(apart <= _AGREE * (1.0 + alone.abs().max()))
        if not model.logratio_can_be_padded:
            print(
                f"the reward model reads one sequence at a time: padding changes its scores by {apart:.3g}", flush=True
            )
    return model.logratio_can_be_padded
