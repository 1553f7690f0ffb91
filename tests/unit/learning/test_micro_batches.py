"""Packing is a pure plan: nothing lost, nothing doubled, ranks in step, and the order of arrival decides nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.micro_batches import SampleSize, plan, take_by_budget
from actors.wire.jobs import Total
from actors.wire.records import SampleHeader
from orchestrator.samples.buffer import Buffer, Scored
from orchestrator.weights.learner_group import term_totals

SIZES = st.tuples(st.integers(1, 300), st.integers(0, 100))
ITEMS = st.lists(SIZES, max_size=40).map(
    lambda sizes: [SampleSize(f"{i:03d}", prompt + loss, loss) for i, (prompt, loss) in enumerate(sizes)]
)
RANKS = st.integers(1, 5)
BUDGET = st.integers(1, 400)
quick = settings(max_examples=150, deadline=None)


@quick
@given(ITEMS, RANKS, BUDGET)
def test_every_uid_is_planned_exactly_once(items: list[SampleSize], ranks: int, budget: int) -> None:
    planned = [uid for rank in plan(items, ranks, budget).ranks for batch in rank for uid in batch]
    assert sorted(planned) == [item.uid for item in items]


@quick
@given(ITEMS, RANKS, BUDGET)
def test_every_rank_has_equally_many_micro_batches(items: list[SampleSize], ranks: int, budget: int) -> None:
    result = plan(items, ranks, budget)
    assert len(result.ranks) == ranks
    assert len({len(rank) for rank in result.ranks}) == 1 and result.ranks[0]


@quick
@given(ITEMS, RANKS, BUDGET)
def test_only_a_single_item_may_exceed_the_budget(items: list[SampleSize], ranks: int, budget: int) -> None:
    tokens = {item.uid: item.tokens for item in items}
    for rank in plan(items, ranks, budget).ranks:
        for batch in rank:
            assert len(batch) <= 1 or sum(tokens[uid] for uid in batch) <= budget


@quick
@given(ITEMS, RANKS, BUDGET, st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(items: list[SampleSize], ranks: int, budget: int, rng) -> None:
    shuffled = list(items)
    rng.shuffle(shuffled)
    assert plan(shuffled, ranks, budget) == plan(items, ranks, budget)


@quick
@given(ITEMS, RANKS, BUDGET)
def test_loss_tokens_are_those_of_all_ranks(items: list[SampleSize], ranks: int, budget: int) -> None:
    assert plan(items, ranks, budget).loss_tokens == sum(item.loss_tokens for item in items)


def test_denominators_count_what_carries_loss_and_but_for_distillation_what_the_student_drew() -> None:
    drawn = [("student", 3), ("student", 0), ("student", 5), ("teacher", 7)]
    headers = [(source, SampleHeader("", "", 0, 1, 9, loss, "stop", ((0, loss),))) for source, loss in drawn]
    batch = [Scored(header, None, source=source) for source, header in headers]
    assert term_totals(["distillation", "outcome"], batch) == {"distillation": Total(15, 3), "outcome": Total(8, 2)}


def test_denominators_count_tokens_that_are_masked_for_their_age() -> None:
    buffer = Buffer(1, 3, max_staleness=1, on_stale="mask_tokens")
    buffer.open(0, 0)
    for place, versions in enumerate([((0, 4), (1, 3)), ((2, 2),), ((0, 1), (2, 8))]):
        tokens = sum(count for _, count in versions)
        header = SampleHeader(f"00000000.{place:03d}", "00000000", 0, 1, tokens, tokens, "stop", versions)
        buffer.add(Scored(header, None))
    batch = buffer.next_batch(2)
    assert batch is not None and batch.tokens_masked == 5
    assert term_totals(["distillation"], batch.samples) == {"distillation": Total(18, 3)}
    buffer.give_back(batch, frozenset())
    again = buffer.next_batch(2)
    assert again is not None and term_totals(["distillation"], again.samples) == {"distillation": Total(18, 3)}


@quick
@given(ITEMS.filter(bool), BUDGET)
def test_placeholders_appear_only_where_there_are_too_few_items(items: list[SampleSize], budget: int) -> None:
    for ranks in (1, 2, 3):
        result = plan(items, ranks, budget)
        if any(not batch for rank in result.ranks for batch in rank):
            assert all(len(batch) <= 1 for rank in result.ranks for batch in rank)


def test_items_share_micro_batches_as_far_as_the_budget_allows() -> None:
    items = [SampleSize(str(i), 50, 10) for i in range(8)]
    assert [len(batch) for batch in plan(items, 1, 200).ranks[0]] == [4, 4]


def test_the_load_of_two_ranks_is_balanced() -> None:
    items = [SampleSize(str(i), tokens, tokens) for i, tokens in enumerate((90, 80, 70, 60))]
    loads = [sum(items[int(uid)].tokens for batch in rank for uid in batch) for rank in plan(items, 2, 100).ranks]
    assert loads == [150, 150]


def test_no_items_are_one_empty_micro_batch_a_rank() -> None:
    assert plan([], 3, 100).ranks == (((),), ((),), ((),))


@quick
@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), st.integers(1, 300))
def test_take_by_budget_takes_the_longest_prefix_that_fits_and_at_least_one(lengths: list[int], budget: int) -> None:
    count = take_by_budget(lengths, budget)
    assert count == 1 or sum(lengths[:count]) <= budget
    assert count == len(lengths) or sum(lengths[: count + 1]) > budget


def test_take_by_budget_of_nothing_is_nothing() -> None:
    assert take_by_budget([], 10) == 0
