"""All prompt sets of a run: opened, checked, and put in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from configs.data import DataSet
from configs.reward_rules import Rule
from orchestrator.data.checks import check_answers
from orchestrator.data.files.opening import open_table
from orchestrator.data.mixture import Mixture
from orchestrator.data.program_checks import check_tests
from orchestrator.data.prompt_set import Checked, PromptSet
from orchestrator.data.prompting import Prompting
from orchestrator.data.rows import Rows
from orchestrator.samples.prompts import MadeOnDemand, Prompt, Prompts, PromptStream
from orchestrator.samples.templates import Demonstrations

NAMED = 100  # prompts that a summary names


@dataclass(frozen=True)
class Mixed:
    """The prompts of several sets, and each set's share."""

    sets: tuple[PromptSet, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sets))


Train = Sequence[Prompt] | Mixed


@dataclass(frozen=True)
class Read:
    """Prompt sets that were checked. `longest`: tokens of the longest prompt by model, of those that were looked at;
    `whole`: these are all."""

    sets: tuple[PromptSet, ...]
    longest: Mapping[str, int]
    whole: bool
    warnings: tuple[str, ...]


def read_sets(entries: Sequence[DataSet], prompting: Prompting, rules: Sequence[Rule], drops: bool) -> Read:
    """Open and check sets. Raises RecipeError."""
    prompting.check()
    need_response = prompting.demonstrations is not None
    tables = [Rows(open_table(entry), entry, need_response) for entry in entries]
    return check_sets([PromptSet(rows, prompting, drops) for rows in tables], prompting, rules)


def check_sets(sets: Sequence[PromptSet], prompting: Prompting, rules: Sequence[Rule]) -> Read:
    """Look at the rows of sets. Raises RecipeError."""
    found = [prompts.check() for prompts in sets]
    warnings = check_answers(rules, [checked.sample for checked in found])
    warnings += check_tests(rules, [checked.sample for checked in found])
    for prompts, checked in zip(sets, found, strict=True):
        warnings += _of_set(prompts, checked, prompting.demonstrations)
    longest = {name: max(checked.longest[name] for checked in found) for name in prompting.chats}
    return Read(tuple(sets), longest, all(prompts.whole for prompts in sets), tuple(warnings))


def order(train: Train, seed: int, shuffle: bool) -> Prompts:
    """The prompts of a run by group index. An index is the whole state."""
    if isinstance(train, PromptSet):
        return MadeOnDemand(PromptStream(train, seed, shuffle, train.weights))
    if not isinstance(train, Mixed):
        return PromptStream(train, seed, shuffle)
    streams = [
        PromptStream(prompts, f"{seed}:{number}", shuffle, prompts.weights) for number, prompts in enumerate(train.sets)
    ]
    return MadeOnDemand(Mixture(streams, train.shares, seed))


def dropped(train: Train) -> dict[str, str]:
    """The prompts that were left out so far, by file and number, with the reason."""
    sets = train.sets if isinstance(train, Mixed) else [train] if isinstance(train, PromptSet) else []
    return {at: reason for prompts in sets for at, reason in list(prompts.dropped.items())}


def named(left_out: Mapping[str, str]) -> dict[str, Any]:
    """How many prompts were left out, and of the first NAMED the reasons by file and number."""
    return {"count": len(left_out), "first": dict(islice(left_out.items(), NAMED))}


def _of_set(prompts: PromptSet, found: Checked, demonstrations: Demonstrations | None) -> list[str]:
    """Warnings of one set."""
    name, unit, count = found.sample.name, found.sample.unit, len(found.sample.rows)
    warnings: list[str] = []
    if not prompts.whole:
        checked = f"{count + len(prompts.dropped)} of {len(prompts)} {unit}s"
        warnings.append(
            f"{name}: {checked} were checked; one of the others that cannot be used is left out when it is met"
        )
    if prompts.dropped:
        first = next(iter(prompts.dropped.values()))
        warnings.append(f"{name}: {len(prompts.dropped)} prompts are too long and left out, the first: {first}")
    if demonstrations and demonstrations.opening:
        warnings.append(
            f"{name}: the student's chat template begins an assistant's message with {demonstrations.opening!r}; "
            "responses that do not begin with it are trained behind it"
        )
    if found.altered:
        warnings.append(
            f"{name}: the student's chat template would change {len(found.altered)} of {count} responses, the first in "
            f"{unit} {found.altered[0]}; they are trained as the rows have them"
        )
    return warnings
