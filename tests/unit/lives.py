"""Lives of a driver process over simulated members, ended by SIGKILL at a moment that is counted in calls.

A moment is the n-th call made in one part of a life, Python's and C's alike, in every thread: so it may lie between the
opening of a file and the writing of it, and does not depend on how fast the machine is. `python -m tests.unit.lives`
is a server that forks a process for each life, so that many of them cost the imports of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from configs.load import load_recipe
from orchestrator import checkpoint
from orchestrator.between_steps.saving import Saver
from orchestrator.evaluation.heldout import Evaluation
from orchestrator.run import DONE, Run
from orchestrator.samples.flow import Flow
from orchestrator.stage import Stage
from orchestrator.weights.learner_group import LearnerGroup
from orchestrator.weights.versions import Versions
from tests.unit.simulation import Simulation

# What a life is doing, by the innermost of these functions that is on the stack.
PARTS: dict[str, tuple[Callable[..., Any], ...]] = {
    "starting": (Run._rewind, Run._bring_up),
    "rewinding": (checkpoint.rewind,),
    "evaluating": (Evaluation.run,),
    "sampling": (SimulatedRollout.write, Stage.roll_out),
    "scoring": (Flow.score_and_reward,),
    "learning": (LearnerGroup.step, SimulatedLearner.step),
    "publishing": (Versions.publish, checkpoint.claim_version),
    "pulling": (SimulatedRollout.load,),
    "recording": (Run._after_step,),
    "saving": (Saver.save, SimulatedLearner.save, checkpoint.partial_folder, checkpoint.seal),
    "writing": (Path.write_text, checkpoint.write_whole),
    "ending": (Run.summarise, SimulatedLearner.export),
}
ELSEWHERE, ANYWHERE = "elsewhere", "anywhere"  # in none of them; in all together


@dataclass(frozen=True)
class Moment:
    """The `call`-th call of a part of one life, from 0."""

    part: str
    call: int


class Calls:
    """Counts a life's calls by part, and ends it at a moment."""

    def __init__(self, end: Moment | None) -> None:
        self.counts: Counter[str] = Counter()
        self._end = end
        self._parts = {function.__code__: part for part, functions in PARTS.items() for function in functions}
        self._stacks = threading.local()

    def watch(self) -> None:
        """From now on, in this thread and those that begin later."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        """A coroutine that goes on is called, and one that waits returns: the parts entered are the stack's own."""
        stack: list[str] = self._stacks.__dict__.setdefault("parts", [ELSEWHERE])
        part = self._parts.get(frame.f_code)
        if part and event == "call":
            stack.append(part)
        if event in ("call", "c_call", "c_return"):
            self._count(stack[-1])
        if part and event == "return" and len(stack) > 1:
            stack.pop()

    def _count(self, part: str) -> None:
        self.counts[part] += 1
        self.counts[ANYWHERE] += 1
        if self._end and self.counts[self._end.part] > self._end.call:
            os.kill(os.getpid(), signal.SIGKILL)


def live(root: Path, watched: bool, end: Moment | None) -> Counter[str]:
    """Run what `root`/recipe.yaml says, or go on with the run that is there as `logratio resume` does."""
    begun, calls = root / "sim" / "recipe.yaml", Calls(end)
    simulation = Simulation(load_recipe(begun if begun.exists() else root / "recipe.yaml"))
    if watched:
        calls.watch()
    assert simulation.go(seconds=60.0) == DONE
    sys.setprofile(None)
    return calls.counts


class Server:
    """Asks the process that forks for one life after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def calls(self, root: Path) -> Counter[str]:
        """Of a whole life, by part."""
        counts = self._live(root, True)
        assert counts is not None
        return counts

    def lives(self, root: Path) -> bool:
        """A whole life, which nobody watches."""
        return self._live(root, False) is not None

    def dies(self, root: Path, end: Moment) -> bool:
        """A life up to a moment; False if it was over before."""
        return self._live(root, True, end) is None

    def _live(self, root: Path, watched: bool, end: Moment | None = None) -> Counter[str] | None:
        """The calls of a life by part; None if it was killed. Raises RuntimeError if it failed by itself."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([str(root), watched, end and [end.part, end.call]]) + "\n")
        self._process.stdin.flush()
        code, counts = json.loads(self._process.stdout.readline())
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a life in {root} that was to end at {end} failed by itself with exit code {code}")
        return Counter(counts) if code == 0 else None


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Ends with the context; nothing it forked outlives it."""
    command = [sys.executable, "-m", "tests.unit.lives"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes) as process:
        yield Server(process)
        assert process.stdin
        process.stdin.close()  # its loop ends


def serve() -> None:
    """A life for each line of stdin; its exit code and counts as a line of stdout."""
    pa.array([0])  # imports pandas where it is installed: here, and not in every life
    for line in sys.stdin:
        root, watched, end = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            counts = live(Path(root), watched, end and Moment(*end))
            os.write(writing, json.dumps(counts).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            counts = json.loads(pipe.read() or "null")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, counts]), flush=True)


if __name__ == "__main__":
    serve()
