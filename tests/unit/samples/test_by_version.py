"""What groups by version say is what a plain table of index and version says, whatever came and went."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.samples.buffer import ByVersion

VERSIONS = st.one_of(st.integers(-1, 4), st.just(float("inf")))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), VERSIONS)), st.integers(0, 12), st.integers(-1, 5))
def test_groups_are_kept_like_in_a_table(moves: list[tuple[bool, int, float]], count: int, version: int) -> None:
    kept, table = ByVersion(), dict[int, float]()
    for comes, index, under in moves:
        if comes and index not in table:
            kept.put(index, under)
            table[index] = under
        elif not comes:
            kept.remove(index, table.pop(index, under))
    assert kept.counts() == Counter(table.values())
    assert kept.first(count) == sorted(table, key=lambda index: (table[index], index))[:count]
    assert kept.below(version) == sorted(index for index, under in table.items() if under < version)
