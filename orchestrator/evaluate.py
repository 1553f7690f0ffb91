"""Evaluation on held-out prompts: the student samples, the target scores, the learner reads. Nothing is updated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.metrics import EVALUATION_COUNTS, EVALUATION_METRICS, finite
from configs.schema import Recipe
from objectives.schedule import Dials
from orchestrator.pools.pool import PoolMember
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import Suspects
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.samples.buffer import Scored
from orchestrator.samples.dispatch import Ticket
from orchestrator.samples.flow import Block, Flow
from orchestrator.samples.intake import quarantined
from orchestrator.samples.prompts import Prompt
from orchestrator.weights.learner_group import LearnerGroup, PayloadsLost

HELDOUT_INDEX = 90_000_000  # groups of held-out prompts are numbered from here, apart from those of training
OF_TOKENS = ("reverse_kl", "forward_kl", "entropy")  # means over tokens; others are means over responses
Sums = Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """`means` by the names of EVALUATION_METRICS and EVALUATION_COUNTS; `each` holds what they are means of, by uid:
    KLs and entropy summed over a response's `tokens` (nats), and what is known of the response as a whole."""

    means: Mapping[str, Any]
    each: Mapping[str, Sums]

    def among(self, uids: Iterable[str]) -> dict[str, Any]:
        """The same of these samples alone; where they are all there are, what the learner said of them."""
        mine = [self.each[uid] for uid in sorted(uids)]
        if len(mine) == len(self.each):
            return dict(self.means)
        found = {name: _mean(mine, name, "tokens" if name in OF_TOKENS else None) for name in EVALUATION_METRICS}
        skipped = self.means["samples"] + self.means["samples_skipped"] - len(mine)
        counts = dict(zip(EVALUATION_COUNTS, (len(mine), skipped), strict=True))
        return found | counts | {"kl_support": self.means["kl_support"]}

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"means": dict(self.means), "each": {uid: dict(sums) for uid, sums in self.each.items()}}


class Evaluation:
    """The same prompts and the same seeds every time, so that before and after differ by the weights alone. A prompt
    that kills its rollouts, and what cannot be scored, is left out, and `skip` told of it."""

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        flow: Flow,
        learner: LearnerGroup,
        prompts: Sequence[Prompt],
        suspects: Suspects,
        skip: Callable[[str, str], None],
    ) -> None:
        self._recipe = recipe
        self._pools = pools
        self._flow = flow
        self._learner = learner
        self._prompts = prompts
        self._suspects = suspects
        self._skip = skip

    @property
    def prompts(self) -> int:
        """How many there are."""
        return len(self._prompts)

    async def run(self, version: int, dials: Dials, record: Path | None, cap: int | None = None) -> Found | None:
        """Means over response tokens (KLs, entropy: nats) and responses (length, reward), of responses of up to `cap`
        tokens; None without held-out prompts, and where none could be scored."""
        if not self._prompts or self._pools.rollout is None:
            return None
        each = self._recipe.evaluate.samples_per_prompt
        tickets = [Ticket(HELDOUT_INDEX + i, k) for i in range(len(self._prompts)) for k in range(each)]
        scored, metrics = await self._read(tickets, cap, version, dials, record)
        each = metrics.pop("each", {})
        for index in {int(s.header.group) for s in scored}:  # it comes again: let no old death count against it
            self._suspects.acquit(index)
        if not scored:
            return None
        rewards = [s.reward for s in scored if s.reward is not None]
        headers = [s.header for s in scored]
        values = metrics | {
            "kl_support": self._recipe.objective.support if self._recipe.objective.teachers else None,
            "reward_mean": sum(rewards) / len(rewards) if rewards else None,
            "response_length": sum(h.response_tokens for h in headers) / len(headers),
            "truncated_fraction": sum(h.finish == "length" for h in headers) / len(headers),
            "samples": len(scored),
            "samples_skipped": len(tickets) - len(scored),
        }
        means = {name: finite(values.get(name)) for name in (*EVALUATION_METRICS, *EVALUATION_COUNTS)}
        return Found(means, {s.header.uid: finite(each[s.header.uid] | _of_response(s)) for s in scored})

    async def _read(
        self, tickets: Sequence[Ticket], cap: int | None, version: int, dials: Dials, record: Path | None
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Sampled, scored and read by the learner; what a node took with it on the way is sampled again."""
        scored: dict[str, Scored] = {}
        while True:
            missing = [ticket for ticket in tickets if ticket.uid not in scored]
            scored |= {s.header.uid: s for s in await self._sample_all(missing, cap)}
            whole = sorted(scored.values(), key=lambda s: s.header.uid)
            if not whole:
                return [], {}
            try:
                async with self._learner.turns.learner():
                    return whole, await self._learner.evaluate(whole, version, dials, record)
            except PayloadsLost as loss:
                tickets = [ticket for ticket in tickets if ticket.uid in scored]  # what was rejected stays so
                scored = {uid: s for uid, s in scored.items() if uid not in loss.uids}

    async def _sample_all(self, tickets: Sequence[Ticket], cap: int | None) -> list[Scored]:
        """Every ticket, spread over the members; what a dying member took with it is sampled again."""
        pool = self._pools.rollout
        assert pool is not None
        left, done = [ticket for ticket in tickets if not self._suspects.guilty(ticket.index)], []
        while left:
            pool.check()
            members = pool.serving()
            if not members:
                await asyncio.sleep(0.1)  # a replacement is on its way
                continue
            shares = self._shares(left, len(members))
            asked = {ticket for share in shares for ticket in share}
            leases = (self._lease(m, share, cap) for m, share in zip(members, shares, strict=False) if share)
            results = await asyncio.gather(*leases)
            done += [scored for scoreds, _ in results for scored in scoreds]
            left = [t for t in left if t not in asked] + [ticket for _, lost in results for ticket in lost]
        return done

    def _shares(self, tickets: Sequence[Ticket], members: int) -> list[list[Ticket]]:
        """What each member is asked for. Suspects come when all others are in, and are then apart on theirs."""
        if plain := [ticket for ticket in tickets if not self._suspects.suspected(ticket.index)]:
            return [plain[i::members] for i in range(members)]
        cells = self._suspects.cells({ticket.index for ticket in tickets}, most=len(tickets))[:members]
        return [[ticket for ticket in tickets if ticket.index in cell] for cell in cells]

    async def _lease(
        self, member: PoolMember, tickets: Sequence[Ticket], cap: int | None
    ) -> tuple[list[Scored], list[Ticket]]:
        """What a member brings in, and what is to be asked for again."""
        pool = self._pools.rollout
        assert pool is not None
        pairs = [(ticket, self._prompts[ticket.index - HELDOUT_INDEX]) for ticket in tickets]
        prompts = {ticket.uid: prompt for ticket, prompt in pairs}
        try:
            await pool.call_member(member, "ping")
        except MemberDied:  # before it was asked: no prompt is to blame
            return [], list(tickets)
        asked, owed = time.monotonic(), {ticket.uid: ticket for ticket in tickets}
        running = dict(owed)
        done: list[Scored] = []

        async def judge(block: Block) -> None:
            with suppress(ValueLost):  # its tickets are still owed
                good, rejected = await self._flow.judge(block, prompts)
                done.extend(good)
                for uid, reason in rejected.items():
                    self._skip(uid, reason)
                for sample in block.samples:
                    del owed[sample.uid]

        async with asyncio.TaskGroup() as judging:
            with suppress(ValueLost):
                try:
                    async for block in self._flow.sample(pool, member, pairs, cap=cap):
                        for sample in block.samples:
                            del running[sample.uid]
                        judging.create_task(judge(block))
                except MemberDied:
                    groups, nodes, now = (
                        {ticket.index for ticket in running.values()},
                        self._suspects.nodes,
                        time.monotonic(),
                    )
                    guilty = self._suspects.died(groups, groups if nodes.tells(member.node, asked, now) else set())
                    nodes.note(member.node, now)
                    for uid in [uid for uid, ticket in running.items() if ticket.index in guilty]:
                        self._skip(uid, quarantined(pool.role))
                        del owed[uid]
        return done, list(owed.values())


def _of_response(scored: Scored) -> dict[str, float]:
    """What is known of a response as a whole, by the names of EVALUATION_METRICS."""
    header = scored.header
    known = {"response_length": float(header.response_tokens), "truncated_fraction": float(header.finish == "length")}
    return known if scored.reward is None else known | {"reward_mean": scored.reward}


def compared(before: Found, after: Found) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Two evaluations on the samples that both could score; None, None where there is no such sample."""
    common = before.each.keys() & after.each.keys()
    return (before.among(common), after.among(common)) if common else (None, None)


def _mean(samples: list[Sums], name: str, per: str | None) -> float | None:
    """Over what knows it; None where nobody does."""
    known = [sums for sums in samples if name in sums]
    count = sum(sums[per] if per else 1 for sums in known)
    return sum(sums[name] for sums in known) / count if count else None
