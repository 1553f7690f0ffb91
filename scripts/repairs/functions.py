"""The functions that are given faults: what each returns, its code, and what it is called with.

Names in the code are drawn anew for every row. No loop has a bound that a fault could take away.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = {  # $word in a function's code or description -> what it may be called
    "xs": ("items", "values", "numbers", "data", "marks", "row"),
    "x": ("item", "value", "number", "entry", "mark", "one"),
    "ys": ("others", "second", "right", "after"),
    "y": ("other", "partner", "match", "twin"),
    "n": ("limit", "count", "size", "bound", "goal"),
    "a": ("low", "start", "first", "least"),
    "b": ("high", "end", "last", "most"),
    "total": ("total", "result", "answer", "found", "out"),
    "i": ("i", "index", "place", "at"),
    "word": ("word", "text", "name", "line"),
    "words": ("words", "names", "lines", "labels"),
    "letter": ("letter", "char", "sign", "c"),
}


@dataclass(frozen=True)
class Function:
    """`returns`: the end of "should return ..."; `code`: the function, called `name`; `takes`: each argument's kind, of
    ARGUMENTS in scripts/repairs/corpus.py."""

    name: str
    returns: str
    code: str
    takes: tuple[str, ...]


FUNCTIONS = (
    Function(
        "above",
        "how many of $xs are above $n",
        """
def above($xs, $n):
    $total = 0
    for $x in $xs:
        if $x > $n:
            $total += 1
    return $total
""",
        ("numbers", "number"),
    ),
    Function(
        "even_sum",
        "the sum of the even $xs",
        """
def even_sum($xs):
    $total = 0
    for $x in $xs:
        if $x % 2 == 0:
            $total += $x
    return $total
""",
        ("numbers",),
    ),
    Function(
        "find",
        "the first index of $x in $xs, or -1",
        """
def find($xs, $x):
    for $i in range(len($xs)):
        if $xs[$i] == $x:
            return $i
    return -1
""",
        ("numbers", "number"),
    ),
    Function(
        "running",
        "the running sums of $xs",
        """
def running($xs):
    $total = [0]
    for $x in $xs:
        $total.append($total[-1] + $x)
    return $total[1:]
""",
        ("numbers",),
    ),
    Function(
        "steps",
        "the differences of neighbours in $xs",
        """
def steps($xs):
    return [$xs[$i + 1] - $xs[$i] for $i in range(len($xs) - 1)]
""",
        ("numbers",),
    ),
    Function(
        "rises",
        "how often a number in $xs is above the one before it",
        """
def rises($xs):
    $total = 0
    for $i in range(1, len($xs)):
        if $xs[$i] > $xs[$i - 1]:
            $total += 1
    return $total
""",
        ("numbers",),
    ),
    Function(
        "clamp",
        "$x, but at least $a and at most $b",
        """
def clamp($x, $a, $b):
    if $x < $a:
        return $a
    if $x > $b:
        return $b
    return $x
""",
        ("number", "number", "number"),
    ),
    Function(
        "is_sorted",
        "whether $xs never fall",
        """
def is_sorted($xs):
    for $i in range(1, len($xs)):
        if $xs[$i - 1] > $xs[$i]:
            return False
    return True
""",
        ("few",),
    ),
    Function(
        "inner",
        "$xs without the first and the last",
        """
def inner($xs):
    return $xs[1:-1]
""",
        ("numbers",),
    ),
    Function(
        "middle",
        "the middle one of $a, $b and $x",
        """
def middle($a, $b, $x):
    return sorted([$a, $b, $x])[1]
""",
        ("number", "number", "number"),
    ),
    Function(
        "factorial",
        "the product of 1 to $n",
        """
def factorial($n):
    $total = 1
    for $i in range(1, $n + 1):
        $total *= $i
    return $total
""",
        ("number",),
    ),
    Function(
        "squares",
        "the sum of the squares of 1 to $n",
        """
def squares($n):
    return sum(($i * $i for $i in range(1, $n + 1)))
""",
        ("number",),
    ),
    Function(
        "vowels",
        "how many vowels $word has",
        """
def vowels($word):
    $total = 0
    for $letter in $word:
        if $letter in 'aeiou':
            $total += 1
    return $total
""",
        ("word",),
    ),
    Function(
        "capital",
        "$word with a capital first letter",
        """
def capital($word):
    return $word[:1].upper() + $word[1:]
""",
        ("word",),
    ),
    Function(
        "mirrored",
        "whether $word reads the same backwards",
        """
def mirrored($word):
    return $word == $word[::-1]
""",
        ("mirror",),
    ),
    Function(
        "long_words",
        "those of $words with more than $n letters",
        """
def long_words($words, $n):
    return [$word for $word in $words if len($word) > $n]
""",
        ("words", "number"),
    ),
    Function(
        "longest",
        "the first longest one of $words",
        """
def longest($words):
    $total = ''
    for $word in $words:
        if len($word) > len($total):
            $total = $word
    return $total
""",
        ("words",),
    ),
    Function(
        "apart",
        "the sum of the distances of $xs and $ys, one by one",
        """
def apart($xs, $ys):
    $total = 0
    for $x, $y in zip($xs, $ys):
        $total += abs($x - $y)
    return $total
""",
        ("numbers", "numbers"),
    ),
    Function(
        "leap",
        "whether the year $n is a leap year",
        """
def leap($n):
    return $n % 4 == 0 and ($n % 100 != 0 or $n % 400 == 0)
""",
        ("year",),
    ),
    Function(
        "sign",
        "1, 0 or -1: the sign of $x",
        """
def sign($x):
    if $x > 0:
        return 1
    if $x < 0:
        return -1
    return 0
""",
        ("signed",),
    ),
    Function(
        "rotate",
        "$xs with the first $n moved to the end",
        """
def rotate($xs, $n):
    return $xs[$n:] + $xs[:$n]
""",
        ("numbers", "number"),
    ),
    Function(
        "top",
        "the $n largest of $xs, the largest first",
        """
def top($xs, $n):
    return sorted($xs, reverse=True)[:$n]
""",
        ("numbers", "number"),
    ),
    Function(
        "spread",
        "the largest of $xs less the smallest, or 0 if there are none",
        """
def spread($xs):
    if len($xs) == 0:
        return 0
    return max($xs) - min($xs)
""",
        ("numbers",),
    ),
    Function(
        "between",
        "whether all of $xs lie from $a to $b",
        """
def between($xs, $a, $b):
    return all(($x >= $a and $x <= $b for $x in $xs))
""",
        ("small", "number", "number"),
    ),
)
