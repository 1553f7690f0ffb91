"""The orchestrator alone, at a scale that no test machine has: members that sleep, everything else real.

    python -m benchmarks orchestrator                 512 rollouts x 64 responses and 64 scorers, in this process
    python -m benchmarks orchestrator --ray           16 rollouts and 2 scorers as Ray actors
    python -m benchmarks orchestrator --ray --reported     the same with status, metrics and commands, as a run has them
    python -m benchmarks orchestrator --samples N     how many samples to train (1,000,000 for the memory to be seen)

Lengths are long-tailed. Payloads are constant bytes and headers have the drawn lengths, so that the orchestrator is
measured and not the making of tokens. Reports samples/s, the driver's CPU per sample, its memory and how long the
learner waited, over the steps in which the pipeline neither fills nor empties. In this process the members also run
once without an orchestrator, to subtract their own CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

from actors.member import Member
from actors.scoring.canary import ways_to_batch
from actors.wire.jobs import LearnerSpec, Share
from actors.wire.records import BlockHeader, BucketHeader, Request, SampleHeader, ScoreHeader, ScoreRequest
from actors.wire.rewards import Rewards
from configs.load import parse_recipe
from configs.reward_rules import Rule
from configs.roles.sizes import Resources
from configs.roles.streaming import Stream
from configs.schema import Recipe, Sampling
from orchestrator import run as runs
from orchestrator.pools.layout import MemberSpecs, build_pools
from orchestrator.pools.transport import GangSpec, LocalTransport, Transport
from orchestrator.preflight.files import Inputs
from orchestrator.run import Run
from orchestrator.samples.leases import Ticket
from orchestrator.samples.prompts import Prompt
from orchestrator.surface.driver import collect_seldom, serve_commands
from orchestrator.surface.reporting import Reporting
from orchestrator.surface.trackers.feed import Feed
from orchestrator.surface.trackers.prometheus import Prometheus

MEDIAN_TOKENS, SPREAD, LONGEST = 100.0, 0.8, 1024  # of a log-normal
EXCESS = 1.2  # rollouts' capacity relative to the learner's
NORMAL = NormalDist()
NOTHING = b"\0" * 64
PLACE = Resources(cpus=0.01, threads=1)


class SleepingRollout(Member):
    """Responses of long-tailed length, a token every `seconds`, in blocks by `stream`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._version = 0
        self._running: list[tuple[float, str, Request, int]] = []  # with the times at which they end
        self._arrived = asyncio.Event()

    async def start(self) -> None: ...

    async def submit(
        self, channel: str, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> None:
        now = time.monotonic()
        for request in requests:
            tokens = tokens_of(request)
            heapq.heappush(self._running, (now + tokens * self._seconds, request.uid, request, tokens))
        self._arrived.set()

    async def blocks(self, channel: str, stream: Stream) -> AsyncIterator[Any]:
        while True:
            while not self._running:
                self._arrived.clear()
                await self._arrived.wait()
            await asyncio.sleep(max(0.0, self._running[0][0] + stream.coalesce_ms / 1000 - time.monotonic()))
            block, now = [], time.monotonic()
            while self._running and len(block) < stream.coalesce_samples and self._running[0][0] <= now:
                block.append(self._header(*heapq.heappop(self._running)[2:]))
            if block:
                yield NOTHING
                yield BlockHeader(tuple(block), len(NOTHING))

    async def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> int:
        self._version = version
        return version

    def _header(self, request: Request, tokens: int) -> SampleHeader:
        return SampleHeader(
            request.uid, request.group, request.attempt, 50, tokens, tokens, "stop", ((self._version, tokens),)
        )


class SleepingScorer(Member):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def start(self) -> None: ...

    async def swap(self, version: int, model: str) -> int:
        return version

    async def score(self, payload: bytes, request: ScoreRequest) -> tuple[bytes, ScoreHeader]:
        await asyncio.sleep(self._seconds)
        uids = tuple(request.prompts)
        return NOTHING, ScoreHeader(uids, {}, len(uids), 0, len(NOTHING))

    async def canary(self, texts: Sequence[Sequence[int]], repeats: bool) -> list[list[float]]:
        """The same readings for every batching."""
        readings = [-1.0 - token % 7 for text in texts for token in text[1:]]
        return [readings for _ in range(len(ways_to_batch(len(texts))) if repeats else 1)]


class CountingReward(Member):
    def start(self) -> None: ...

    def reward(self, payload: bytes, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]) -> Rewards:
        return Rewards(dict.fromkeys(fields, 1.0))


class SleepingLearner(Member):
    """Takes `seconds` a sample; its weights are 64 bytes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    async def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None: ...

    def fetch(self, *payloads: Any) -> None: ...

    async def step(self, share: Share) -> dict[str, Any]:
        await asyncio.sleep(self._seconds * sum(map(len, share.micro_batches)))
        return {"loss": 0.0, "updates_skipped": 0}

    async def publish(self, model: str | None = None) -> AsyncIterator[Any]:
        yield NOTHING
        yield BucketHeader(("weights",), ((16,),), "float32", len(NOTHING), "")

    def save(self, directory: str) -> None: ...

    def export(self, directory: str) -> None:
        Path(directory).mkdir()


def tokens_of(request: Request) -> int:
    """A response's length, tokens: the quantile of the log-normal at its seed."""
    uniform = (request.seed % 2**32 + 0.5) / 2**32
    return min(LONGEST, max(1, int(MEDIAN_TOKENS * math.exp(SPREAD * NORMAL.inv_cdf(uniform)))))


class Watcher:
    """Records this process's CPU seconds and memory after each step."""

    current_phase = ""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.cpu: list[float] = []
        self.memory: list[int] = []

    def phase(self, text: str) -> None: ...

    def notice(self, text: str) -> None:
        print(text)

    def step(self, line: Mapping[str, Any]) -> None:
        self.lines.append({name: line[name] for name in ("seconds_step", "seconds_wait", "samples_aged")})
        self.cpu.append(time.process_time())
        self.memory.append(resident_bytes())

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = "") -> None: ...


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def recipe(root: str, arguments: argparse.Namespace) -> Recipe:
    batch = arguments.batch
    member = {"resources": {"cpus": 0.01, "threads": 1}}
    context = {"max_context_tokens": 2 * LONGEST}
    return parse_recipe(
        {
            "run": {"name": "scale", "root": root, "steps": arguments.samples // batch},
            "models": {"student": {"path": "/none"}, "teacher": {"path": "/none"}},
            "data": {"prompts": "/none", "shuffle": False},
            "batch": {"prompts_per_step": batch // arguments.group, "samples_per_prompt": arguments.group},
            "sampling": {"max_response_tokens": LONGEST},
            "objective": {"target": "teacher"},
            "learner": {"optimizer": {"lr": 1.0}},
            "rollout": member | context | {"members": arguments.rollouts, "max_concurrent": arguments.concurrent},
            "scorer": {"teacher": member | context | {"members": arguments.scorers}},
            "reward": member | {"members": 2, "rules": [{"kind": "length"}]},
            "stream": {"coalesce_ms": arguments.coalesce_ms},
            "record": {"every": 1_000_000_000},
            "max_staleness": arguments.staleness,
        }
    )


def members_of(arguments: argparse.Namespace) -> MemberSpecs:
    """Members that sleep as long as the command line says."""

    def spec(role: str, cls: type, *made_of: Any) -> GangSpec:
        return GangSpec(role, cls, (made_of,), PLACE)

    return MemberSpecs(
        rollout=lambda _: spec("rollout", SleepingRollout, arguments.token_seconds),
        teacher_rollout=lambda _: spec("teacher_rollout", SleepingRollout, arguments.token_seconds),
        scorer=lambda _, model, *rest: spec(f"scorer.{model}", SleepingScorer, arguments.score_seconds),
        reward=lambda _: spec("reward", CountingReward),
        learner=lambda _: spec("learner", SleepingLearner, 1.0 / arguments.learner_rate),
    )


def capacity(arguments: argparse.Namespace) -> float:
    """The most samples a second that the rollouts could make."""
    mean_tokens = MEDIAN_TOKENS * math.exp(SPREAD**2 / 2)
    return arguments.rollouts * arguments.concurrent / (mean_tokens * arguments.token_seconds)


async def measure(
    arguments: argparse.Namespace, transport: Transport, watcher: Watcher | None = None, root: Path | None = None
) -> dict[str, Any]:
    """The run lies in `root`, or in a folder that goes with it. With `--reported`, Ray must be there."""
    with contextlib.ExitStack() as stack:
        root = root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings, watcher = recipe(str(root), arguments), watcher or Watcher()
        prompts = [Prompt({"prompt": str(i)}, {"student": [i] * 50, "teacher": [i] * 50}, None) for i in range(997)]
        inputs = Inputs(prompts, [], None, 1000, (1,), 0, 0)
        pools = build_pools(settings, transport, 1000, None, members_of(arguments))
        directory = root / "scale"
        feed = Feed([partial(Prometheus, "scale", settings.scored_models)] if arguments.reported else [], print)
        reporting = Reporting(watcher, feed, directory)  # type: ignore[arg-type]  # it sees what a terminal would
        run = Run(settings, directory, inputs, pools, reporting)
        commands = serve_commands(run, watcher, reporting) if arguments.reported else contextlib.nullcontext()  # type: ignore[arg-type]
        async with commands:
            code = await run.execute()
        await reporting.ended(code)
        await asyncio.gather(*(pool.members.stop() for pool in pools.all().values()))
    assert code == runs.DONE
    samples = settings.run.steps * settings.samples_per_step
    found = summary(watcher, settings)
    stepping = found["samples_per_second"] / arguments.learner_rate  # the rest is between steps, or waiting
    return {"samples": samples, "rollout_capacity": capacity(arguments), **found, "learner_stepping_share": stepping}


def summary(watcher: Watcher, settings: Recipe) -> dict[str, Any]:
    """Figures of the steps after the pipeline fills and before it empties; in short runs, of the middle half."""
    steps = len(watcher.lines)
    first, last = settled(steps, settings.max_staleness)
    lines = watcher.lines[first:last]
    samples, seconds = len(lines) * settings.samples_per_step, sum(line["seconds_step"] for line in lines)
    busy = watcher.cpu[last - 1] - watcher.cpu[first - 1]
    return {
        "samples_settled": samples,
        "samples_per_second": samples / seconds,
        "driver_cpu_ms_per_sample": 1000 * busy / samples,
        "driver_cpu_share": busy / seconds,
        "resampled_share": sum(line["samples_aged"] for line in lines) / samples,
        "learner_idle_share": sum(line["seconds_wait"] for line in lines) / seconds,
        "memory_mib_after_quarter": watcher.memory[steps // 4] / 2**20,
        "memory_mib_at_end": watcher.memory[-1] / 2**20,
    }


def settled(steps: int, staleness: int) -> tuple[int, int]:
    """The first step of those counted, and the one after the last: neither fills nor empties the pipeline."""
    edge = min(staleness + 1, steps // 4)
    return edge, steps - edge


async def members_alone(arguments: argparse.Namespace) -> float:
    """CPU milliseconds a sample of the members and the event loop alone, at the learner's rate."""
    scorers, reward = [SleepingScorer(arguments.score_seconds) for _ in range(arguments.scorers)], CountingReward()
    tickets = [Ticket(index, 0) for index in range(200_000)]
    requests = [Request(ticket.uid, ticket.group, 0, ticket.seed(0), [0] * 50) for ticket in tickets]
    coming, stream = itertools.cycle(requests), Stream(coalesce_ms=arguments.coalesce_ms)
    sampling = Sampling(max_response_tokens=LONGEST)
    done = 0

    async def serve(number: int) -> None:
        nonlocal done
        rollout, scorer = SleepingRollout(arguments.token_seconds), scorers[number % len(scorers)]
        await rollout.submit("", list(itertools.islice(coming, int(arguments.concurrent / EXCESS))), sampling, ())
        async for block in rollout.blocks("", stream):
            if isinstance(block, BlockHeader):
                uids = [sample.uid for sample in block.samples]
                reward.reward(NOTHING, (), {uid: {} for uid in uids})
                await scorer.score(NOTHING, ScoreRequest("sampled", prompts={uid: [] for uid in uids}))
                await rollout.submit("", list(itertools.islice(coming, len(uids))), sampling, ())
                done += len(uids)

    serving = [asyncio.create_task(serve(number)) for number in range(arguments.rollouts)]
    await asyncio.sleep(5 * MEDIAN_TOKENS * arguments.token_seconds)
    before, busy = done, time.process_time()
    await asyncio.sleep(5 * MEDIAN_TOKENS * arguments.token_seconds)
    busy = time.process_time() - busy
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    return 1000 * busy / (done - before)


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments, with defaults by mode."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks orchestrator")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--reported", action="store_true", help="with status, metrics and commands; needs --ray")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rollouts", type=int)
    parser.add_argument("--scorers", type=int)
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--group", type=int, default=4, help="samples a prompt")
    parser.add_argument("--staleness", type=int, default=16)
    parser.add_argument("--coalesce-ms", type=float)
    parser.add_argument("--token-seconds", type=float)
    parser.add_argument("--score-seconds", type=float, default=0.01)
    parser.add_argument("--learner-rate", type=float, help="samples a second that the learner could take")
    arguments = parser.parse_args(words)
    defaults = (
        {
            "samples": 120_000,
            "rollouts": 16,
            "scorers": 2,
            "concurrent": 256,
            "batch": 2048,
            "coalesce_ms": 250.0,
            "token_seconds": 0.009,
        }
        if arguments.ray
        else {
            "samples": 600_000,
            "rollouts": 512,
            "scorers": 64,
            "concurrent": 64,
            "batch": 8192,
            "coalesce_ms": 500.0,
            "token_seconds": 0.03,
        }
    )
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.learner_rate is None:
        arguments.learner_rate = capacity(arguments) / EXCESS
    return arguments


def main() -> None:
    arguments = arguments_of()
    print(json.dumps(vars(arguments) | over(arguments), indent=1))


def over(arguments: argparse.Namespace) -> dict[str, Any]:
    collect_seldom()
    if not arguments.ray:
        alone = asyncio.run(members_alone(arguments))
        return {"members_cpu_ms_per_sample": alone} | asyncio.run(measure(arguments, LocalTransport()))
    from orchestrator.preflight import cluster

    cluster.loopback_only()
    cluster.start_local(cpus=os.cpu_count() or 1, object_store_mib=256, dashboard=arguments.reported)
    import ray

    from orchestrator.pools.transport import RayTransport

    try:
        return asyncio.run(measure(arguments, RayTransport()))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
