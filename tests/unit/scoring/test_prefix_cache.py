"""What a scorer keeps between segments: used once, bounded by tokens, never of another attempt."""

from __future__ import annotations

import pytest

from actors.scoring.prefix_cache import PrefixCache

IDS = list(range(100))


def cache(most: int = 10, **kept: int) -> PrefixCache[str]:
    """A cache that keeps the first n tokens of each uid."""
    found: PrefixCache[str] = PrefixCache(most)
    for uid, tokens in kept.items():
        found.keep(uid, IDS[:tokens], f"keys of {uid}")
    return found


def kept_in(found: PrefixCache[str]) -> set[str]:
    return {uid for uid in "abcd" if found.take(uid, IDS)}


def test_a_prefix_is_taken_with_its_length_and_once() -> None:
    found = cache(a=4)
    assert found.take("a", IDS[:6]) == (4, "keys of a")
    assert found.take("a", IDS[:6]) is None and found.tokens == 0, "a forward grows it in place"


@pytest.mark.parametrize("ids", [[9, *IDS[1:]], IDS[:3], [*IDS[:3], 9, 9]], ids=["prompt", "longer", "attempt"])
def test_a_cache_of_other_ids_is_dropped(ids: list[int]) -> None:
    found = cache(a=4)
    assert found.take("a", ids) is None and found.tokens == 0


def test_the_least_recently_kept_are_evicted() -> None:
    found = cache(a=4, b=4)
    found.keep("a", IDS[:5], "grown")
    found.keep("c", IDS[:4], "new")
    assert found.tokens == 9 and kept_in(found) == {"a", "c"}


def test_the_bound_may_be_reached_but_not_exceeded() -> None:
    assert kept_in(cache(most=8, a=4, b=4)) == {"a", "b"}
    assert kept_in(cache(most=7, a=4, b=4)) == {"b"}


def test_a_cache_beyond_the_bound_evicts_nothing() -> None:
    found = cache(most=10, a=4, b=11)
    assert kept_in(found) == {"a"}
    assert kept_in(cache(most=0, a=1)) == set(), "a bound of 0 keeps nothing"


def test_a_response_that_grew_counts_its_tokens_once() -> None:
    found = cache(a=4)
    found.keep("a", IDS[:9], "grown")
    assert found.tokens == 9


def test_caches_of_abandoned_responses_are_evicted() -> None:
    found = cache(most=16, c=4, a=4, b=4)
    for tokens in (5, 6):
        for uid in "ab":
            assert found.take(uid, IDS)
            found.keep(uid, IDS[:tokens], uid)
    assert found.tokens == 16, "there is room for all"
    found.take("a", IDS)
    found.keep("a", IDS[:7], "a")
    assert kept_in(found) == {"a", "b"}


def test_clear_drops_everything() -> None:
    found = cache(a=4, b=4)
    found.clear()
    assert found.tokens == 0 and kept_in(found) == set()
