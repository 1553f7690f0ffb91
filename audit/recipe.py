"""Audit of a recipe's objective over every response of its sources, by exact probability."""

from __future__ import annotations

from audit import verdicts
from audit.bench import TOPK, Bench, Draws
from audit.estimate import Estimate, Run, cosine, estimate, production
from audit.findings import finding
from audit.probes import Subject, corrects_staleness, probe
from audit.report import Audit, Staleness
from audit.tree import world
from audit.verdicts import Claim
from configs.objective import DATA, Clip
from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.schedule import Dials, dials_at


def audit_recipe(config: ObjectiveConfig, step: int, seed: int) -> Audit:
    """The audit of an objective with the dials of `step`."""
    ends = 2 if config.merged_ends((0,)) else 1
    bench = Bench(world(tuple(config.support_of | config.teachers), seed, ends), config, dials_at(config, step), step)
    built = objective.build(config, None, bench.ends)
    run = production(built, bench)
    draws = {source: bench.enumerated(source) for source in bench.mixing}
    measured, promised = _mixed(run, bench, draws), verdicts.promised(bench)
    name, aim = promised or (None, None)
    bias = None if aim is None else float((measured.mean - aim).norm() / aim.norm())
    names = _of_distillation(built, bench) if "distillation" in config.terms else []
    if not verdicts.settled(names):
        names += _of_whole(config, measured, None if aim is None else cosine(measured.mean, aim))
    if (config.samples_signal or config.loss) and "student" in bench.mixing and not _corrected(run, bench):
        names.append("no_staleness_correction")
    return Audit(
        subject=f"objective: target {config.target}, support {config.support}, prefix {config.prefix}",
        matches=verdicts.matches(measured, verdicts.known(bench)),
        silent=measured.silent,
        target=name,
        bias=bias,
        variance=measured.variance,
        staleness=None if measured.silent else _staleness(run, bench, draws, measured),
        findings=tuple(finding(found, _cause(config)) for found in dict.fromkeys(names)),
        notes=_notes(bench),
    )


def _of_distillation(built: objective.Objective, bench: Bench) -> list[str]:
    """Findings in the distillation term alone, on the student's responses."""
    config, weight = bench.config, bench.dials.reverse_weight
    if config.outcome.combine == "sign":
        return []
    alone = Bench(bench.world, config, Dials(weight, 0.0, 1.0, 0.0), bench.step)
    subject = Subject(
        production(built, alone),
        alone,
        advantage=1.0,
        own=config.loss is not None,
        supports=config.support == "topk" and config.topk_of == "teacher" and config.clip.token_sum is None,
        taught=config.target != DATA,
    )
    names = probe(subject)
    ends: dict[float, Claim] = {1.0: "reverse_kl", 0.0: "forward_kl"}
    plain = not (config.target == DATA or config.loss or config.discount) and config.family == "linear"
    if plain and weight in ends and bench.mixing.keys() == {"student"} and not verdicts.settled(names):
        measured = subject.estimate(subject.batch())
        names += verdicts.direction(measured, verdicts.known(alone), ends[weight], asked=False)
    return names


def _of_whole(config: ObjectiveConfig, measured: Estimate, towards: float | None) -> list[str]:
    if measured.silent:
        return ["no_signal"]
    if towards is None or _approximate(config) or towards > 1.0 - 1e-6:
        return []
    return ["biased_by_choice" if _cause(config) else "biased"]


def _approximate(config: ObjectiveConfig) -> bool:
    """Whether the recipe chooses an approximation: a top-k support or a clip."""
    return bool(config.teachers) and (config.support == "topk" or config.clip != Clip())


def _corrected(run: Run, bench: Bench) -> bool:
    subject = Subject(run, bench)
    return corrects_staleness(subject, subject.batch(advantage=bench.centred))


def _mixed(run: Run, bench: Bench, draws: dict[str, Draws]) -> Estimate:
    return estimate(run, [(bench.mixing[source], drawn) for source, drawn in draws.items()], bench.world.student)


def _staleness(run: Run, bench: Bench, draws: dict[str, Draws], fresh: Estimate) -> Staleness | None:
    if "student" not in draws:
        return None
    stale = bench.enumerated("student", stale=True)
    cases = (stale, verdicts.bare(stale, bench))
    return verdicts.drift(fresh, *(_mixed(run, bench, draws | {"student": drawn}) for drawn in cases))


def _cause(config: ObjectiveConfig) -> str:
    """Keys of the recipe that may bias its gradient."""
    outcome = config.outcome
    causes = {
        "outcome.scale: std weighs prompts and responses by their group's spread": outcome.scale == "std",
        "normalise: sequence weighs a token by its response's length, which it decides on": config.normalise
        == "sequence",
        "outcome.truncated: mask leaves out what a baseline counts": outcome.truncated == "mask",
        "sampled estimators on tokens that the student did not draw": config.sources != ("student",)
        and not config.distributional,
        "outcome.value.discount below 1": outcome.baseline == "value" and outcome.value.discount < 1.0,
    }
    return "; ".join(cause for cause, there in causes.items() if there)


def _notes(bench: Bench) -> tuple[str, ...]:
    config = bench.config
    notes = {
        f"top-k support taken as {TOPK} of 4 outcomes": config.support == "topk" and not bench.ends,
        f"top-k support taken as {TOPK} of 3 tokens and the class of end tokens": config.support == "topk"
        and bool(bench.ends),
        "two end tokens are one outcome; KLs are of outcomes": bool(bench.ends),
        "groups of 2, enumerated as pairs; a group mean that includes the response scales by (n - 1) / n = 1/2": (
            config.needs_advantages and (config.outcome.baseline in ("mean", "rloo") or config.outcome.scale == "std")
        ),
        "the value head is taken as exact": "value" in config.terms,
        "global denominators are left out: a constant scale": config.normalise != "sequence",
        "the bias is that of the clip or the support that the recipe chose": _approximate(config),
        f"outcome.combine: {config.outcome.combine} joins terms to the gradient of nothing named": (
            config.outcome.combine in ("gate", "sign")
        ),
        f"schedules as at step {bench.step}": bench.step > 1,
    }
    return tuple(note for note, there in notes.items() if there)
