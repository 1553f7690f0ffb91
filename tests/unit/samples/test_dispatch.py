"""Leases keep the staleness bound, and grant a ticket once per attempt."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.pools.suspects import DEATHS, SUSPECTED
from orchestrator.samples.dispatch import Dispatch, FreeSlots, Lease, Ticket, source_of
from orchestrator.samples.ledger import Ledger

SHAPES = st.builds(
    dict,
    groups_per_step=st.integers(1, 4),
    samples_per_group=st.integers(1, 3),
    max_staleness=st.integers(0, 2),
    steps=st.integers(1, 5),
)
FREE = st.dictionaries(st.integers(0, 3), st.integers(-2, 6), max_size=4)


def free(**slots: dict[int, int]) -> dict[str, dict[int, FreeSlots]]:
    """What members can take, all of them idle."""
    return {
        source: {m: FreeSlots(count, idle=True) for m, count in members.items()} for source, members in slots.items()
    }


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.data())
def test_leases_under_any_course_of_grants_losses_and_steps(shape: dict[str, int], data: st.DataObject) -> None:
    """Draw what members have free, which leases die and when a step is done; check every grant on the way."""
    first_step = data.draw(st.integers(0, shape["steps"] - 1))
    first = first_step * shape["groups_per_step"]
    dispatch, done = Dispatch(**shape, ledger=Ledger(first)), first_step
    granted: Counter[Ticket] = Counter()
    open_tickets: list[Ticket] = []
    waiting: set[Ticket] = set()  # lost ones

    def unleased() -> set[int]:
        """Groups that the bound allows now, less those that were leased."""
        horizon = min(done + 1 + shape["max_staleness"], shape["steps"]) * shape["groups_per_step"]
        return set(range(first, horizon)) - {t.index for t in granted}

    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["grant", "lose", "step"]))
        if action == "step":
            done = min(done + 1, shape["steps"])
        elif action == "lose" and open_tickets:
            lost = data.draw(st.lists(st.sampled_from(open_tickets), unique=True))
            dispatch.lose(lost)
            waiting |= {Ticket(t.index, t.sample, t.attempt + 1) for t in lost}
            open_tickets = [t for t in open_tickets if t not in lost]
        elif action == "grant":
            counts, allowed = data.draw(FREE), unleased()
            wants = dispatch.has_work(done)
            assert wants == bool(waiting or allowed)
            leases = dispatch.grant(done, free(student=counts))
            tickets = [t for lease in leases for t in lease.tickets]
            granted.update(tickets)
            open_tickets += tickets
            waiting -= set(tickets)
            new_groups = {t.index for t in tickets if t.attempt == 0}
            assert bool(leases) == (wants and any(count > 0 for count in counts.values()))
            assert new_groups <= allowed and dispatch.has_work(done) == bool(waiting or unleased())
            assert all(len(x.tickets) < counts[x.member] + shape["samples_per_group"] for x in leases)
            assert all(counts[x.member] > 0 for x in leases)
    assert set(granted.values()) <= {1}, "a ticket was granted twice under one attempt"
    assert all(Ticket(t.index, t.sample, a) in granted for t in granted for a in range(t.attempt))


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_a_whole_run_leases_every_sample_of_every_group_in_order(shape: dict[str, int]) -> None:
    dispatch, tickets = Dispatch(**shape), []
    for done in range(shape["steps"]):
        while leases := dispatch.grant(done, free(student={0: 1})):
            tickets += leases[0].tickets
    groups = range(shape["steps"] * shape["groups_per_step"])
    assert tickets == [Ticket(i, k) for i in groups for k in range(shape["samples_per_group"])]


def test_strictly_on_policy_leases_one_step_at_a_time() -> None:
    dispatch = Dispatch(groups_per_step=2, samples_per_group=1, max_staleness=0, steps=9)
    assert _indices(dispatch, done=0) == [0, 1]
    assert _indices(dispatch, done=0) == []
    assert _indices(dispatch, done=1) == [2, 3]


def test_a_staleness_of_two_leases_two_steps_ahead() -> None:
    dispatch = Dispatch(groups_per_step=2, samples_per_group=1, max_staleness=2, steps=9)
    assert _indices(dispatch, done=0) == [0, 1, 2, 3, 4, 5]
    assert _indices(dispatch, done=1) == [6, 7]


def test_nothing_is_leased_beyond_the_last_step() -> None:
    dispatch = Dispatch(groups_per_step=2, samples_per_group=1, max_staleness=5, steps=3)
    assert _indices(dispatch, done=0) == [0, 1, 2, 3, 4, 5]


def test_a_group_stays_on_the_member_with_most_room() -> None:
    dispatch = Dispatch(groups_per_step=2, samples_per_group=4, max_staleness=0, steps=1)
    leases = {lease.member: lease.tickets for lease in dispatch.grant(0, free(student={0: 5, 1: 6}))}
    assert {member: {t.index for t in tickets} for member, tickets in leases.items()} == {1: {0}, 0: {1}}


def test_lost_tickets_come_first_under_the_next_attempt() -> None:
    dispatch = Dispatch(groups_per_step=1, samples_per_group=2, max_staleness=1, steps=9)
    dispatch.grant(0, free(student={0: 2}))
    dispatch.lose([Ticket(0, 1), Ticket(0, 0)])
    (lease,) = dispatch.grant(0, free(student={3: 4}))
    assert lease.tickets == (Ticket(0, 0, 1), Ticket(0, 1, 1), Ticket(1, 0), Ticket(1, 1))


def test_a_seed_follows_from_run_seed_uid_and_attempt() -> None:
    tickets = [Ticket(1, 2), Ticket(1, 3), Ticket(2, 2), Ticket(1, 2, 1)]
    seeds = [t.seed(7) for t in tickets] + [tickets[0].seed(8)]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == 915023871853347778, "a run recorded elsewhere must resume here with the same responses"


def test_uids_sort_like_tickets() -> None:
    tickets = [Ticket(i, k) for i in (0, 2, 10, 90_000_000) for k in (0, 3, 20)]
    assert sorted(tickets, key=lambda t: t.uid) == sorted(tickets)


# --- mixtures ---

FRACTIONS = {"student": 0.5, "teacher": 0.2, "dataset": 0.3}


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(list(FRACTIONS)), st.floats(0.0, 1.0), min_size=1), st.integers(0, 9))
def test_in_the_long_run_each_source_writes_its_fraction_of_the_groups(shares: dict[str, float], seed: int) -> None:
    total, groups = sum(shares.values()) or 1.0, 2000
    fractions = {name: share / total for name, share in shares.items()} if sum(shares.values()) else {"student": 1.0}
    counts = Counter(source_of(i, fractions, seed) for i in range(groups))
    for source, fraction in fractions.items():
        assert abs(counts[source] / groups - fraction) < 5 * (fraction * (1 - fraction) / groups) ** 0.5 + 1e-9


def test_a_source_follows_from_index_fractions_and_seed_alone() -> None:
    def drawn(seed: int) -> list[str]:
        return [source_of(i, FRACTIONS, seed) for i in range(50)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert "".join(source[0] for source in drawn(3)[:10]) == "sdtssstsss", "a run recorded elsewhere must resume here"


def test_a_source_of_fraction_zero_never_writes_and_of_fraction_one_always() -> None:
    assert {source_of(i, {"student": 0.0, "teacher": 1.0, "dataset": 0.0}, 5) for i in range(500)} == {"teacher"}


def test_a_group_that_moves_to_another_source_does_so_once_as_its_fraction_grows() -> None:
    for index in range(50):
        drawn = [source_of(index, {"teacher": f / 20, "student": 1 - f / 20}, 0) for f in range(21)]
        assert sorted(drawn) == drawn, "student first, then teacher"


def test_a_source_without_room_delays_no_other_and_keeps_its_groups() -> None:
    dispatch = Dispatch(4, 1, 0, 1, source=lambda index: ("student", "teacher")[index % 2])
    leases = dispatch.grant(0, free(student={0: 9}, teacher={0: 0}))
    assert [(x.source, [t.index for t in x.tickets]) for x in leases] == [("student", [0, 2])]
    assert dispatch.has_work(0), "two groups still wait for the teacher"
    leases = dispatch.grant(0, free(student={0: 9}, teacher={0: 9}))
    assert [(x.source, [t.index for t in x.tickets]) for x in leases] == [("teacher", [1, 3])]
    assert not dispatch.has_work(0)


def test_members_of_two_sources_may_share_a_number() -> None:
    dispatch = Dispatch(2, 1, 0, 1, source=lambda index: ("student", "dataset")[index])
    leases = dispatch.grant(0, free(student={0: 9}, dataset={0: 9}))
    assert {x.source: [t.index for t in x.tickets] for x in leases} == {"student": [0], "dataset": [1]}


def test_a_lost_ticket_goes_back_to_the_source_that_wrote_it() -> None:
    dispatch = Dispatch(2, 1, 0, 1, source=lambda index: ("student", "teacher")[index])
    dispatch.grant(0, free(student={0: 9}, teacher={0: 9}))
    dispatch.lose([Ticket(1, 0)])
    (lease,) = dispatch.grant(0, free(student={0: 9}, teacher={3: 9}))
    assert (lease.source, lease.member, lease.tickets) == ("teacher", 3, (Ticket(1, 0, 1),))


# --- resuming ---


def test_groups_trained_beyond_the_floor_are_not_leased_again_and_count_for_capacity() -> None:
    dispatch = Dispatch(2, 1, 1, 5, ledger=Ledger(1, frozenset({2, 4})))  # three groups: a step and a half
    assert _indices(dispatch, done=1) == [1, 3, 5]
    assert _indices(dispatch, done=2) == [6, 7]


# --- members that die ---


def die(dispatch: Dispatch, lease: Lease) -> set[int]:
    dispatch.settle(lease)
    return dispatch.lose(lease.tickets, died=True)


def suspect(dispatch: Dispatch) -> None:
    """Let members die under the first groups until these are suspects."""
    for _ in range(SUSPECTED):
        (lease,) = dispatch.grant(0, free(student={0: 9}))
        assert die(dispatch, lease) == set() and {t.index for t in lease.tickets} == {0, 1}


def test_a_poisoned_group_is_quarantined_after_three_deaths_alone_and_its_neighbours_are_not() -> None:
    dispatch = Dispatch(2, 2, 0, 1)
    suspect(dispatch)
    for death in range(1, DEATHS + 1):
        leases = dispatch.grant(0, free(student={0: 9, 1: 9, 2: 9}))
        assert [{t.index for t in lease.tickets} for lease in leases] == ([{0}, {1}] if death == 1 else [{0}]), "alone"
        assert die(dispatch, leases[0]) == ({0} if death == DEATHS else set())
        for innocent in leases[1:]:
            dispatch.settle(innocent)
    assert dispatch.grant(0, free(student={0: 9})) == [] and dispatch.suspects.guilty(0)


def test_a_guilty_group_that_loses_more_is_returned_and_not_leased_again() -> None:
    dispatch = Dispatch(2, 2, 0, 1)
    suspect(dispatch)
    for _ in range(DEATHS):
        dispatch.lose([Ticket(0, 1)], died=True)
    assert dispatch.lose([Ticket(0, 0), Ticket(1, 0)]) == {0} == dispatch.lose([Ticket(0, 0)], died=True)
    (lease,) = dispatch.grant(0, {"student": {0: FreeSlots(9, idle=True)}})
    assert {t.index for t in lease.tickets} == {1}


def test_a_death_beside_a_guilty_group_is_no_death_alone() -> None:
    dispatch = Dispatch(2, 1, 0, 1)
    for _ in range(DEATHS):
        dispatch.lose([Ticket(0, 0)], died=True)
    for _ in range(DEATHS):
        assert dispatch.lose([Ticket(0, 0), Ticket(1, 0)], died=True) == {0}
    assert not dispatch.suspects.alone[1]


def test_deaths_in_company_make_suspects_and_never_a_verdict() -> None:
    dispatch = Dispatch(2, 2, 0, 1)
    suspect(dispatch)
    leases = dispatch.grant(0, free(student={0: 9, 1: 9}))
    for _ in range(2 * DEATHS):
        assert dispatch.lose([t for lease in leases for t in lease.tickets], died=True) == set()
        leases = dispatch.grant(0, free(student={0: 9, 1: 9, 2: 9}))


def test_a_member_that_tests_a_suspect_is_given_nothing_else() -> None:
    dispatch = Dispatch(2, 1, 1, 2)
    for _ in range(SUSPECTED):
        (lease,) = dispatch.grant(0, {"student": {0: FreeSlots(1, idle=True)}})
        die(dispatch, lease)
    (suspect,) = dispatch.grant(0, {"student": {3: FreeSlots(9, idle=True)}})
    assert [t.index for t in suspect.tickets] == [0]
    assert dispatch.grant(0, {"student": {3: FreeSlots(8, idle=False)}}) == []
    dispatch.settle(suspect)
    assert [t.index for lease in dispatch.grant(0, {"student": {3: FreeSlots(9, True)}}) for t in lease.tickets] == [
        1,
        2,
        3,
    ]


def test_a_suspect_waits_for_an_idle_member_and_delays_no_other() -> None:
    dispatch = Dispatch(2, 1, 0, 1)
    for _ in range(SUSPECTED):
        (lease,) = dispatch.grant(0, free(student={0: 1}))
        die(dispatch, lease)
    (lease,) = dispatch.grant(0, {"student": {0: FreeSlots(9, idle=False)}})
    assert [t.index for t in lease.tickets] == [1]


def test_a_loss_without_a_death_makes_no_suspect() -> None:
    dispatch = Dispatch(1, 1, 0, 1)
    for attempt in range(2 * DEATHS):
        (lease,) = dispatch.grant(0, free(student={0: 1}))
        assert lease.tickets[0].attempt == attempt
        dispatch.settle(lease)
        assert dispatch.lose(lease.tickets) == set()


def _indices(dispatch: Dispatch, done: int) -> list[int]:
    return [t.index for lease in dispatch.grant(done, free(student={0: 100})) for t in lease.tickets]
