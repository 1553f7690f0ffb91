"""The token distance of minimal edits against distances counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from rewards.edit_distance import distance, excess, tokens_of

GIVEN = "def add(a, b):\n    return a - b\n"  # 12 tokens: def add ( a , b ) : return a - b
FIX = "def add(a, b):\n    return a + b\n"
REWRITTEN = "def add(a, b):\n    total = a + b\n    return total\n"  # 15 tokens


def test_tokens_are_those_of_the_language() -> None:
    assert tokens_of(GIVEN) == ("def", "add", "(", "a", ",", "b", ")", ":", "return", "a", "-", "b")
    assert tokens_of("x = 'a'  # said\n\n\ny = (1)\n") == tokens_of('x = "a"\ny = 1')


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (GIVEN, 0.0),
        (FIX, 1 / 12),
        ("def add(a, b):  # adds\n\n    return (a + b)\n", 1 / 12),
        (REWRITTEN, 5 / 15),  # total for return, = new, + for -, return and total new
        ("", 1.0),
    ],
)
def test_a_distance_is_edits_over_the_longer(code: str, expected: float) -> None:
    assert distance(code, GIVEN) == pytest.approx(expected)


def test_the_charge_is_what_exceeds_the_reference_fix() -> None:
    assert excess(FIX, GIVEN, FIX) == 0.0
    assert excess(GIVEN, GIVEN, FIX) == pytest.approx(-1 / 12), "code left alone is nearer than the fix, and fails"
    assert excess(REWRITTEN, GIVEN, FIX) == pytest.approx(5 / 15 - 1 / 12)


@pytest.mark.parametrize("code", ["def add(a, b)", "x = = 1", "\x00", "  a\n b", "(" * 500])
def test_what_is_no_python_has_no_distance(code: str) -> None:
    with pytest.raises(ValueError, match="is no Python"):
        distance(code, GIVEN)


@drawn(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_distance_is_levenshteins(one: list[str], other: list[str]) -> None:
    code, given = ";".join(one), ";".join(other)
    expected = _by_hand(tokens_of(code), tokens_of(given))
    assert distance(code, given) == pytest.approx(expected / max(1, len(tokens_of(code)), len(tokens_of(given))))


def _by_hand(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The textbook recurrence, row by row."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        above, row = row, [i]
        for j, right in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]
