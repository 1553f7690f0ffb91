"""Rows of the corpus: a function under drawn names, one fault in it, and tests that tell the two apart."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from string import Template
from typing import Any

from scripts.repairs.faults import Fault, faults, with_fault
from scripts.repairs.functions import FUNCTIONS, NAMES, Function

CASES, TELLING = 4, 2  # of a row; and of them, at most, those that show the fault
_DRAWN = 30  # calls tried to find them
_RAISED = "raised"

PROMPT = "This function should return {returns}. It has a bug. Fix it and change as little as you can.\n{block}"


def rows(
    count: int, seed: int, without: frozenset[str] = frozenset(), names: Mapping[str, Sequence[str]] = NAMES
) -> list[dict[str, Any]]:
    """`count` rows with different faulty code, none of it in `without`. Fields: `prompt`; `given`, the faulty code;
    `solution`, its fix; `tests`, CASES calls; `response`, the fix as a demonstration; `function` and `fault`. What the
    code's variables are called is drawn from `names`.

    Every function is tried as often as any other. Raises ValueError where there are not so many.
    """
    rng = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for attempt in range(100 * count):
        row = _row(FUNCTIONS[attempt % len(FUNCTIONS)], names, rng)
        if row["given"] not in found and row["given"] not in without:
            found[row["given"]] = row
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{count} rows were asked for, and there are about {len(found)}; ask for fewer")


def write(count: int, heldout: int, seed: int) -> tuple[str, str]:
    """The corpus as JSON lines: rows to train on, and held-out ones whose faulty code is in none of these."""
    train = rows(count, seed)
    rest = rows(heldout, seed + 1, frozenset(row["given"] for row in train))
    text = ["".join(json.dumps(row) + "\n" for row in part) for part in (train, rest)]
    return text[0], text[1]


def outcomes(code: str, calls: Iterable[str]) -> dict[str, Any]:
    """The value of each call after the code has run, or `raised`. In this process: for code of this corpus alone."""
    names: dict[str, Any] = {}
    exec(code, names)
    return {call: _outcome(call, names) for call in calls}


def _outcome(call: str, names: dict[str, Any]) -> Any:
    try:
        return eval(call, names)
    except Exception:
        return _RAISED


def block(code: str) -> str:
    return f"```python\n{code}```"


def _row(function: Function, words: Mapping[str, Sequence[str]], rng: random.Random) -> dict[str, Any]:
    """A row with the first of the faults, in a drawn order, that a test shows."""
    names = {key: rng.choice(choices) for key, choices in words.items()}
    tree = ast.parse(Template(function.code).substitute(names))
    solution = ast.unparse(tree) + "\n"
    calls = outcomes(solution, [_call(function, rng) for _ in range(_DRAWN)])
    fault, given, tests = next(_shown(tree, calls, rng))
    return {
        "prompt": PROMPT.format(returns=Template(function.returns).substitute(names), block=block(given)),
        "given": given,
        "solution": solution,
        "tests": tests,
        "response": block(solution),
        "function": function.name,
        "fault": fault.kind,
    }


def _shown(
    tree: ast.Module, calls: Mapping[str, Any], rng: random.Random
) -> Iterator[tuple[Fault, str, list[dict[str, Any]]]]:
    """Faults with the faulty code and its tests, each kind as likely to come first as any other."""
    found = faults(tree)
    for kind in rng.sample(kinds := list(dict.fromkeys(fault.kind for fault in found)), len(kinds)):
        for fault in rng.sample(same := [fault for fault in found if fault.kind == kind], len(same)):
            given = with_fault(tree, fault)
            if tests := _tests(given, calls):
                yield fault, given, tests


def _tests(given: str, calls: Mapping[str, Any]) -> list[dict[str, Any]]:
    """CASES calls with the fix's values, TELLING of them or fewer such that the faulty code differs; [] if none do."""
    found = outcomes(given, calls)
    telling = [call for call, value in calls.items() if repr(found[call]) != repr(value)][:TELLING]
    chosen = [*telling, *(call for call in calls if call not in telling)][:CASES]
    return [{"call": call, "expect": calls[call]} for call in chosen] if telling else []


def _call(function: Function, rng: random.Random) -> str:
    return f"{function.name}({', '.join(repr(ARGUMENTS[kind](rng)) for kind in function.takes)})"


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randint(-9, 9) for _ in range(rng.randint(0, 5))]


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abeiorst") for _ in range(rng.randint(0, 6)))


def _mirror(rng: random.Random) -> str:
    half = "".join(rng.choice("abc") for _ in range(rng.randint(0, 3)))
    return half + rng.choice(("", "a")) + rng.choice((half, half[::-1]))


ARGUMENTS: dict[str, Callable[[random.Random], Any]] = {
    "numbers": _numbers,
    "small": lambda rng: [rng.randint(1, 5) for _ in range(rng.randint(0, 3))],
    "few": lambda rng: sorted(_numbers(rng)) if rng.random() < 0.5 else _numbers(rng)[:3],
    "number": lambda rng: rng.randint(0, 6),
    "signed": lambda rng: rng.randint(-3, 3),
    "year": lambda rng: rng.choice((1900, 1996, 2000, 2001, 2023, 2024, 2100, 2400)),
    "word": _word,
    "words": lambda rng: [_word(rng) for _ in range(rng.randint(0, 4))],
    "mirror": _mirror,
}
