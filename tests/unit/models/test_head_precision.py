"""The head in bf16: log-probs of learner, torch scorer and projection against float64, and what its chunks leave."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.learning.student import Student, Targets
from actors.models import causal_lm, head_product
from actors.models.causal_lm import Pack
from actors.models.handling import Handling
from actors.models.head_product import product
from actors.scoring.torch_engine import TorchEngine
from actors.wire.records import ScoreRequest
from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.objective import Objective
from objectives.schedule import Dials
from objectives.tokens import Scores, Tokens

WIDTH, ROWS, VOCABULARY = 64, 300, 257  # rows of the head, of which the last are padding
DIALS = Dials(reverse_weight=1.0, beta=0.0, distillation=1.0, outcome=0.0)
SHAPES: list[dict[str, Any]] = [{}, {"logit_scale": 0.25}, {"logits_scaling": 2.0}, {"final_logit_softcapping": 30.0}]


class Flat(torch.nn.Module):
    """A model whose hidden states are its embeddings: what a head makes of them is all there is."""

    base_model_prefix = "model"

    def __init__(self, bias: bool = True, **config: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), config)()
        scale = config.get("logit_scale", 1.0) / config.get("logits_scaling", 1.0)
        self.handling = Handling(scale=scale, soft_cap=config.get("final_logit_softcapping"))
        self.model = torch.nn.Embedding(ROWS, WIDTH)
        self.head = torch.nn.Linear(WIDTH, ROWS, bias=bias)
        with torch.no_grad():
            self.head.weight.mul_(20.0)  # logits of several tens, where bf16 has steps of a quarter
            if bias:
                self.head.bias.normal_(0.0, 4.0)
        self.to(torch.bfloat16)
        self.model.forward = self._states  # type: ignore[method-assign]

    def _states(self, input_ids: Tensor, **_: Any) -> Any:
        states = torch.nn.functional.embedding(input_ids, self.model.weight)
        return type("Output", (), {"last_hidden_state": states})()

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"], autouse=True)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bf16 instructions and one without: each has a product of its own."""
    monkeypatch.setattr(head_product, "_cpu_has_bf16", lambda: request.param)


def tokens_of(count: int) -> Tokens:
    ones, ids = torch.ones(count), torch.arange(count) * 7 % VOCABULARY
    return Tokens(
        token_ids=ids,
        sequence=torch.zeros(count, dtype=torch.long),
        position=torch.arange(count),
        on=ones.bool(),
        weights={"distillation": ones / count},
        rollout_logprob=-ones,
        advantage=0 * ones,
        reward=0 * ones,
        drawn=ones.bool(),
    )


def packed(count: int) -> Pack:
    ids = torch.arange(count) * 3 % ROWS
    return Pack(ids[None], torch.arange(count)[None], torch.arange(count), tokens_of(count).token_ids)


def student_of(model: Flat, chunk: int, **settings: Any) -> Student:
    built = objective.build(ObjectiveConfig(target="data"))
    return Student(model, built, VOCABULARY, chunk, model.handling, **settings)


def exact(model: Flat, hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """[N, width] -> [N, V] log-probs of the same hidden states through the same head, in float64."""
    config, head = model.config, model.head
    bias = 0.0 if head.bias is None else head.bias.double()
    logits = (hidden.double() @ head.weight.double().t() + bias)[:, :VOCABULARY]
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return (logits / temperature).log_softmax(-1)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """1e-3 nats is what is promised; logits here reach 50, of which 16 bits keep 4e-4."""
    assert found.dtype == torch.float32
    allowed = 5e-4 if head_product._cpu_has_bf16() else 1e-4
    assert float((found - expected).detach().abs().flatten().quantile(0.99)) < allowed


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_learner_reads_the_log_probs_of_a_float64_head(shape: dict[str, float], bias: bool) -> None:
    model = Flat(bias, **shape)
    batch, targets = packed(200), Targets(tokens_of(200))
    _, _, streams = student_of(model, 64, temperature=0.7)(batch, targets, DIALS)
    expected = exact(model, causal_lm.hidden_states(model, batch, model.handling), temperature=0.7)
    assert_close(streams["logprob"], expected.gather(-1, batch.token_ids[:, None])[:, 0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_projection_gives_the_log_probs_of_a_float64_head(shape: dict[str, float], bias: bool) -> None:
    model = Flat(bias, **shape)
    hidden = causal_lm.hidden_states(model, packed(200), model.handling)
    head = causal_lm.projection_from(causal_lm.projection_of(model, VOCABULARY, model.handling), torch.device("cpu"))
    assert_close(head.logprobs(hidden), exact(model, hidden))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_torch_scorer_reads_the_log_probs_of_a_float64_head(shape: dict[str, float], bias: bool) -> None:
    engine, model = TorchEngine.__new__(TorchEngine), Flat(bias, **shape)
    engine._model, engine._vocabulary, engine._handling = model, VOCABULARY, model.handling
    batch = packed(200)
    hidden = causal_lm.hidden_states(model, batch, model.handling)
    with torch.no_grad():
        read = engine._read(hidden, batch.token_ids, batch.token_ids[:, None], ScoreRequest("topk", topk=8))
    expected = exact(model, hidden)
    assert_close(read["logprobs"], expected.gather(-1, batch.token_ids[:, None])[:, 0])
    assert_close(read["support_logprobs"], expected.gather(-1, read["support_ids"]))


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_head_of_another_dtype_than_its_hidden_states_is_widened(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hidden, weight, bias = torch.randn(5, WIDTH), torch.randn(9000, WIDTH), torch.randn(9000)  # more than a block
    hidden, weight = hidden.to(dtypes[0]), weight.to(dtypes[1])
    expected = hidden.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(product(hidden, weight, bias).double(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 64, 97), (17, 33, 101), (3, 2048, 7), (5, 576, 8200)], ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_bf16_product_keeps_16_bits(size: tuple[int, int, int], scale: float) -> None:
    """One token, odd widths, more rows than a block; logits from hundredths to thousands."""
    tokens, width, rows = size
    torch.manual_seed(tokens)
    hidden, weight = torch.randn(tokens, width).bfloat16(), (torch.randn(rows, width) * scale).bfloat16()
    expected = hidden.double() @ weight.double().t()
    assert (product(hidden, weight, None) - expected).abs().max() <= 2**-16 * expected.abs().max()


def test_the_heads_gradient_of_2048_chunks_is_the_sum_of_theirs_in_float64() -> None:
    count, model = 2048, Flat()
    batch, tokens, student = packed(count), tokens_of(count), student_of(model, 1)
    summed = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in model.head.parameters()]
    for row in range(count):
        model.zero_grad()
        alone = Pack(
            batch.ids[:, row, None], torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), tokens.token_ids[row, None]
        )
        student(alone, Targets(tokens[row : row + 1]), DIALS)[0].backward()
        for total, parameter in zip(summed, model.head.parameters(), strict=True):
            total += gradient_of(parameter)
    model.zero_grad()
    student(batch, Targets(tokens), DIALS)[0].backward()
    for total, parameter in zip(summed, model.head.parameters(), strict=True):
        assert relative(gradient_of(parameter), total) < 1e-5


def test_the_heads_gradient_is_that_of_a_float64_head() -> None:
    count, model = 2048, Flat()
    batch = packed(count)
    student_of(model, 64)(batch, Targets(tokens_of(count)), DIALS)[0].backward()
    wide = copy.deepcopy(model).double()
    hidden = causal_lm.hidden_states(wide, batch, wide.handling)
    (-exact(wide, hidden).gather(-1, batch.token_ids[:, None]).mean()).backward()
    for found, expected in zip(model.head.parameters(), wide.head.parameters(), strict=True):
        assert relative(gradient_of(found), gradient_of(expected)) < 5e-5
    rounding = 2**-7  # twice that of bf16, the dtype of the hidden states and of their gradient
    assert relative(gradient_of(model.model.weight).float(), gradient_of(wide.model.weight)) < rounding


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.dtype == torch.float32
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("support", "times"), [("sampled", 0), ("full", 4)])
def test_metrics_are_read_once_and_not_again_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, support: str, times: int
) -> None:
    """200 tokens in four chunks: the chunks are computed twice, their metrics once."""
    read: list[int] = []
    measured = Objective._measured

    def counted(self: Objective, logprobs: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        read.append(len(logprobs))
        return measured(self, logprobs, tokens)

    monkeypatch.setattr(Objective, "_measured", counted)
    model = Flat().float()
    config = ObjectiveConfig.model_validate({"target": "teacher", "support": support, "reverse_weight": 1.0})
    teacher = Scores(logprob=-torch.ones(200), logprobs=torch.randn(200, VOCABULARY).log_softmax(-1))
    tokens = dataclasses.replace(tokens_of(200), scores={"teacher": teacher})
    gradients = []
    for chunk in (50, 200):
        model.zero_grad()
        loss, _, _ = Student(model, objective.build(config), VOCABULARY, chunk, model.handling)(
            packed(200), Targets(tokens), DIALS
        )
        loss.backward()
        gradients.append(model.head.weight.grad)
        assert len(read) == times, "a chunk's metrics are read once"
        read.clear()
        times = times and 1
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
