"""Leases keep the staleness bound, and grant a ticket once per attempt."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.pools.suspects import DEATHS, SUSPECTED
from orchestrator.samples.leases import FreeSlots, Lease, Leases, Ticket, free_slots, source_of
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


def test_groups_go_to_members_by_the_share_of_their_slots_that_is_free() -> None:
    """A member that decodes three times as many responses gets three of four groups, and not all of the first."""
    leases = Leases(groups_per_step=4, samples_per_group=2, max_staleness=0, steps=1)
    found = leases.grant(0, {"student": {0: free_slots(8, 0), 1: free_slots(24, 0)}})
    assert {lease.member: len(lease.tickets) for lease in found} == {0: 2, 1: 6}
    assert free_slots(24, 6) == FreeSlots(18, idle=False, of=24)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.data())
def test_leases_under_any_course_of_grants_losses_and_steps(shape: dict[str, int], data: st.DataObject) -> None:
    """Draw what members have free, which leases die and when a step is done; check every grant on the way."""
    first_step = data.draw(st.integers(0, shape["steps"] - 1))
    first = first_step * shape["groups_per_step"]
    leases, done = Leases(**shape, ledger=Ledger(first)), first_step
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
            leases.lose(lost)
            waiting |= {Ticket(t.index, t.sample, t.attempt + 1) for t in lost}
            open_tickets = [t for t in open_tickets if t not in lost]
        elif action == "grant":
            counts, allowed = data.draw(FREE), unleased()
            wants = leases.has_work(done)
            assert wants == bool(waiting or allowed)
            given_out = leases.grant(done, free(student=counts))
            tickets = [t for lease in given_out for t in lease.tickets]
            granted.update(tickets)
            open_tickets += tickets
            waiting -= set(tickets)
            new_groups = {t.index for t in tickets if t.attempt == 0}
            assert bool(given_out) == (wants and any(count > 0 for count in counts.values()))
            assert new_groups <= allowed and leases.has_work(done) == bool(waiting or unleased())
            assert all(len(x.tickets) < counts[x.member] + shape["samples_per_group"] for x in given_out)
            assert all(counts[x.member] > 0 for x in given_out)
    assert set(granted.values()) <= {1}, "a ticket was granted twice under one attempt"
    assert all(Ticket(t.index, t.sample, a) in granted for t in granted for a in range(t.attempt))


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_a_whole_run_leases_every_sample_of_every_group_in_order(shape: dict[str, int]) -> None:
    leases, tickets = Leases(**shape), []
    for done in range(shape["steps"]):
        while granted := leases.grant(done, free(student={0: 1})):
            tickets += granted[0].tickets
    groups = range(shape["steps"] * shape["groups_per_step"])
    assert tickets == [Ticket(i, k) for i in groups for k in range(shape["samples_per_group"])]


def test_strictly_on_policy_leases_one_step_at_a_time() -> None:
    leases = Leases(groups_per_step=2, samples_per_group=1, max_staleness=0, steps=9)
    assert _indices(leases, done=0) == [0, 1]
    assert _indices(leases, done=0) == []
    assert _indices(leases, done=1) == [2, 3]


def test_a_staleness_of_two_leases_two_steps_ahead() -> None:
    leases = Leases(groups_per_step=2, samples_per_group=1, max_staleness=2, steps=9)
    assert _indices(leases, done=0) == [0, 1, 2, 3, 4, 5]
    assert _indices(leases, done=1) == [6, 7]


def test_nothing_is_leased_beyond_the_last_step() -> None:
    leases = Leases(groups_per_step=2, samples_per_group=1, max_staleness=5, steps=3)
    assert _indices(leases, done=0) == [0, 1, 2, 3, 4, 5]


def test_a_group_stays_on_the_member_with_most_room() -> None:
    leases = Leases(groups_per_step=2, samples_per_group=4, max_staleness=0, steps=1)
    granted = {lease.member: lease.tickets for lease in leases.grant(0, free(student={0: 5, 1: 6}))}
    assert {member: {t.index for t in tickets} for member, tickets in granted.items()} == {1: {0}, 0: {1}}


def test_lost_tickets_come_first_under_the_next_attempt() -> None:
    leases = Leases(groups_per_step=1, samples_per_group=2, max_staleness=1, steps=9)
    leases.grant(0, free(student={0: 2}))
    leases.lose([Ticket(0, 1), Ticket(0, 0)])
    (lease,) = leases.grant(0, free(student={3: 4}))
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
        spread = (groups * fraction * (1 - fraction)) ** 0.5
        rare = 12 if 0 < fraction < 1 else 0  # of few events a handful more is no wonder
        assert abs(counts[source] - groups * fraction) < 5 * spread + rare + 1e-6


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
    leases = Leases(4, 1, 0, 1, source=lambda index: ("student", "teacher")[index % 2])
    granted = leases.grant(0, free(student={0: 9}, teacher={0: 0}))
    assert [(x.source, [t.index for t in x.tickets]) for x in granted] == [("student", [0, 2])]
    assert leases.has_work(0), "two groups still wait for the teacher"
    granted = leases.grant(0, free(student={0: 9}, teacher={0: 9}))
    assert [(x.source, [t.index for t in x.tickets]) for x in granted] == [("teacher", [1, 3])]
    assert not leases.has_work(0)


def test_members_of_two_sources_may_share_a_number() -> None:
    leases = Leases(2, 1, 0, 1, source=lambda index: ("student", "dataset")[index])
    granted = leases.grant(0, free(student={0: 9}, dataset={0: 9}))
    assert {x.source: [t.index for t in x.tickets] for x in granted} == {"student": [0], "dataset": [1]}


def test_a_lost_ticket_goes_back_to_the_source_that_wrote_it() -> None:
    leases = Leases(2, 1, 0, 1, source=lambda index: ("student", "teacher")[index])
    leases.grant(0, free(student={0: 9}, teacher={0: 9}))
    leases.lose([Ticket(1, 0)])
    (lease,) = leases.grant(0, free(student={0: 9}, teacher={3: 9}))
    assert (lease.source, lease.member, lease.tickets) == ("teacher", 3, (Ticket(1, 0, 1),))


# --- resuming ---


def test_groups_trained_beyond_the_floor_are_not_leased_again_and_count_for_capacity() -> None:
    leases = Leases(2, 1, 1, 5, ledger=Ledger(1, frozenset({2, 4})))  # three groups: a step and a half
    assert _indices(leases, done=1) == [1, 3, 5]
    assert _indices(leases, done=2) == [6, 7]


# --- members that die ---


def die(leases: Leases, lease: Lease) -> set[int]:
    leases.settle(lease)
    return leases.lose(lease.tickets, died=True)


def suspect(leases: Leases) -> None:
    """Let members die under the first groups until these are suspects."""
    for _ in range(SUSPECTED):
        (lease,) = leases.grant(0, free(student={0: 9}))
        assert die(leases, lease) == set() and {t.index for t in lease.tickets} == {0, 1}


def test_a_poisoned_group_is_quarantined_after_three_deaths_alone_and_its_neighbours_are_not() -> None:
    leases = Leases(2, 2, 0, 1)
    suspect(leases)
    for death in range(1, DEATHS + 1):
        granted = leases.grant(0, free(student={0: 9, 1: 9, 2: 9}))
        assert [{t.index for t in lease.tickets} for lease in granted] == ([{0}, {1}] if death == 1 else [{0}]), "alone"
        assert die(leases, granted[0]) == ({0} if death == DEATHS else set())
        for innocent in granted[1:]:
            leases.settle(innocent)
    assert leases.grant(0, free(student={0: 9})) == [] and leases.suspects.guilty(0)


def test_a_guilty_group_that_loses_more_is_returned_and_not_leased_again() -> None:
    leases = Leases(2, 2, 0, 1)
    suspect(leases)
    for _ in range(DEATHS):
        leases.lose([Ticket(0, 1)], died=True)
    assert leases.lose([Ticket(0, 0), Ticket(1, 0)]) == {0} == leases.lose([Ticket(0, 0)], died=True)
    (lease,) = leases.grant(0, {"student": {0: FreeSlots(9, idle=True)}})
    assert {t.index for t in lease.tickets} == {1}


def test_a_death_beside_a_guilty_group_is_no_death_alone() -> None:
    leases = Leases(2, 1, 0, 1)
    for _ in range(DEATHS):
        leases.lose([Ticket(0, 0)], died=True)
    for _ in range(DEATHS):
        assert leases.lose([Ticket(0, 0), Ticket(1, 0)], died=True) == {0}
    assert not leases.suspects.alone[1]


def test_deaths_in_company_make_suspects_and_never_a_verdict() -> None:
    leases = Leases(2, 2, 0, 1)
    suspect(leases)
    granted = leases.grant(0, free(student={0: 9, 1: 9}))
    for _ in range(2 * DEATHS):
        assert leases.lose([t for lease in granted for t in lease.tickets], died=True) == set()
        granted = leases.grant(0, free(student={0: 9, 1: 9, 2: 9}))


def test_a_member_that_tests_a_suspect_is_given_nothing_else() -> None:
    leases = Leases(2, 1, 1, 2)
    for _ in range(SUSPECTED):
        (lease,) = leases.grant(0, {"student": {0: FreeSlots(1, idle=True)}})
        die(leases, lease)
    (suspect,) = leases.grant(0, {"student": {3: FreeSlots(9, idle=True)}})
    assert [t.index for t in suspect.tickets] == [0]
    assert leases.grant(0, {"student": {3: FreeSlots(8, idle=False)}}) == []
    leases.settle(suspect)
    assert [t.index for lease in leases.grant(0, {"student": {3: FreeSlots(9, True)}}) for t in lease.tickets] == [
        1,
        2,
        3,
    ]


def test_a_suspect_waits_for_an_idle_member_and_delays_no_other() -> None:
    leases = Leases(2, 1, 0, 1)
    for _ in range(SUSPECTED):
        (lease,) = leases.grant(0, free(student={0: 1}))
        die(leases, lease)
    (lease,) = leases.grant(0, {"student": {0: FreeSlots(9, idle=False)}})
    assert [t.index for t in lease.tickets] == [1]


def test_a_loss_without_a_death_makes_no_suspect() -> None:
    leases = Leases(1, 1, 0, 1)
    for attempt in range(2 * DEATHS):
        (lease,) = leases.grant(0, free(student={0: 1}))
        assert lease.tickets[0].attempt == attempt
        leases.settle(lease)
        assert leases.lose(lease.tickets) == set()


def _indices(leases: Leases, done: int) -> list[int]:
    return [t.index for lease in leases.grant(done, free(student={0: 100})) for t in lease.tickets]
