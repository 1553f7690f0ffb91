"""Will distillation pay, and with which settings? Rules on what a probe measured. Pure.

Each rule holds one number against one threshold, says what to do where it does not hold, why, and which paper says so.
The papers publish findings, seldom thresholds: where `reason` says "ours", the number is a choice of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs.schema import Recipe
from orchestrator.surface.measuring.probed import Measured

DISTIL = "on-policy distillation"
COMPARE = "on-policy distillation, beside an arm on the starting student's responses"
SFT_FIRST = "SFT on the teacher's responses first, then on-policy distillation"
NOTHING = "no distillation: this teacher says what the student already does"
UNKNOWN = "unknown: too little was measured"


@dataclass(frozen=True)
class Rule:
    """`metric`, a field of Measured, must be `at_least` or `at_most` the bound. `advice`: where it is not; `settings`
    that do it, and `has`: whether a recipe has them."""

    name: str
    metric: str
    bound: float
    at_least: bool
    advice: str
    reason: str
    source: str
    settings: tuple[str, ...] = ()
    has: Callable[[Recipe], bool] = lambda recipe: False

    def holds(self, measured: Measured) -> bool | None:
        """None where the number is unknown."""
        value = getattr(measured, self.metric)
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


def _clips(recipe: Recipe) -> bool:
    clip = recipe.objective.clip
    return recipe.objective.support != "sampled" or clip.log_ratio is not None


RULES: tuple[Rule, ...] = (
    Rule(
        name="overlap",
        metric="topk_overlap",
        bound=0.6,
        at_least=True,
        advice="the two have other candidates for the next token; distil in steps",
        reason="Its successful run begins at 0.72 and ends above 0.91 with k = 16; where overlap begins low it "
        "stagnates, and SFT on the teacher's responses first raises it. Over 17 pairs overlap decides "
        "whether fresh responses beat those of the starting student. 0.6 is ours: 0.72 less room for "
        "other tokenizers and prompts.",
        source="arXiv 2604.13016, 3.1, 4 and 5.1; arXiv 2610.11291",
    ),
    Rule(
        name="mass",
        metric="topk_mass_student",
        bound=0.9,
        at_least=True,
        advice="the student spends its probability where the teacher has no candidate",
        reason="The shared tokens hold 97 to 99% of the mass where distillation works, and with prompts of the "
        "teacher's training overlap falls while this mass rises: so a low overlap alone is no veto. 0.9 "
        "is ours: below the 0.97.",
        source="arXiv 2604.13016, 4.1 and 5.2",
    ),
    Rule(
        name="signal",
        metric="reverse_kl",
        bound=0.01,
        at_least=True,
        advice="take a teacher that was trained further, or on other data, than the student",
        reason="A teacher of the same data and recipe has little to transfer, whatever its score. 0.01 nats a "
        "token is ours: engines in bf16 differ by as much on the same weights.",
        source="arXiv 2604.13016, 3.2 and 3.3",
    ),
    Rule(
        name="ends",
        metric="end_disagreement",
        bound=0.1,
        at_least=False,
        advice="the teacher seldom ends where the student does: by another end token, or not at all",
        reason="A base student and a post-trained teacher put the end on different tokens although both stop at "
        "either; each end is then punished, and responses grow. One class of end tokens repairs it. Probe "
        "again with it: what is left are other lengths. A tenth is ours.",
        source="arXiv 2609.20511",
        settings=("objective.end_tokens: class",),
        has=lambda recipe: recipe.objective.end_tokens == "class",
    ),
    Rule(
        name="tail",
        metric="tail_fraction",
        bound=0.005,
        at_least=False,
        advice="few tokens with huge log-ratios would drive the sampled signal",
        reason="Log-ratios of single tokens reach -50 nats and do not fade; bounding them is what makes sampled- "
        "token distillation stable. 5 nats is the bound that is in use; one token in 200 is ours: its 5 "
        "nats are 0.025 nats a token, as much as a small KL.",
        source="arXiv 2606.17199; arXiv 2603.25562 (bound of 5 nats)",
        settings=("objective.clip: 5.0", "or objective.support: topk"),
        has=_clips,
    ),
    Rule(
        name="engines",
        metric="effective_sample_size",
        bound=0.95,
        at_least=True,
        advice="sampler and learner disagree on the same weights",
        reason="Training is then off-policy without saying so, and small differences alone can end in collapse; "
        "a truncated weight corrects them. 0.95 is ours: a twentieth of the samples lost to the weights' "
        "spread.",
        source="Yao and others 2025 (truncated importance sampling); arXiv 2605.14220",
        settings=("objective.trust.truncation: 2.0", "rollout.dtype as learner.dtype"),
        has=lambda recipe: (
            recipe.objective.trust.truncation is not None and recipe.rollout.dtype == recipe.learner.dtype
        ),
    ),
    Rule(
        name="cap",
        metric="truncated_fraction",
        bound=0.25,
        at_least=False,
        advice="many responses are cut, so the student seldom sees an end; raise the cap, or start from a short one",
        reason="Cut responses are noise to a reward, and a length that grows into the cap is the first sign of "
        "ends that disagree. A quarter is ours.",
        source="arXiv 2503.14476, 3.4; arXiv 2609.20511",
        settings=("sampling.max_response_tokens", "or objective.length.caps"),
        has=lambda recipe: recipe.objective.length is not None,
    ),
    Rule(
        name="late",
        metric="late_kl",
        bound=2.0,
        at_least=False,
        advice="the second half of a response is far from the teacher's; train on a shorter cap first",
        reason="The further a response, the less the teacher's scores teach, and short horizons reach the same. "
        "Twice the KL of the first half is ours.",
        source="arXiv 2606.22600; arXiv 2605.13643; arXiv 2605.31490",
        settings=("sampling.max_response_tokens", "or objective.length.caps"),
        has=lambda recipe: recipe.objective.length is not None,
    ),
)


@dataclass(frozen=True)
class Finding:
    """A rule on what was measured. `done`: the rule does not hold, and the recipe has the settings."""

    rule: Rule
    value: float | None
    holds: bool | None
    done: bool


def findings(measured: Measured, recipe: Recipe) -> list[Finding]:
    """Every rule, in order."""
    found = [(rule, rule.holds(measured)) for rule in RULES]
    return [
        Finding(rule, getattr(measured, rule.metric), holds, holds is False and rule.has(recipe))
        for rule, holds in found
    ]


def recommended(found: Sequence[Finding]) -> str:
    """What to do first: DISTIL, COMPARE, SFT_FIRST, NOTHING, or UNKNOWN."""
    holds = {finding.rule.name: finding.holds for finding in found}
    if holds["overlap"] is None or holds["signal"] is None:
        return UNKNOWN
    if not holds["overlap"]:
        return COMPARE if holds["mass"] else SFT_FIRST
    return DISTIL if holds["signal"] else NOTHING


def settings(found: Sequence[Finding]) -> list[str]:
    """Settings that the recipe lacks, by the rules that do not hold."""
    lacking = [finding for finding in found if finding.holds is False and not finding.done]
    return list(dict.fromkeys(setting for finding in lacking for setting in finding.rule.settings))
