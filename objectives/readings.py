"""Metrics of every batch, whatever the objective. Unclipped: a clip changes the update, not the divergence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from configs.objective import DATA
from configs.objective import Objective as ObjectiveConfig
from objectives import divergence, signal
from objectives.devices import constant
from objectives.tokens import Scores, Tokens

POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # ends of position buckets
POSITION_KL, POSITION_COUNT = "position_kl/", "position_count/"


def outcomes(
    config: ObjectiveConfig, student_logprobs: Tensor, scores: Scores, base: Scores | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs of student and one model over the same outcomes: the vocabulary, or a support with its tail."""
    if scores.logprobs is not None:
        if base is None:
            return student_logprobs, scores.logprobs
        assert base.logprobs is not None and config.extrapolate is not None
        target = divergence.extrapolated(
            scores.logprobs, base.logprobs, config.extrapolate.weight, config.logprob_floor
        )
        return student_logprobs, target
    assert scores.support_ids is not None and scores.support_logprobs is not None
    student, teacher = _on_ids(student_logprobs, scores)
    return divergence.on_support(
        student, teacher, config.tail, scores.tail_logprob, _off_ids(student_logprobs, scores.support_ids)
    )


def of_chunk(
    config: ObjectiveConfig, student_logprobs: Tensor, tokens: Tokens, teachers: Mapping[str, float]
) -> dict[str, Tensor]:
    """Metrics that need the student's distribution over the outcomes of the distillation term, [n] each; weighted means
    over the teachers."""
    found: dict[str, Tensor] = {}
    if config.support == "sampled":  # a reference may still have whole distributions
        return found
    share = sum(teachers.values()) or 1.0
    for slot, weight in teachers.items():
        for name, value in _of_scores(config, student_logprobs, tokens.scores[slot]).items():
            part = value * (weight / share)
            found[name] = found[name] + part if name in found else part
    return found


def sums(
    config: ObjectiveConfig, streams: Mapping[str, Tensor], tokens: Tokens, teachers: Mapping[str, float]
) -> dict[str, Tensor]:
    """Sums over loss tokens of the streams, and of the metrics that need only the sampled token."""
    on, logprob = tokens.on, streams["logprob"]
    against = of_distillation(streams)
    hidden = ("logprob", "class_logprob", "distillation", "reference", "baseline", "target_logprob", "value")
    values = {name: value for name, value in streams.items() if name not in hidden}
    share = sum(teachers.values()) or 1.0
    if teachers:
        ratios = {s: signal.clipped_log_ratio(against, _floored(config, tokens.scores[s].logprob)) for s in teachers}
        values["k1"] = _k1(config, against, tokens, teachers)
        floored = {s: _floored(config, tokens.scores[s].logprob) for s in teachers}
        k3s = [(weight / share) * signal.k3(against, floored[s]) for s, weight in teachers.items()]
        values["k3"] = torch.stack(k3s).sum(0)
        if config.clip.log_ratio is not None:
            low, high = config.clip.log_ratio
            cut = torch.stack([(r < low) | (r > high) for r in ratios.values()]).any(0)
            values["clipped"] = cut.to(logprob.dtype)
    if config.reference is not None:
        k1 = logprob - _floored(config, tokens.scores[config.reference.model].logprob)
        values["reference_k1"] = torch.where(tokens.drawn, k1, 0.0)
    if tokens.old_value is not None or "value" in streams:
        values["value"] = streams["value"]
    result = {name: torch.where(on, value, 0.0).sum() for name, value in values.items()}
    result["off_loss"] = (~on).sum()
    result["drawn"] = (on & tokens.drawn).sum()
    return result | _by_position(values.get("reverse_kl", values.get("k1")), tokens)


def each(
    config: ObjectiveConfig, streams: Mapping[str, Tensor], tokens: Tokens, teachers: Mapping[str, float]
) -> dict[str, Tensor]:
    """KLs and entropy of each token, [n], nats, and the loss `nll` where the response itself is the target; those that
    the support does not give are left out."""
    found = {name: streams[name] for name in ("reverse_kl", "forward_kl", "entropy", "start_kl") if name in streams}
    if config.target == DATA:
        found["nll"] = -streams["logprob"]
    if teachers and "reverse_kl" not in found:
        found["reverse_kl"] = _k1(config, of_distillation(streams), tokens, teachers)
    return found


def _k1(config: ObjectiveConfig, logprob: Tensor, tokens: Tokens, teachers: Mapping[str, float]) -> Tensor:
    """[n] log q - log p of the sampled token, nats; weighted mean over the teachers."""
    share = sum(teachers.values()) or 1.0
    ratios = {s: signal.clipped_log_ratio(logprob, _floored(config, tokens.scores[s].logprob)) for s in teachers}
    return -torch.stack([(teachers[s] / share) * r for s, r in ratios.items()]).sum(0)


def of_distillation(streams: Mapping[str, Tensor]) -> Tensor:
    """The student's log-prob in the distillation term, [N]: of the token, or of its class of end tokens."""
    return streams.get("class_logprob", streams["logprob"])


def _of_scores(config: ObjectiveConfig, student_logprobs: Tensor, scores: Scores) -> dict[str, Tensor]:
    if scores.logprobs is None and scores.support_ids is None:
        return {}
    student, teacher = outcomes(config, student_logprobs, scores)
    found = {
        "reverse_kl": divergence.reverse_kl(student, teacher, config.logprob_floor),
        "forward_kl": divergence.forward_kl(student, teacher),
    }
    if scores.logprobs is not None:
        k = min(config.topk, teacher.shape[-1])
        top_p, top_q = teacher.topk(k), student_logprobs.topk(k)
        found["topk_mass_teacher"] = top_p.values.exp().sum(-1)
        found["topk_mass_student"] = student_logprobs.gather(-1, top_p.indices).exp().sum(-1)
        found["topk_overlap"] = _overlap(top_p.indices, top_q.indices, student_logprobs.shape[-1])
    else:
        assert scores.support_ids is not None
        inside_q, inside_p = _on_ids(student_logprobs, scores)
        own = student_logprobs.topk(min(config.topk, student_logprobs.shape[-1])).indices
        found["topk_mass_teacher"] = inside_p.exp().sum(-1)
        found["topk_mass_student"] = inside_q.exp().sum(-1)
        found["topk_overlap"] = _overlap(scores.support_ids, own, student_logprobs.shape[-1])
    return found


def _on_ids(student_logprobs: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    assert scores.support_ids is not None and scores.support_logprobs is not None
    unused = scores.support_ids < 0
    student = student_logprobs.gather(-1, scores.support_ids.clamp(min=0)).masked_fill(unused, -torch.inf)
    return student, scores.support_logprobs.to(student.dtype).masked_fill(unused, -torch.inf)


def _off_ids(student_logprobs: Tensor, support_ids: Tensor) -> Tensor:
    """Log of the student's mass off the support, [...], with a gradient; exact however small."""
    first = support_ids[..., :1].clamp(min=0)  # fills unused places
    inside = torch.where(support_ids < 0, first, support_ids)
    return student_logprobs.scatter(-1, inside, -torch.inf).logsumexp(-1)


def _overlap(support: Tensor, own: Tensor, vocabulary: int) -> Tensor:
    """Share of the student's top tokens that are in the support."""
    marks = torch.zeros(*support.shape[:-1], vocabulary + 1, dtype=torch.bool, device=support.device)
    marks.scatter_(-1, support + 1, True)  # column 0 collects unused places
    return marks.gather(-1, own + 1).float().mean(-1)


def _by_position(kl: Tensor | None, tokens: Tokens) -> dict[str, Tensor]:
    """Sum and count of the KL by position in the response, in buckets that double."""
    if kl is None:
        return {}
    bucket = torch.bucketize(tokens.position, constant(POSITIONS, kl.device), right=True)
    empty = kl.new_zeros(len(POSITIONS) + 1)  # the last is of positions beyond
    of_kl = empty.index_add(0, bucket, torch.where(tokens.on, kl, 0.0))
    counts = empty.index_add(0, bucket, tokens.on.to(kl.dtype))
    found = {f"{POSITION_KL}{end}": of_kl[i] for i, end in enumerate(POSITIONS)}
    return found | {f"{POSITION_COUNT}{end}": counts[i] for i, end in enumerate(POSITIONS)}


def _floored(config: ObjectiveConfig, logprob: Tensor) -> Tensor:
    return logprob.clamp(min=config.logprob_floor)
