"""The Kubernetes manifests: valid, consistent with each other, and with the recipe, the requirements and the code.

None of PyPI, Debian and npm has KubeRay's schemas, so field names of RayJob and RayCluster are compared with a list
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from configs.load import load_recipe
from orchestrator.placement.packing import Bundle, Node, place
from orchestrator.pools.layout import demands
from tests.deploy.manifests import (
    DEPLOY,
    KUBERAY,
    ROOT,
    autoscaling,
    clusters,
    documents,
    one,
    pod_templates,
    raycluster,
    rayjob,
    variables,
)

KUBERNETES = "1.37"
OTHERS = ("ray.io/", "monitoring.coreos.com/", "kustomize.config.k8s.io/")  # kinds that Kubernetes itself lacks
FIELDS = {  # of ray.io/v1, by the kind of object that has them
    "job": "entrypoint backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished submissionMode "
    "submitterPodTemplate rayClusterSpec activeDeadlineSeconds suspend metadata",
    "cluster": "rayVersion authOptions headGroupSpec workerGroupSpecs enableInTreeAutoscaling autoscalerOptions",
    "head": "rayStartParams template labels resources headService serviceType",
    "group": "groupName labels replicas minReplicas maxReplicas rayStartParams template resources numOfHosts "
    "idleTimeoutSeconds",
    "autoscaler": "version idleTimeoutSeconds upscalingMode securityContext resources env envFrom image",
}
MANIFESTS = sorted(KUBERAY.rglob("*.yaml"))
PODS = [pytest.param(template, id=name) for name, template in pod_templates()]
DIFFERENT_PODS = [
    pytest.param(template, id=name)
    for name, template in pod_templates()
    if name.startswith(("rayjob", "autoscaling-head"))
]
CLUSTERS = [pytest.param(spec, id=name) for name, spec in clusters().items()]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_is_yaml(path: Path) -> None:
    assert documents(path)


def core_objects() -> list[Any]:
    """The objects of Kubernetes itself, with their names."""
    return [
        pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}")
        for path in MANIFESTS
        for document in documents(path)
        if isinstance(document, dict) and not document.get("apiVersion", OTHERS[0]).startswith(OTHERS)
    ]


@pytest.mark.parametrize("document", core_objects())
def test_an_object_of_kubernetes_has_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("template", DIFFERENT_PODS)
def test_a_pod_has_the_schema_of_pods(template: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"} | template["metadata"],
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_fields_of_a_cluster_are_known(cluster: dict[str, Any]) -> None:
    assert cluster.keys() <= set(FIELDS["cluster"].split())
    assert cluster["headGroupSpec"].keys() <= set(FIELDS["head"].split())
    assert cluster.get("autoscalerOptions", {}).keys() <= set(FIELDS["autoscaler"].split())
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= set(FIELDS["group"].split())
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        values = [*group["rayStartParams"].values(), *group["labels"].values()]
        assert all(isinstance(value, str) for value in values)


def test_fields_of_the_job_are_known() -> None:
    assert rayjob()["spec"].keys() <= set(FIELDS["job"].split())


@pytest.mark.parametrize("folder", [path.parent for path in KUBERAY.rglob("kustomization.yaml")], ids=lambda p: p.name)
def test_a_kustomization_names_files_that_are_there(folder: Path) -> None:
    (kustomization,) = documents(folder / "kustomization.yaml")
    files = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))]
    files += [file for maps in kustomization.get("configMapGenerator", []) for file in maps["files"]]
    assert not [file for file in files if not (folder / file).exists()]


def test_the_cluster_is_that_of_the_job() -> None:
    assert raycluster()["spec"] == rayjob()["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("template", PODS)
def test_a_pod_is_not_root_and_has_no_privilege(template: dict[str, Any]) -> None:
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] and pod["runAsUser"] == 10001 and pod["seccompProfile"]["type"] == "RuntimeDefault"
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not any(template["spec"].get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))


def test_only_the_head_of_the_autoscaler_has_a_token_of_kubernetes() -> None:
    given = [name for name, template in pod_templates() if template["spec"]["automountServiceAccountToken"]]
    assert given == ["autoscaling-head"]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_calls_need_the_token(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_version_of_ray_is_the_pinned_one() -> None:
    pins = (ROOT / "requirements" / "runtime.txt").read_text()
    assert all(f"ray[default]=={cluster['rayVersion']} " in pins for cluster in clusters().values())


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_stop_has_time_to_save(cluster: dict[str, Any]) -> None:
    """The grace of the run, then the wait of Ray's job server and of the hook, then the end of the pod."""
    head = cluster["headGroupSpec"]["template"]
    grace = load_recipe(KUBERAY / "recipe.yaml").run.grace_seconds
    wait = float(variables(head)["RAY_JOB_STOP_WAIT_TIME_S"])
    hook = head["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert grace < wait == float(hook[2]) < head["spec"]["terminationGracePeriodSeconds"]


def test_all_name_the_same_run() -> None:
    recipe = load_recipe(KUBERAY / "recipe.yaml")
    run = f"{recipe.run.root}/{recipe.run.name}"
    for cluster in clusters().values():
        head = cluster["headGroupSpec"]["template"]
        assert head["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1] == run
        assert variables(head)["LOGRATIO_RUNS"] == recipe.run.root
    assert run in one("cluster/job.yaml")["spec"]["template"]["spec"]["containers"][0]["command"]


def test_what_is_mounted_has_a_volume_and_what_is_read_is_mounted() -> None:
    for name, template in pod_templates():
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounts = {m["name"]: m["mountPath"] for m in template["spec"]["containers"][0].get("volumeMounts", [])}
        assert mounts.keys() == volumes, name
    claim = {document["kind"]: document for document in documents(KUBERAY / "storage.yaml")}["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert rayjob()["spec"]["entrypoint"].split()[2].startswith("/etc/logratio/")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_smallest_cluster_holds_the_recipe_by_its_labels(cluster: dict[str, Any]) -> None:
    recipe = load_recipe(KUBERAY / "recipe.yaml")
    bundles = [
        Bundle(demand.role, demand.resources.cpus, demand.resources.gpus, demand.resources.labels)
        for demand in demands(recipe)
        for _ in range(demand.members * demand.actors)
    ]
    homes = place(bundles, smallest(cluster)).homes
    assert None not in homes
    groups = {
        bundle.role.split(".")[0]: home.split("-")[0] for bundle, home in zip(bundles, homes, strict=True) if home
    }
    assert groups == {"rollout": "rollout", "scorer": "scorer", "learner": "learner", "reward": "cpu"}
    assert {home for home in homes} == {node.name for node in smallest(cluster) if node.name != "head-0"}


def smallest(cluster: dict[str, Any]) -> list[Node]:
    """The nodes of a cluster with minReplicas of each group; the head has no CPUs for roles."""
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    nodes = [Node("head-0", 0.0)]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus, gpus = float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0))
        nodes += [Node(f"{group['groupName']}-{i}", cpus, gpus, group["labels"]) for i in range(group["minReplicas"])]
    return nodes


def test_autoscaling_leaves_the_learner_its_size() -> None:
    groups = {group["groupName"]: group for group in autoscaling()["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert {name for name, group in groups.items() if group["maxReplicas"] > group["minReplicas"]} == {
        "rollout",
        "scorer",
        "cpu",
    }


def test_a_job_that_failed_is_tried_again() -> None:
    for manifest in (rayjob(), autoscaling(), one("cluster/job.yaml")):
        assert manifest["spec"]["backoffLimit"] > 0, manifest["metadata"]


def test_the_job_is_not_tried_again_after_a_refusal_and_a_stop() -> None:
    job = one("cluster/job.yaml")["spec"]
    (ended,) = [rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert ended["action"] == "FailJob" and ended["onExitCodes"]["values"] == [2, 3]
    assert ended["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy asks for


def policies() -> dict[str, dict[str, Any]]:
    found = documents(KUBERAY / "network-policy.yaml")
    return {policy["metadata"]["name"]: policy["spec"] for policy in found}


def test_every_pod_is_closed_until_a_policy_opens_it() -> None:
    closed = policies()["logratio-closed"]
    assert closed["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in closed
    for name, template in pod_templates():
        assert closed["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), name


def test_only_prometheus_reaches_the_exporter_and_only_nodes_reach_the_rest() -> None:
    """A port counts as open to a peer if some rule of some policy names both."""
    exporter = 8080
    for name, spec in policies().items():
        for rule in spec.get("ingress", []):
            opened = [range(port["port"], port.get("endPort", port["port"]) + 1) for port in rule["ports"]]
            outside = any("namespaceSelector" in peer for peer in rule["from"])
            assert any(exporter in ports for ports in opened) == (name == "logratio-metrics")
            assert not outside or opened in ([range(exporter, exporter + 1)], [range(8265, 8266)])


def test_the_exporter_listens_where_policy_and_monitor_look() -> None:
    for cluster in clusters().values():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["rayStartParams"]["metrics-export-port"] == "8080"
            ports = group["template"]["spec"]["containers"][0]["ports"]
            assert {"name": "metrics", "containerPort": 8080} in ports
            labels = group["template"]["metadata"]["labels"]
            assert one("podmonitor.yaml")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one("podmonitor.yaml")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
