"""Audit of a loss of the user's own, fed as the learner would feed it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from audit import verdicts
from audit.bench import Bench
from audit.estimate import production
from audit.findings import finding
from audit.probes import Subject, corrects_staleness, probe
from audit.report import Audit, Match
from audit.tree import world
from audit.verdicts import CLAIMED, Claim
from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.objective import OwnLoss
from objectives.schedule import Dials


def audit_function(function: OwnLoss, claims: Claim | None, teacher: str, seed: int) -> Audit:
    """The audit of (student log-probs [n, V], tokens) -> [n] losses or a scalar."""
    subject = _subject(function, teacher, seed)
    bench, centred = subject.bench, subject.bench.centred
    part = subject.estimate(subject.batch())  # the teacher's term, without a reward
    rewarded = subject.reads(subject.batch(), subject.batch(advantage=centred))
    credit = centred if rewarded else subject.advantage
    measured = subject.estimate(subject.batch(advantage=credit))
    known = verdicts.known(bench)
    matches = verdicts.matches(measured, {n: g for n, g in known.items() if rewarded or "reward" not in n})
    of_part = verdicts.matches(part, known)
    claimed = claims or _nearest(of_part)
    aim = _aim(of_part, claimed)
    names = probe(subject)
    if not verdicts.settled(names):
        names += verdicts.direction(part, known, claimed, claims is not None)
    if not corrects_staleness(subject, subject.batch(advantage=credit)):
        names.append("no_staleness_correction")
    fitted = (aim.scale or 1.0) if subject.scalar else 1.0
    stale = subject.batch(stale=True, advantage=credit)
    cases = (subject.estimate(stale), subject.estimate(verdicts.bare(stale, bench)))
    return Audit(
        subject=f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', repr(function))}",
        matches=matches,
        silent=measured.silent,
        target=aim.target,
        bias=float((part.mean / fitted - known[aim.target]).norm() / known[aim.target].norm()),
        variance=measured.variance,
        staleness=None if measured.silent else verdicts.drift(measured, *cases),
        findings=tuple(finding(name) for name in dict.fromkeys(names)),
        notes=_notes(subject.scalar),
    )


def _subject(function: OwnLoss, teacher: str, seed: int) -> Subject:
    config = ObjectiveConfig(target=teacher, support="full", loss="loss:function")
    bench = Bench(world((teacher,), seed), config, Dials(), whole=True)
    scalar = _is_scalar(function, bench)
    run = function if scalar else production(objective.Objective(config, function), bench)
    subject = Subject(run, bench, own=True, scalar=scalar, supports=True)
    gated = not subject.rows(subject.batch()).any()  # it may keep only responses of positive advantage
    return replace(subject, advantage=1.0) if gated else subject


def _is_scalar(function: OwnLoss, bench: Bench) -> bool:
    draws = bench.sampled(bench.world.student)
    value = function(bench.world.student[draws.node].requires_grad_(), draws.tokens)
    if not isinstance(value, Tensor) or value.shape not in ((), (len(draws.node),)):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss returned {shape} for {len(draws.node)} tokens; return [n] losses or one scalar")
    return value.ndim == 0


def _nearest(matches: tuple[Match, ...]) -> Claim:
    best = max((match for match in matches if "KL" in match.target), key=lambda match: match.cosine)
    return "reverse_kl" if best.target in CLAIMED["reverse_kl"] else "forward_kl"


def _aim(matches: tuple[Match, ...], claimed: Claim) -> Match:
    """The exact variant of the claimed KL, else its token variant."""
    variants = [match for match in matches if match.target in CLAIMED[claimed]]
    return next((match for match in variants if match.exact), variants[0])


def _notes(scalar: bool) -> tuple[str, ...]:
    notes = ["a batch of 512 responses in exact proportion to the student's probabilities"]
    if scalar:
        notes.append("a scalar is multiplied by the number of tokens; its bias is taken after fitting its scale")
    return tuple(notes)
