"""Whatever is in a user's files and environment, `check` ends with 0, or with 2 and clean lines: no traceback, and no
waiting. In this process, since a process for each of thousands of cases would take hours."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.load import parse_recipe
from orchestrator import cli
from tests.cli.fuzz import Case, Spoiler, clean

LONGEST = 100.0  # seconds of one check, on a machine that has much else to do
FAST, ALL = 100, 6000  # cases


class Hung(BaseException):
    """A check that does not end; nothing catches it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def hung(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(case: Case, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what stood on stderr; what escapes main() is raised."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["logratio", "check", str(case.recipe), *case.arguments])
        patch.chdir(case.recipe.parent)
        for name, value in case.environment.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        with at_most(LONGEST), pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def fault(code: int, said: str) -> str | None:
    """What is wrong with an outcome, or None."""
    lines = said.split("\n")
    if code == 0:
        return f"exit 0 with {said!r}" if said else None
    if code != 2 or lines.pop() or not lines:
        return f"exit {code} with {said!r}"
    bad = [line for line in lines if not line.startswith("logratio: ") or not line.isprintable() or len(line) > 3000]
    return f"no clean line: {bad[0][:300]!r}" if bad else None


def run_cases(
    tree: dict[str, Any], folder: Path, seed: str, count: int, capsys: pytest.CaptureFixture[str]
) -> tuple[Counter[int], list[str]]:
    whole = parse_recipe(tree).model_dump(mode="json")
    codes: Counter[int] = Counter()
    faults: list[str] = []
    for i in range(count):
        here = folder / str(i)
        here.mkdir()
        case = Spoiler(here, whole if i % 3 else tree, f"{seed}/{i}").case()
        try:
            code, said = outcome(case, capsys)
            codes[code] += 1
            wrong = fault(code, said)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = f"{type(error).__name__}: {str(error)[:300]} {where(error)}"
        if wrong:
            faults.append(f"{seed}/{i}: {wrong} after {case.done}")
        clean(here)
    return codes, faults


def where(error: BaseException) -> str:
    """The last place of our own that an exception went through, and where it began."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-6:])


def test_a_hundred_spoilt_checks_end_with_0_or_2(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, faults = run_cases(recipe, tmp_path, "fast", FAST, capsys)
    assert not faults, "\n".join(faults)
    assert codes[0] >= 5 and codes[2] >= 50, codes  # what is spoilt is not all refused for one reason


@pytest.mark.acceptance
@pytest.mark.timeout(7200)
def test_thousands_of_spoilt_checks_end_with_0_or_2(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Any
) -> None:
    codes, faults = run_cases(recipe, tmp_path, "all", ALL, capsys)
    record_property("cases", ALL)
    record_property("exit codes", dict(codes))
    record_property("faults", len(faults))
    assert not faults, "\n".join(faults[:40])
