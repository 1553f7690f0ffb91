"""Named defects of a loss, each with an explanation and a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A `defect` makes the gradient differ from the promised one; a `warning` does so under conditions it names."""

    name: str
    severity: Literal["defect", "warning"]
    explanation: str
    remedy: str


def finding(name: str, cause: str = "") -> Finding:
    """A finding of the catalogue; `cause`: the recipe's keys that explain a chosen bias."""
    severity, explanation, remedy = CATALOGUE[name]
    return Finding(name, severity, explanation.format(cause=cause), remedy)


CATALOGUE: dict[str, tuple[Literal["defect", "warning"], str, str]] = {
    "no_signal": (
        "defect",
        "the expected gradient (of the teacher's term, if there are more) is zero: single responses' gradients cancel",
        "use the log-ratio as a detached reward of its own token, -sg(log p - log q) * log q, or the exact divergence",
    ),
    "ignores_teacher": (
        "defect",
        "the gradient is the same under another teacher, as where log q - log p is back-propagated directly",
        "detach the log-ratio and multiply it with log q, or use k2 (half its square) in the loss",
    ),
    "action_independent": (
        "defect",
        "the factor of log q depends on the prefix but not on the sampled token, so it acts as a baseline and cancels",
        "back-propagate through the divergence itself, or use the sampled token's own log-ratio",
    ),
    "wrong_direction": (
        "defect",
        "the gradient is that of the other direction of KL than claimed",
        "reverse KL is KL(student||teacher): -sg(log p - log q) * log q on samples; k3 in the loss is forward KL",
    ),
    "reverse_minus_forward": (
        "defect",
        "the gradient is that of reverse KL minus forward KL, as where k3 is the reward",
        "use k1 as the reward: A = log p - log q",
    ),
    "biased": (
        "defect",
        "the gradient's direction differs from the target's",
        "compare its terms with the target's gradient; remove terms that are not part of it",
    ),
    "biased_by_choice": (
        "warning",
        "the gradient's direction differs from the target's: {cause}",
        "accept the measured bias, or remove that from the recipe",
    ),
    "tail_dropped": (
        "defect",
        "no divergence: at student = teacher the gradient is not zero, as mass outside the support is not counted",
        "add one outcome for all other tokens (tail: bucket, objectives.support_kl)",
    ),
    "teacher_not_minimum": (
        "defect",
        "at student = teacher the expected gradient is not zero",
        "subtract the gradient at student = teacher; a divergence has its minimum there",
    ),
    "clamped_at_zero": (
        "defect",
        "the gradient is zero where the student has most mass on the teacher's support, though far from the teacher",
        "do not clamp: with one outcome for the tail the divergence is never negative (tail: bucket)",
    ),
    "support_blind": (
        "warning",
        "no gradient on tokens off the support, as where both are renormalised on it: mass there never comes back",
        "use a tail bucket, or add a term on the sampled token",
    ),
    "sign_flips": (
        "defect",
        "tokens on which student and teacher agree have a gradient: other tokens shift the signal, as in a z-score",
        "do not centre or whiten log-ratios; zero means agreement (baseline: exact centres each prefix on its own)",
    ),
    "no_staleness_correction": (
        "warning",
        "tokens of an older policy are weighted as if the student had drawn them; exp(S - sg S) is 1, not q/mu",
        "multiply by sg(min(exp(S - rollout_logprob), 2)), or keep max_staleness: 0",
    ),
    "local_denominator": (
        "defect",
        "two halves of a micro-batch do not sum to the whole: the denominator is the micro-batch's own",
        "return per-token losses [n], or weight each token by tokens.weights (1 / global count) and sum",
    ),
    "batch_statistics": (
        "defect",
        "a token's loss depends on the other tokens of its micro-batch",
        "use only a token's own response in its loss",
    ),
    "padding_in_loss": (
        "defect",
        "positions that carry no loss (tokens.on is False) change the gradient",
        "multiply by tokens.on and count only those",
    ),
    "nan_gradient": (
        "defect",
        "-inf among the teacher's log-probs (padding, or probability 0) gives a NaN gradient",
        "mask or clamp log-probs before they are multiplied or subtracted: torch.where after it does not help",
    ),
    "ragged_support": (
        "defect",
        "unused places of a support (id -1, log-prob -inf) change the gradient or fail",
        "clamp ids to 0 before gather and mask places with id -1",
    ),
    "certain_token_dropped": (
        "defect",
        "a token of probability 1 (log-prob exactly 0) is treated as padding",
        "mask by tokens.on, never by a value",
    ),
    "end_token_dropped": (
        "defect",
        "the end token gets no gradient, as under a mask by token id where padding and end share one",
        "mask by tokens.on, which comes from lengths",
    ),
}
