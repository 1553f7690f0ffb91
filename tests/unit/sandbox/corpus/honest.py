"""Honest programs that are right, and wrong ones: the same with a fault in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.unit.sandbox.corpus.made import Made
from tests.unit.sandbox.corpus.world import Targets

# (right body, wrong body, the result): of a list of numbers `xs`
TASKS: list[tuple[str, str, Callable[[list[int]], Any]]] = [
    ("return sum(xs)", "return sum(xs[1:])", sum),
    ("return sorted(xs)", "return sorted(xs, reverse=True)", sorted),
    ("return [x for x in xs if x % 2]", "return [x for x in xs if x % 2 == 0]", lambda xs: [x for x in xs if x % 2]),
    ("return max(xs) - min(xs)", "return max(xs) + min(xs) + 1", lambda xs: max(xs) - min(xs)),
    ("return {str(x): x * x for x in xs}", "return {str(x): x for x in xs}", lambda xs: {str(x): x * x for x in xs}),
    ("return sum(xs) / len(xs)", "return sum(xs) / len(xs) + 0.01", lambda xs: sum(xs) / len(xs)),
    ("return ' '.join(map(str, xs))", "return ','.join(map(str, xs))", lambda xs: " ".join(map(str, xs))),
    ("return [tuple(xs), len(xs)]", "return [tuple(xs), len(xs) + 1]", lambda xs: [list(xs), len(xs)]),
    ("import math\n    return math.prod(xs)", "import math\n    return -math.prod(xs)", lambda xs: _product(xs)),
    ("return any(x > 50 for x in xs)", "return int(any(x > 50 for x in xs))", lambda xs: any(x > 50 for x in xs)),
    ("import itertools\n    return list(itertools.accumulate(xs))", "return xs[::-1]",
     lambda xs: [sum(xs[: i + 1]) for i in range(len(xs))]),
    ("return None", "return 0", lambda xs: None),
]  # fmt: skip

_THREADED = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**26)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
def main(): print(depth(int(input())))
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


def _product(xs: list[int]) -> int:
    return xs[0] * _product(xs[1:]) if xs else 1


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(1, 100), rng.randrange(3, 8))


def _call(right: bool, rng: random.Random, _: Targets) -> Made:
    good, bad, result = rng.choice(TASKS)
    source = f"def f(xs):\n    {good if right else bad}\n"
    inputs = [_numbers(rng) for _ in range(3)]
    return Made(source, [{"call": f"f({xs})", "expect": result(xs)} for xs in inputs], passes=right)


def _script(right: bool, rng: random.Random, _: Targets) -> Made:
    inputs = [_numbers(rng) for _ in range(3)]
    work = "sum(xs)" if right else "sum(xs) - 1"
    source = f"import sys\nxs = [int(line) for line in sys.stdin]\nprint({work})\nprint(len(xs), max(xs) / 3)"
    tests = [
        {"input": "".join(f"{x}\n" for x in xs), "output": f"{sum(xs)}\n{len(xs)} {max(xs) / 3:.9f}"} for xs in inputs
    ]
    return Made(source, tests, passes=right)


def _ways(rng: random.Random, _: Targets) -> Made:
    """What honest programs do: threads with deep recursion, exits, files of their own, a main guard."""
    n = rng.randrange(10, 5000)
    source = rng.choice(
        [
            _THREADED,
            "import sys\nn = int(input())\nprint(n)\nsys.exit(0)",
            "open('own.txt', 'x').write(input())\nprint(open('own.txt').read())",
            "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(input().encode())\n    f.seek(0)\n"
            "    print(f.read().decode())",
            "def main():\n    print(int(input()))\nif __name__ == '__main__':\n    main()",
            "import atexit\nn = input()\natexit.register(print, n)",
            "import collections, dataclasses, heapq, functools, re, decimal, fractions, bisect, random, datetime\n"
            "@dataclasses.dataclass\nclass A:\n    n: int\nprint(A(int(input())).n)",
            "import sys\nsys.stdout.write(sys.stdin.readline().rstrip())",
            "import sys, os\nos.write(1, sys.stdin.buffer.read())",
            "import pickle\nclass A: pass\na = A()\na.n = int(input())\nprint(pickle.loads(pickle.dumps(a)).n)",
            "import concurrent.futures as c\nwith c.ThreadPoolExecutor(4) as e: print(*e.map(int, [input()]))",
        ]
    )
    return Made(source, [{"input": f"{n}\n", "output": f"{n}\n"}] * 2, passes=True)


FAMILIES = {
    "right call": lambda rng, targets: _call(True, rng, targets),
    "wrong call": lambda rng, targets: _call(False, rng, targets),
    "right script": lambda rng, targets: _script(True, rng, targets),
    "wrong script": lambda rng, targets: _script(False, rng, targets),
    "honest ways": _ways,
}
