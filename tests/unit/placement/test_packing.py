"""First-fit of bundles to nodes; every placement that it finds is valid."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.roles.sizes import Spreading
from orchestrator.placement.packing import Bundle, Node, matches, place

LABELS = st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])
WANTED = st.sampled_from([{}, {}, {"zone": "a"}, {"zone": "!a"}, {"zone": "in(a,b)"}, {"zone": "!in(a,b)"}])
BUNDLES = st.lists(
    st.builds(
        Bundle, st.just("r"), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0, 0.4, 0.6, 1, 2]), WANTED
    ),
    min_size=1,
    max_size=5,
)
SHAPES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), LABELS), min_size=1, max_size=3)
NODES = SHAPES.map(lambda shapes: [Node(f"n{i}", *shape) for i, shape in enumerate(shapes)])


def fits(bundles: list[Bundle], nodes: list[Node]) -> bool:
    """By brute force: whether every bundle can have a node and, there, whole GPUs or a share of one."""

    def on_gpus(shares: list[float], gpus: int) -> bool:
        whole = sum(int(share) for share in shares if share >= 1)
        parts = [share for share in shares if 0 < share < 1]
        ways = product(range(gpus - whole), repeat=len(parts)) if gpus >= whole else ()
        return any(
            all(sum(p for p, at in zip(parts, way, strict=True) if at == gpu) <= 1 + 1e-9 for gpu in range(gpus))
            for way in ways
        )

    def holds(node: Node, inside: list[Bundle]) -> bool:
        labelled = all(_allowed(node.labels.get("zone"), bundle.labels.get("zone")) for bundle in inside)
        cpus = sum(bundle.cpus for bundle in inside) <= node.cpus
        return labelled and cpus and on_gpus([bundle.gpus for bundle in inside], int(node.gpus))

    return any(
        all(holds(node, [b for b, at in zip(bundles, way, strict=True) if at == i]) for i, node in enumerate(nodes))
        for way in product(range(len(nodes)), repeat=len(bundles))
    )


def _allowed(label: str | None, wanted: str | None) -> bool:
    return {None: True, "a": label == "a", "!a": label != "a"}.get(
        wanted, label is not None if wanted == "in(a,b)" else label is None
    )


@settings(max_examples=200, deadline=None)
@given(BUNDLES, NODES)
def test_every_placement_is_valid(bundles: list[Bundle], nodes: list[Node]) -> None:
    placed = place(bundles, nodes)
    for node in nodes:
        inside = [b for b, home in zip(bundles, placed.homes, strict=True) if home == node.name]
        assert fits(inside, [node]), "what lies on a node fits there, whatever found no place"
    if not placed.homeless:
        assert fits(bundles, nodes)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.4, 0.6, 1.0, 2.0]), NODES)
def test_equal_bundles_are_placed_wherever_they_fit(count: int, cpus: float, gpus: float, nodes: list[Node]) -> None:
    bundles = [Bundle("r", cpus, gpus)] * count
    assert (not place(bundles, nodes).homeless) == fits(bundles, nodes)


def test_a_bundle_does_not_span_nodes_but_a_member_may() -> None:
    nodes = [Node("a", 2, 1), Node("b", 2, 1)]
    assert place([Bundle("scorer", 4)], nodes).homes == (None,), "4 CPUs are there, on no one node"
    assert set(place([Bundle("learner", 1, 1)] * 2, nodes).homes) == {"a", "b"}


def test_bundles_without_gpus_leave_the_gpu_nodes_to_those_that_need_them() -> None:
    nodes = [Node("gpu", 4, 1), Node("cpu", 4)]
    placed = place([Bundle("reward", 4), Bundle("rollout", 4, 1)], nodes)
    assert placed.homes == ("cpu", "gpu")


def test_gpu_shares_do_not_straddle_two_gpus() -> None:
    assert len(place([Bundle("s", 0, 0.6)] * 3, [Node("n", 1, 2)]).homeless) == 1
    assert not place([Bundle("s", 0, 0.1)] * 10, [Node("n", 1, 1)]).homeless, "ten tenths are one"


def test_a_gpu_that_is_shared_is_not_whole() -> None:
    nodes = [Node("a", 1, 1, {"zone": "a"}), Node("b", 1, 1)]
    bundles = [Bundle("share", 0, 0.5, {"zone": "a"}), Bundle("whole", 0, 1), Bundle("whole", 0, 1)]
    assert place(bundles, nodes).homes == ("a", "b", None)


def test_a_bundle_with_few_possible_nodes_comes_first() -> None:
    nodes = [Node("fast", 1, 0, {"disk": "fast"}), Node("slow", 1)]
    bundles = [Bundle("any", 1), Bundle("picky", 1, 0, {"disk": "fast"})]
    assert place(bundles, nodes).homes == ("slow", "fast")


def gang(role: str, count: int, placement: Spreading, gpus: float = 1, member: int = 0) -> list[Bundle]:
    return [Bundle(role, 1, gpus, placement=placement, member=member) for _ in range(count)]


def test_ranks_that_pack_strictly_lie_on_one_node_or_nowhere() -> None:
    nodes = [Node("a", 8, 2), Node("b", 8, 3), Node("c", 8, 4)]
    assert place(gang("learner", 4, "strict_pack"), nodes).homes == ("c",) * 4
    assert place(gang("learner", 5, "strict_pack"), nodes).homes == (None,) * 5
    assert place(gang("learner", 5, "pack"), nodes).homes == ("a", "a", "b", "b", "b")


def test_ranks_that_pack_come_before_members_of_the_same_size() -> None:
    nodes = [Node("a", 8, 4), Node("b", 8, 4)]
    members = [bundle for i in range(4) for bundle in gang("rollout", 1, "spread", member=i)]
    placed = place([*members, *gang("learner", 4, "strict_pack")], nodes)
    assert placed.homes == ("b",) * 4 + ("a",) * 4, "spread first, they would leave 2 and 2 GPUs"


def test_members_that_spread_go_to_the_node_with_fewest_of_their_role() -> None:
    nodes = [Node("a", 8, 4), Node("b", 8, 4), Node("c", 8, 1)]
    members = [bundle for i in range(6) for bundle in gang("rollout", 1, "spread", member=i)]
    assert place(members, nodes).on("a") == {"rollout": 3} and place(members, nodes).on("c") == {"rollout": 1}
    packed = [bundle for i in range(4) for bundle in gang("rollout", 1, "pack", member=i)]
    assert place(packed, nodes).homes == ("c", "a", "a", "a")


def test_members_that_spread_strictly_share_no_node() -> None:
    nodes = [Node("a", 8, 4), Node("b", 8, 4)]
    members = [bundle for i in range(3) for bundle in gang("scorer.t", 1, "strict_spread", member=i)]
    other = gang("rollout", 1, "pack")
    assert place([*members, *other], nodes).homes == ("a", "b", None, "a"), "another role does not count"


def of_kind(kind: str, count: int, gpus: float, placement: Spreading = "pack", **labels: str) -> list[Bundle]:
    return [Bundle("rollout", 1, gpus, labels, placement=placement, member=i, kind=kind) for i in range(count)]


def test_members_of_two_kinds_lie_on_two_kinds_of_nodes() -> None:
    nodes = [Node("small", 8, 2), Node("large", 8, 2, {"card": "h200"})]
    bundles = [*of_kind("", 2, 1), *of_kind("wide", 1, 2, card="h200")]
    placed = place(bundles, nodes)
    assert placed.homes == ("small", "small", "large"), "the wide one first, which has one node"
    assert placed.on("large") == {"rollout.kinds.wide": 1} and placed.of_role("large", "rollout") == 1
    assert (placed.share("small", "rollout"), placed.share("large", "rollout")) == (2 / 3, 1 / 3)
    assert place(of_kind("wide", 2, 2, card="h200"), nodes).homes == ("large", None)
    one, three = Node("one", 8, 1), Node("three", 8, 3)
    assert place([*of_kind("", 1, 1), *of_kind("wide", 1, 2)], [one, three]).homes == ("one", "three"), "not together"


def test_members_of_all_kinds_count_where_a_role_spreads() -> None:
    nodes = [Node("a", 8, 4), Node("b", 8, 4)]
    apart = [*of_kind("", 1, 1, "strict_spread"), *of_kind("wide", 2, 2, "strict_spread")]
    assert sorted(map(str, place(apart, nodes).homes)) == ["None", "a", "b"]
    spread = [*of_kind("", 2, 1, "spread"), *of_kind("wide", 2, 2, "spread")]
    assert [place(spread, nodes).of_role(node.name, "rollout") for node in nodes] == [2, 2]


def test_custom_resources_are_counted_and_run_out() -> None:
    nodes = [Node("plain", 8), Node("licensed", 8, custom={"licence": 1.5})]
    bundles = [Bundle("reward", 1, custom={"licence": 0.5}) for _ in range(4)]
    assert place(bundles, nodes).homes == ("licensed",) * 3 + (None,)


def test_each_gpu_knows_what_lies_on_it() -> None:
    shares = [
        Bundle("learner", 1, 0.51),
        Bundle("learner", 1, 0.51),
        Bundle("rollout", 1, 0.3),
        Bundle("rollout", 1, 0.3),
    ]
    placed = place([*shares, Bundle("scorer", 1, 2)], [Node("n", 8, 4)])
    on_gpus = {gpu: [bundle.role for bundle in bundles] for gpu, bundles in placed.on_gpus("n").items()}
    assert on_gpus == {0: ["scorer"], 1: ["scorer"], 2: ["learner", "rollout"], 3: ["learner", "rollout"]}


def test_nodes_that_an_autoscaler_may_add_come_last() -> None:
    nodes = [Node("small", 2, spare=True), Node("large", 2, 1)]
    assert place([Bundle("reward", 1)], nodes).homes == ("large",)


@pytest.mark.parametrize(
    ("wanted", "labels", "match"),
    [
        ("a", {"zone": "a"}, True),
        ("a", {"zone": "b"}, False),
        ("a", {}, False),
        ("!a", {"zone": "b"}, True),
        ("!a", {}, True),
        ("in(a, b)", {"zone": "b"}, True),
        ("in(a,b)", {"zone": "c"}, False),
        ("!in(a,b)", {"zone": "a"}, False),
        ("!in(a,b)", {}, True),
    ],
)
def test_labels_are_read_as_ray_reads_them(wanted: str, labels: dict[str, str], match: bool) -> None:
    assert matches(labels, {"zone": wanted}) == match


def test_a_placement_gives_each_nodes_share_of_a_role() -> None:
    placed = place([Bundle("rollout", 2), Bundle("rollout", 2), Bundle("learner", 1)], [Node("a", 3), Node("b", 2)])
    assert (placed.share("a", "rollout"), placed.share("b", "rollout"), placed.share("a", "dataset")) == (0.5, 0.5, 0)
    assert placed.first("learner") == "a" and placed.on("a") == {"rollout": 1, "learner": 1}
