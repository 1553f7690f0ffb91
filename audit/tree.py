"""A language small enough to enumerate, of three tokens and one or two end tokens, and models of it.

Responses end with an end token or are truncated at `LENGTH` tokens. A model is its log-probs at each prefix. The
probabilities of the student and its older copy are multiples of 1/`PARTS`, so that a batch can hold every response in
exact proportion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

END, LENGTH, PARTS = 3, 3, 8  # ids from END on are end tokens
BATCH = PARTS**LENGTH  # responses of a batch in exact proportion


@dataclass(frozen=True)
class Tree:
    """R responses of N tokens in all, behind S prefixes.

    node [N]: the prefix before each token; token_ids, sequence, position [N]; lengths [R]; truncated [R] bool;
    children [S, V]: the prefix that a token leads to, -1 where the response ends. Parents come before children.
    """

    node: Tensor
    token_ids: Tensor
    sequence: Tensor
    position: Tensor
    lengths: Tensor
    truncated: Tensor
    children: Tensor

    @property
    def vocabulary(self) -> int:
        return self.children.shape[-1]

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(range(END, self.vocabulary))

    @property
    def prefixes(self) -> int:
        return len(self.children)

    @property
    def responses(self) -> int:
        return len(self.lengths)

    @property
    def last(self) -> Tensor:
        """Prefixes after which every token ends the response, [S] bool."""
        return (self.children < 0).all(-1)

    def of_tokens(self, logprobs: Tensor) -> Tensor:
        """Log-prob of each token of each response, [S, V] -> [N]."""
        return logprobs[self.node, self.token_ids]

    def of_responses(self, logprobs: Tensor) -> Tensor:
        """Log-prob of each response, [S, V] -> [R]."""
        return self.summed(self.of_tokens(logprobs))

    def summed(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each response, [N] -> [R]."""
        return values.new_zeros(self.responses).index_add(0, self.sequence, values)

    def visits(self, logprobs: Tensor) -> Tensor:
        """Probability that a response passes each prefix, [S, V] -> [S]; detached."""
        passed = self.of_responses(logprobs).detach().exp()[self.sequence]
        return passed.new_zeros(self.prefixes).index_add(0, self.node, passed)

    def rows(self, responses: Tensor) -> Tensor:
        """Places of the tokens of these responses, one after the other: [M] -> [tokens]."""
        first = self.lengths.cumsum(0) - self.lengths
        lengths = self.lengths[responses]
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return first[responses].repeat_interleave(lengths) + within


@dataclass(frozen=True)
class World:
    """student, older, data and models by name: [S, V] nats, float64; reward [R] of each response."""

    tree: Tree
    student: Tensor
    older: Tensor
    data: Tensor
    models: Mapping[str, Tensor]
    reward: Tensor


def world(names: tuple[str, ...], seed: int, ends: int = 1) -> World:
    """A random world with models of these names, in a language with `ends` end tokens."""
    random = torch.Generator().manual_seed(seed)
    tree = grow(ends)
    student = _shares(tree, random)
    return World(
        tree=tree,
        student=student,
        older=_drifted(student, random),
        data=any_model(tree, random),
        models={name: any_model(tree, random) for name in names},
        reward=torch.rand(tree.responses, generator=random, dtype=torch.float64),
    )


def any_model(tree: Tree, random: torch.Generator) -> Tensor:
    logits = torch.randn(tree.prefixes, tree.vocabulary, generator=random, dtype=torch.float64)
    return logits.log_softmax(-1)


def grow(ends: int = 1) -> Tree:
    """The language with `ends` end tokens; prefixes and their order do not depend on it."""
    vocabulary = END + ends
    prefixes = sorted(_prefixes(), key=len)
    index = {prefix: place for place, prefix in enumerate(prefixes)}
    responses = [(*prefix, t) for prefix in prefixes for t in range(vocabulary) if (*prefix, t) not in index]
    places = [(r, t) for r, response in enumerate(responses) for t in range(len(response))]
    return Tree(
        node=torch.tensor([index[responses[r][:t]] for r, t in places]),
        token_ids=torch.tensor([responses[r][t] for r, t in places]),
        sequence=torch.tensor([r for r, _ in places]),
        position=torch.tensor([t for _, t in places]),
        lengths=torch.tensor([len(response) for response in responses]),
        truncated=torch.tensor([response[-1] < END for response in responses]),
        children=torch.tensor([[index.get((*prefix, t), -1) for t in range(vocabulary)] for prefix in prefixes]),
    )


def _prefixes() -> Iterator[tuple[int, ...]]:
    layer: list[tuple[int, ...]] = [()]
    for _ in range(LENGTH):
        yield from layer
        layer = [(*prefix, t) for prefix in layer for t in range(END)]


def _shares(tree: Tree, random: torch.Generator) -> Tensor:
    """Log-probs [S, V] of random probabilities that are positive multiples of 1/PARTS."""
    spread = torch.ones(tree.prefixes, tree.vocabulary, dtype=torch.float64)
    drawn = spread.multinomial(PARTS - tree.vocabulary, replacement=True, generator=random)
    counts = spread.scatter_add(-1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return (counts / PARTS).log()


def _drifted(logprobs: Tensor, random: torch.Generator) -> Tensor:
    """The log-probs with 1/PARTS moved at each prefix from its likeliest token to another."""
    counts = (logprobs.exp() * PARTS).round()
    likeliest = counts.argmax(-1)
    vocabulary = logprobs.shape[-1]
    step = torch.randint(1, vocabulary, likeliest.shape, generator=random)
    moved = torch.stack([likeliest, (likeliest + step) % vocabulary], dim=-1)
    change = torch.tensor([[-1.0, 1.0]], dtype=torch.float64).expand(len(counts), -1)
    return (counts.scatter_add(-1, moved, change) / PARTS).log()
