"""What a run takes against machines made up for the test: every shortfall is one line with both numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from configs.hardware import resolve_dtypes
from configs.load import RecipeError
from configs.schema import Recipe
from orchestrator.placement.packing import Node
from orchestrator.preflight.capacity import bundles_of, compare, packed
from orchestrator.preflight.comparison import GIB, MIB, Comparison, refuse
from orchestrator.preflight.estimates import Size
from orchestrator.preflight.files import Inputs
from orchestrator.preflight.survey import Free, Machine, Survey
from orchestrator.samples.prompts import Prompt
from tests.unit.recipes import loaded

SIZES = {name: Size(100 * MIB, 1000, 10_000) for name in ("student", "teacher")}  # 400 MiB in float32
PROMPTS = [Prompt({"prompt": "p"}, {"student": [1] * 10, "teacher": [1] * 10}, None)]
INPUTS = Inputs(PROMPTS, [], None, 30_000, (1,), 400 * MIB, 100 * MIB)
AMPLE = Free(shared_memory=64 * GIB, disk=64 * GIB, memory=64 * GIB)


def machine(name: str = "a", cpus: float = 8, gpus: float = 0, free: Free | None = AMPLE, **more: Any) -> Machine:
    labels, store = more.get("labels", {}), more.get("store", 32 * GIB)
    return Machine(Node(name, cpus, gpus, labels), store, free, more.get("silent", ""))


def compared(changes: dict[str, Any], *machines: Machine, **survey: Any) -> list[Comparison]:
    recipe, places = _recipe(changes), survey.pop("placed", True)
    surveyed = Survey(machines or (machine(),), survey.pop("disk", 64 * GIB), **survey)
    return compare(recipe, INPUTS.extent, SIZES, surveyed, packed(recipe, surveyed) if places else None)


def found(grade: str, changes: dict[str, Any], *machines: Machine, **survey: Any) -> list[str]:
    return [finding.line for finding in compared(changes, *machines, **survey) if finding.grade == grade]


def _recipe(changes: dict[str, Any]) -> Recipe:
    return resolve_dtypes(loaded(changes), cpu_has_bf16=False)


SHARES = {
    "colocate": True,
    "learner.ranks": 2,
    "learner.zero_stage": 2,
    "learner.resources": {"gpus": 0.51},
    "rollout.members": 2,
    "rollout.resources": {"gpus": 0.3},
    "scorer.teacher": {"members": 2, "resources": {"gpus": 0.19}},
}


def test_colocated_roles_are_counted_by_their_shares() -> None:
    """One of each on both GPUs; no GPU of their own is needed."""
    assert found("short", SHARES, machine(gpus=2)) == []
    (line,) = found("short", SHARES, machine(gpus=1))
    assert "the layout takes 2 GPU (rollout 2 x 0.3, scorer.teacher 2 x 0.19, learner 2 x 0.51)" in line
    (line,) = found("short", SHARES | {"rollout.members": 3}, machine(gpus=2))
    assert "the layout takes 2.3 GPU" in line


def test_a_run_that_fits_has_a_line_with_numbers_for_each_comparison() -> None:
    findings = compared({"rollout.kv_cache_gib": 8, "rollout.max_concurrent": 16})
    assert {finding.grade for finding in findings} == {"fits"}, findings
    refuse(findings)
    lines = "\n".join(finding.line for finding in findings)
    for said in (
        "the layout takes 1.6 CPU (rollout 1 x 0.5, scorer.teacher 1 x 0.5",
        "the cluster has 8 on 1 node",
        "4 bundles; each has a place, on 1 node in all",
        "a weight version takes 400.0 MiB and 2 live at a time",
        "1 weight file of 400.0 MiB and 800.0 MiB in the object store take 1200.0 MiB of /dev/shm on a; 64.0 GiB",
        "2 checkpoints of 1200.0 MiB, an exported model of 400.0 MiB",
        "16 x 512 tokens take 312.5 MiB; the cache has 8 GiB",
    ):
        assert said in lines, lines


def test_too_few_cpus_are_refused_once_with_the_role_that_takes_most() -> None:
    (line,) = found("short", {"rollout.members": 20})
    assert line == (
        "rollout.resources.cpus: the layout takes 11.1 CPU (rollout 20 x 0.5, scorer.teacher 1 x 0.5, reward 1 x 0.1, "
        "learner 1 x 0.5); the cluster has 8 on 1 node: 3.1 short; lower rollout.members or rollout.resources.cpus, or "
        "add nodes"
    )


def test_the_remedy_for_a_large_learner_is_fewer_ranks() -> None:
    (line,) = found("short", {"learner.ranks": 4, "learner.resources": {"gpus": 1}}, machine(gpus=2))
    assert "takes 4 GPU (learner 4 x 1); the cluster has 2 on 1 node: 2 short; lower learner.ranks" in line


def test_resources_in_use_now_are_tight_and_not_refused() -> None:
    (line,) = found("tight", {"rollout.max_concurrent": 1}, idle={"CPU": 1.0})
    assert "the cluster has 8 on 1 node, 1 free now; the run waits for a place" in line


def test_a_bundle_larger_than_every_node_is_refused_though_the_sum_is_enough() -> None:
    (line,) = found("short", {"scorer.teacher.resources": {"cpus": 4}}, machine("a", 3), machine("b", 3))
    assert line == (
        "scorer.teacher.resources: scorer.teacher takes bundles of 4 CPU and 0 GPU, each on one node; "
        "no node is that large: 2 nodes of 3 CPU and 0 GPU; "
        "lower scorer.teacher.resources or scorer.teacher.members, or add such a node"
    )


def test_labels_that_no_node_has_are_named() -> None:
    (line,) = found("short", {"rollout.resources": {"labels": {"zone": "a"}}}, machine(labels={"zone": "b"}))
    assert "on one node with {'zone': 'a'}; no node has these labels: 1 node of 8 CPU" in line


def test_bundles_that_crowd_each_other_out_are_counted() -> None:
    changes = {"rollout.resources": {"cpus": 2}, "rollout.members": 3}
    (line,) = found("short", changes, *(machine(name, 2.4) for name in "abc"), machine("d", 0.6))
    assert "1 of 6 bundles found no place beside the others: 3 nodes of 2.4 CPU" in line


def test_weight_versions_and_payloads_must_fit_into_the_store_of_the_learners_node() -> None:
    (line,) = found("short", {}, machine(store=700 * MIB))
    assert "2 live at a time" in line and "800.0 MiB on a; its object store has 700.0 MiB" in line
    assert "raise cluster.object_store_mib to 865 " in line, "what is needed and 64 MiB"
    payloads = {"batch.prompts_per_step": 25_000, "objective.support": "full", "max_staleness": 1}
    (line,) = found("short", payloads, machine(store=2 * GIB))
    assert "payloads take at most 3190.2 MiB: 3990.2 MiB on a" in line, "50,000 x (376 + 64,128), and a head"


def test_a_node_that_only_pulls_needs_room_for_one_version() -> None:
    apart = {"rollout.resources": {"gpus": 1}, "rollout.kv_cache_gib": 8}
    machines = machine("cpu"), machine("gpu", gpus=1, store=500 * MIB)
    assert found("short", apart, *machines) == []
    (line,) = found("short", apart, machines[0], machine("gpu", gpus=1, store=300 * MIB))
    assert "400.0 MiB on gpu; its object store has 300.0 MiB" in line


def test_every_member_writes_a_file_into_the_shared_memory_of_its_node() -> None:
    (line,) = found("short", {"rollout.members": 4}, machine(free=replace(AMPLE, shared_memory=2 * GIB)))
    assert "4 weight files of 400.0 MiB and 800.0 MiB in the object store take 2400.0 MiB of /dev/shm on a" in line
    assert "2048.0 MiB are free; enlarge /dev/shm or lower rollout.members" in line
    more = {"rollout.members": 1, "rollout.kinds": {"wide": {"members": 3, "max_concurrent": 8}}}
    (line,) = found("short", more, machine(free=replace(AMPLE, shared_memory=2 * GIB)))
    assert "2048.0 MiB are free; enlarge /dev/shm or lower rollout.kinds.wide.members" in line


def test_of_many_nodes_the_fullest_is_shown_or_all_that_are_short() -> None:
    members = {"rollout.members": 4, "rollout.resources": {"cpus": 2}, "rollout.kv_cache_gib": 2}
    roomy, scarce = replace(AMPLE, memory=200 * GIB), replace(AMPLE, memory=10 * GIB)
    lines = found("fits", members, machine("a", 6, free=roomy), machine("b", 4, free=scarce))
    assert [line for line in lines if "of memory" in line and " on b take" in line] and not any(
        " on a take at least" in line for line in lines
    )
    short = replace(AMPLE, memory=4 * GIB)
    lines = found("short", members, machine("a", 6, free=short), machine("b", 4, free=short))
    assert len(lines) == 2 and all("4096.0 MiB are free" in line for line in lines)


def test_memory_is_the_weights_the_optimizer_and_the_caches() -> None:
    (line,) = found("short", {}, machine(free=replace(AMPLE, memory=3 * GIB)))
    assert (
        "take at least 3424.0 MiB of memory (rollout 1424.0 MiB, scorer.teacher 400.0 MiB, learner 1600.0 MiB)" in line
    )
    assert line.startswith("learner: ") and "raise learner.zero_stage" in line


@pytest.mark.parametrize(("disk", "grade"), [(2799, "short"), (2800, "tight"), (2900, "fits")])
def test_checkpoints_can_make_a_disk_short_and_samples_only_tight(disk: int, grade: str) -> None:
    (finding,) = [f for f in compared({"run.steps": 20_000}, disk=disk * MIB) if f.key == "run.root"]
    assert finding.grade == grade, finding.line
    assert "samples of at most 40.9 MiB take 2840.9 MiB" in finding.line
    assert ("lower checkpoint.keep" in finding.line) == (grade == "short")


def test_bytes_that_the_run_wrote_already_count_as_room() -> None:
    assert found("short", {}, disk=1000 * MIB) and not found("short", {}, disk=1000 * MIB, held=2000 * MIB)


def test_one_response_must_fit_into_the_cache_and_all_should() -> None:
    tight = {"rollout.max_context_tokens": 1000, "rollout.max_concurrent": 64}
    (line,) = found("tight", tight)
    assert line == (
        "rollout.kv_cache_gib: 64 x 1000 tokens take 2441.4 MiB; the cache has 1 GiB, room for 26; vLLM lets what is "
        "beyond wait; raise it to 3 if responses are that long"
    )
    assert found("tight", tight | {"rollout.max_concurrent": "auto"}) == [line], "auto is 64 on a CPU"
    (line,) = found("short", {"rollout.max_context_tokens": 30_000})
    assert "the cache has 1 GiB, room for 0; raise it to 2 or lower rollout.max_context_tokens" in line
    assert found("tight", {**tight, "rollout.resources": {"gpus": 1}}, machine(gpus=1)) == []


def test_a_node_that_does_not_answer_is_named() -> None:
    quiet = {"rollout.max_concurrent": 1}
    (line,) = found("tight", quiet, machine(free=None, silent="no answer in 30 s"))
    assert "node a has a part in the run; it did not say what is free: no answer in 30 s; its shared memory" in line


def test_a_node_that_does_not_see_the_runs_folder_is_refused() -> None:
    (line,) = found("short", {"run.root": "/shared"}, machine(free=replace(AMPLE, disk=None)))
    assert (
        line == "run.root: /shared; what node a writes there is not seen here; put it on storage that every node sees"
    )


def test_a_node_without_bundles_is_not_compared() -> None:
    idle = machine("z", 8, gpus=8, store=0, free=Free(0, None, 0))
    assert found("short", {}, machine("a"), idle) == []


def test_each_thing_that_is_short_has_a_line() -> None:
    findings = compared({}, machine(store=MIB, free=replace(AMPLE, memory=MIB)), disk=MIB)
    with pytest.raises(RecipeError) as error:
        refuse(findings)
    keys = [line.split(": ")[0] for line in str(error.value).splitlines()]
    assert keys == ["cluster.object_store_mib", "learner", "run.root"]


# --- a live cluster has not placed the layout ---


def test_what_the_cluster_lacks_in_all_is_short_when_ray_has_not_placed_it() -> None:
    (short,) = found("short", {"rollout.members": 40}, placed=False)
    assert "the layout takes" in short and "the cluster has 8 on 1 node" in short


def test_what_an_autoscaler_may_add_is_waited_for() -> None:
    grown = {"placed": False, "most": {"CPU": 64.0}}
    assert found("short", {"rollout.members": 40}, **grown) == []
    total = found("tight", {"rollout.members": 40}, **grown)[0]
    assert "the cluster has 8 on 1 node, and may grow to 64; the run waits for new nodes" in total
    assert found("short", {"rollout.members": 400}, **grown), "more than it may grow to"


def test_a_bundle_that_no_node_holds_is_short_though_the_sum_is_enough() -> None:
    machines = (machine("a", cpus=4), machine("b", cpus=4))
    (short,) = found("short", {"learner.resources": {"cpus": 5}}, *machines, placed=False)
    assert "learner takes bundles of 5 CPU" in short and "no node is that large" in short


def test_what_others_hold_now_is_waited_for() -> None:
    held, waiting, *_ = found("tight", {}, placed=False, idle={"CPU": 0.5})
    assert "0.5 free now; the run waits for a place" in held and "Ray has not placed them all yet" in waiting


BY_COPY = {"rollout.carrier": "ipc", "rollout.resources": {"gpus": 1}, "learner.resources": {"gpus": 1}}


def test_a_copy_on_the_learners_gpu_is_for_one_node() -> None:
    assert found("short", BY_COPY, machine(gpus=2)) == []
    (line,) = found("short", BY_COPY, machine("a", gpus=1), machine("b", gpus=1))
    assert line.startswith("rollout.carrier: 'ipc' needs one node; rollout and learner are placed on 2 nodes (a, b)")
    assert line.endswith("use nccl") and found("short", BY_COPY | {"rollout.carrier": "nccl"}, machine(gpus=2)) == []


def test_versions_that_go_from_gpu_to_gpu_take_no_shared_memory() -> None:
    small = machine(gpus=2, store=64 * MIB, free=replace(AMPLE, shared_memory=256 * MIB))
    (stored, *_) = found("short", BY_COPY | {"rollout.carrier": "object_store"}, small)
    assert "a weight version takes 400.0 MiB" in stored
    assert found("short", BY_COPY, small) == []


TWO_KINDS = {
    "learner.resources": {"gpus": 1},
    "rollout.members": 2,
    "rollout.resources": {"gpus": 1, "cpus": 1},
    "rollout.kinds": {"wide": {"tensor_parallel": 2, "resources": {"gpus": 2, "labels": {"card": "h200"}}}},
    "scorer.teacher": {"kinds": {"large": {"members": 2, "resources": {"cpus": 4}}}},
}
LARGE = {"labels": {"card": "h200"}}


def test_each_kind_of_member_is_counted_with_what_it_takes() -> None:
    lines = "\n".join(found("fits", TWO_KINDS, machine(gpus=3), machine("b", 8, 2, **LARGE)))
    for said in (
        "the layout takes 12.1 CPU (rollout 2 x 1, rollout.kinds.wide 1 x 1, scorer.teacher 1 x 0.5, "
        "scorer.teacher.kinds.large 2 x 4, reward 1 x 0.1, learner 1 x 0.5); the cluster has 16",
        "the layout takes 5 GPU (rollout 2 x 1, rollout.kinds.wide 1 x 2, learner 1 x 1)",
        "8 bundles; each has a place, on 2 nodes in all",
        "2 weight files of",
    ):
        assert said in lines, lines


def test_a_node_with_members_of_a_kind_alone_holds_their_weight_files() -> None:
    little = replace(AMPLE, shared_memory=300 * MIB)
    (line,) = found("short", TWO_KINDS, machine(gpus=3), machine("b", 8, 2, little, **LARGE))
    assert line.startswith("rollout.kinds.wide.members: 1 weight file of 400.0 MiB") and "of /dev/shm on b" in line


def test_what_a_kind_lacks_is_said_with_its_key() -> None:
    (line,) = found("short", TWO_KINDS, machine(cpus=16, gpus=5))
    assert line.startswith("rollout.kinds.wide.resources: rollout.kinds.wide takes bundles of 1 CPU and 2 GPU")
    assert "no node has these labels" in line
    assert "lower rollout.kinds.wide.resources or rollout.kinds.wide.members, or add such a node" in line
    (line,) = found("short", TWO_KINDS, machine(gpus=2), machine("b", 8, 2, **LARGE))
    assert "the layout takes 5 GPU" in line and "lower rollout.members or rollout.resources.gpus" in line
    (line,) = found("short", TWO_KINDS | {"scorer.teacher.kinds": {"large": {"resources": {"cpus": 30}}}})[:1]
    assert line.startswith("scorer.teacher.kinds.large.resources.cpus: the layout takes")


def test_a_cache_of_a_kind_is_compared_with_its_own_bounds() -> None:
    kinds = {"rollout.kinds": {"many": {"max_concurrent": 512}}, "rollout.kv_cache_gib": 2}
    (line,) = [line for line in found("tight", kinds) if "kv_cache_gib" in line]
    assert line.startswith("rollout.kinds.many.kv_cache_gib: 512 x 512 tokens take")
    memory = [line for line in found("fits", kinds) if "of memory (" in line]
    assert "rollout.kinds.many 2448.0 MiB" in memory[0], "weights and its cache"


def test_at_the_most_members_a_kind_has_as_many_as_ever() -> None:
    settings = _recipe(TWO_KINDS | {"autoscale": {"rollout": {"min": 1, "max": 5}}})
    counts = Counter(bundle.name for bundle in bundles_of(settings, at_most=True))
    assert (counts["rollout"], counts["rollout.kinds.wide"]) == (5, 1)
