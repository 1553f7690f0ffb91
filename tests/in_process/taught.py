"""Tiny models that can do something, badly: taught here in plain torch, for some seconds, as a start to make better."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.tiny import CHAT_TEMPLATE, SPECIAL

CONTEXT = 256
VOCABULARY = 1200
BATCH, RATE = 16, 6e-3


@dataclass(frozen=True)
class Lesson:
    """A chat, and answers to it: each as likely as any other in the end."""

    chat: Sequence[Mapping[str, str]]
    answers: Sequence[str]


def build_taught(folder: Path, lessons: Sequence[Lesson], steps: int, texts: Sequence[str] = (), seed: int = 0) -> Path:
    """Write model and tokenizer in Hugging Face format, after `steps` batches of drawn lessons. Its tokens are made of
    the lessons' texts, and of further `texts`, so that each is short."""
    from transformers import LlamaConfig, LlamaForCausalLM

    written = (text for lesson in lessons for text in (*(turn["content"] for turn in lesson.chat), *lesson.answers))
    tokenizer = _tokenizer([*written, *texts])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).float()
    _teach(model, tokenizer, lessons, steps, random.Random(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: Any, tokenizer: Any, lessons: Sequence[Lesson], steps: int, rng: random.Random) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(steps):
        drawn = [(lesson.chat, rng.choice(lesson.answers)) for lesson in rng.choices(lessons, k=BATCH)]
        ids, labels = _batch(tokenizer, drawn)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _batch(tokenizer: Any, drawn: Sequence[tuple[Any, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [rows, longest]; prompts and padding have the label -100, which is no loss."""
    pairs = []
    for chat, answer in drawn:
        prompt = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer)]
        pairs.append((encoded[0], [*encoded[1], tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for line, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[line, :end] = torch.tensor([*prompt, *answer])
        labels[line, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE of the texts, with chat markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[-1])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
