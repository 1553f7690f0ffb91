"""Plain transformers in float64, one response at a time: what the engines are held against. Nothing of the objectives'
code is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import build_tokenizer

Row = Mapping[str, Any]  # of samples/*.arrow
PerToken = Callable[[Row, Tensor], Tensor]  # a row, the student's log-probs [T, V] -> its loss [T]

END, IM_END, LETTER = 0, 2, 70  # <|end|>, <|im_end|>, and one that prompts may hold as well
CLASS = (END, IM_END, LETTER)


def instructed(model: Path, folder: Path) -> Path:
    """The same weights as those of an instruct model: it ends at two tokens, and its tokenizer names another one."""
    shutil.copytree(model, folder)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [END, LETTER]}))
    return folder


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()


def logprobs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """[T, V] of each token of a response, nats."""
    logits = model(torch.tensor([[*prompt, *response]])).logits
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def behind_system(row: Row, system: str) -> list[int]:
    """A row's prompt as a model reads it that has a system text of its own, in the tests' chat format."""
    tokenizer = build_tokenizer()
    question = tokenizer.decode(row["prompt_ids"]).split("user\n")[1].split("<|im_end|>")[0]
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]


def of_tokens(rows: Tensor, ids: Sequence[int]) -> Tensor:
    """[T, V] -> [T], of the token of each row."""
    return rows.gather(1, torch.tensor(ids)[:, None])[:, 0]


def of_outcomes(rows: Tensor, ids: Sequence[int]) -> Tensor:
    """[T, V] -> [T], of each token; of any end token the log of the whole class's mass."""
    mass = rows[:, list(CLASS)].exp().sum(-1).log()
    return torch.where(torch.tensor([i in CLASS for i in ids]), mass, of_tokens(rows, ids))


def outcomes(rows: Tensor) -> Tensor:
    """[T, V] -> [T, V - 2]: the class is one outcome, the last."""
    others = [i for i in range(rows.shape[-1]) if i not in CLASS]
    return torch.cat([rows[:, others], rows[:, list(CLASS)].exp().sum(-1, keepdim=True).log()], -1)


def kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q||p), [..., V] -> [...]."""
    return (q.exp() * (q - p)).sum(-1)


def descend(student: Any, rows: Sequence[Row], per_token: PerToken, rate: float) -> tuple[float, float]:
    """One step of SGD on the mean over all tokens, in place. Returns the loss and the gradient's norm before it."""
    tokens = sum(len(row["response_ids"]) for row in rows)
    terms = [per_token(row, logprobs(student, row["prompt_ids"], row["response_ids"])).sum() for row in rows]
    loss = torch.stack(terms).sum() / tokens
    parameters = list(student.parameters())
    gradient = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter -= rate * part
    return float(loss.detach()), float(torch.stack([part.square().sum() for part in gradient]).sum().sqrt())


def apart(one: Any, other: Any) -> float:
    """The distance between two models' parameters."""
    others = dict(other.named_parameters())
    parts = [(p - others[name]).detach().square().sum() for name, p in one.named_parameters()]
    return float(torch.stack(parts).sum().sqrt())
