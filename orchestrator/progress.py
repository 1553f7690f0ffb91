"""The state of a run: one value, saved by `to_state` and restored by `rewind`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.refusal import RecipeError
from objectives.curriculum import Ladder
from orchestrator.evaluation.heldout import HELDOUT_INDEX, Found
from orchestrator.pools.suspects import Suspects
from orchestrator.samples.leases import Ticket
from orchestrator.samples.ledger import Ledger
from orchestrator.weights.skipped_updates import SkippedUpdates

FORMAT = 1  # of this state; raised when an older one needs conversion


@dataclass(frozen=True)
class Faults:
    """Members that were replaced, by role, and learners that were rebuilt."""

    restarts: Mapping[str, int] = field(default_factory=dict)
    learner_rebuilds: int = 0


@dataclass
class Progress:
    """Where a run stands. Everything but `version` goes into a checkpoint."""

    step: int = 0  # steps made
    version: int = 0  # current version of the weights; a number names one set for ever
    ledger: Ledger = field(default_factory=Ledger)  # prompt groups that are trained
    beta: float = 0.0  # the reference's coefficient, which may adapt
    ladder: Ladder = field(default_factory=Ladder)  # position in the length curriculum
    anchor: int | None = None  # step of the checkpoint that the length curriculum may return to
    ended_early: bool = False  # by the length curriculum or a rule of run.stop
    ended_because: str | None = None
    streaks: dict[str, int] = field(default_factory=dict)  # rule of run.stop -> values in a row that it held for
    suspects: Suspects = field(default_factory=Suspects)  # prompt groups under which members died
    drops: Counter[int] = field(default_factory=Counter)  # how often a group was resampled for its age
    skips: SkippedUpdates = field(default_factory=SkippedUpdates)
    replaced: int = 0  # prompt groups without signal that the coming step has replaced so far
    skipped: dict[str, str] = field(default_factory=dict)  # uid -> why it was not trained, or not evaluated
    evaluations: dict[str, Any] = field(
        default_factory=lambda: {"before": None, "steps": [], "after": None, "sets": {}, "movement": []}
    )
    before: Found | None = None  # the evaluation before training, sample by sample
    earlier_faults: Faults | None = None  # of the processes before this one; None until known

    def passed_over(self, groups_per_step: int) -> int:
        """Prompt groups in the ledger that no step trained: all their samples were rejected, or they were replaced."""
        return self.ledger.count - self.step * groups_per_step

    def at_stake(self) -> Any:
        """A value that changes with everything a stop would lose unsaved."""
        sets = self.evaluations["sets"].values()
        measured = self.evaluations["before"] is not None, len(self.evaluations["steps"])
        measured += tuple((of_set["before"] is not None, len(of_set["steps"])) for of_set in sets)
        blamed = deepcopy((self.suspects.to_state(), self.skipped))
        return self.step, self.ladder, self.ended_early, measured, blamed

    def to_state(self, faults: Faults, ranks: int) -> dict[str, Any]:
        """A copy in plain values, with the faults of all processes so far and the number of learner ranks."""
        state = {
            "format": FORMAT,
            "ranks": ranks,
            "step": self.step,
            "ledger": self.ledger.to_state(),
            "beta": self.beta,
            "ladder": self.ladder.to_state(),
            "anchor": self.anchor,
            "ended": self.ended_early,
            "ended_because": self.ended_because,
            "streaks": self.streaks,
            "suspects": self.suspects.to_state(),
            "drops": sorted(self.drops.items()),
            "updates_skipped": self.skips.to_state(),
            "replaced": self.replaced,
            "skipped": self.skipped,
            "evaluation": self.evaluations,
            "before": self.before and self.before.to_state(),
            "faults": asdict(faults),
        }
        return deepcopy(state)  # a thread writes it while the run goes on

    def rewind(self, state: Mapping[str, Any] | None, beta: float) -> None:
        """Go back to a checkpoint's state, or to the beginning (None), with `beta` as the reference's coefficient. What
        this process found stays: suspects, the evaluation before training, reasons of skipped held-out samples."""
        if state is None:
            self.step, self.ledger, self.ladder, self.beta = 0, Ledger(), Ladder(), beta
            self.anchor, self.ended_early, self.ended_because, self.streaks = None, False, None, {}
            self.drops, self.skips, self.replaced = Counter(), SkippedUpdates(), 0
            first = [line for line in self.evaluations["movement"] if not line["step"]]
            self.evaluations |= {"steps": [], "sets": {}, "movement": first}
            self.earlier_faults = self.earlier_faults or Faults()
            skipped = self.skipped
        else:
            self.step, self.ledger = state["step"], Ledger.from_state(state["ledger"])
            self.ladder, self.beta = Ladder(**state["ladder"]), state["beta"]
            self.anchor, self.ended_early = state["anchor"], state["ended"]
            self.ended_because, self.streaks = state["ended_because"], dict(state["streaks"])
            self.drops = Counter(dict(state["drops"]))
            self.skips, self.replaced = SkippedUpdates.from_state(state["updates_skipped"]), state["replaced"]
            self.suspects.recall(state["suspects"])
            self.evaluations |= {"sets": {}, "movement": [], **state["evaluation"]}
            self.before = Found(**state["before"]) if state["before"] else None
            self.earlier_faults = self.earlier_faults or Faults(**state["faults"])
            skipped = self.skipped | state["skipped"]
        done = {uid: why for uid, why in skipped.items() if self._is_done(uid)}
        self.skipped.clear()
        self.skipped |= done

    def _is_done(self, uid: str) -> bool:
        """Whether a sample is not asked for again in training: its group is in the ledger, or held out."""
        index = Ticket.of(uid, 0).index
        return index >= HELDOUT_INDEX or index in self.ledger


def readable(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert a saved state to today's format. Raises RecipeError for a newer one.

    Format 0 has no number, and may lack skipped updates and the samples of the evaluation before training. Before
    groups could be replaced, none were. Both may lack what rules of run.stop have counted.
    """
    found = state.get("format", 0)
    if found > FORMAT:
        raise RecipeError(
            f"{where}: has format {found}, this version reads up to {FORMAT}; resume with the version that saved it"
        )
    return {"updates_skipped": [], "before": None, "replaced": 0, "ended_because": None, "streaks": {}, **state}
