"""Warns when rewards carry no signal: no group's responses differ in reward, so the run learns nothing from them.
Pure: a state that is replaced, and a line to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from objectives.advantage import all_equal

SILENT = 10  # steps in a row without a signal before the first warning; repeated at each doubling


@dataclass(frozen=True)
class SilentRewards:
    """Steps in a row without a signal, the number of their responses, and the range of their rewards."""

    silent: int = 0
    responses: int = 0
    lowest: float = 0.0
    highest: float = 0.0

    def after(self, groups: Sequence[Sequence[float]], centred: bool) -> tuple[SilentRewards, str | None]:
        """The state after a step with these rewards, group by group, and the warning if one is due.

        With `centred` the group mean is subtracted, so a signal is a difference within a group; otherwise it is any
        reward other than 0. A step without rewards changes nothing.
        """
        rewards = [reward for group in groups for reward in group]
        if not rewards:
            return self, None
        if not all(map(all_equal, groups)) if centred else any(rewards):
            return SilentRewards(), None
        seen = (*rewards, *((self.lowest, self.highest) if self.silent else ()))
        now = SilentRewards(self.silent + 1, self.responses + len(rewards), min(seen), max(seen))
        doublings, left = divmod(now.silent, SILENT)
        due = left == 0 and doublings & (doublings - 1) == 0
        return now, now._line(centred) if due else None

    def _line(self, centred: bool) -> str:
        of = f"{self.lowest:g}" if self.lowest == self.highest else f"{self.lowest:g} to {self.highest:g}"
        what = "all responses of a group had the same reward" if centred else "every reward was 0"
        return (
            f"warning: no prompt group has had a signal for {self.silent} steps: {what} ({self.responses} responses, "
            f"rewards {of}), so that rewards move nothing; look at reward.rules and at samples/, use prompts that are "
            "sometimes solved, or raise batch.samples_per_prompt"
        )
