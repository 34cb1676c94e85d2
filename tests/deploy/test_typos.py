"""One wrong letter in docker-compose.yml, or in any kind of resource, is found before it reaches a cluster."""

import copy
import shutil
from pathlib import Path
from typing import Any

import compose
import judges
import manifests
import pytest
import references
import yaml
from judges import ROOT, Tools
from manifests import Resource
from verdict import secrets_of_kind


def misspelt(resource: Resource) -> dict[str, Any]:
    """A copy whose first field below the head has one letter more."""
    wrong = copy.deepcopy(dict(resource))
    node = wrong.get("spec") or wrong
    field = next(name for name in node if name not in ("apiVersion", "kind", "metadata"))
    node[field + "x"] = node.pop(field)
    return wrong


def one_of_each_kind(overlays: dict[str, list[Resource]]) -> dict[str, Resource]:
    kinds = {resource["kind"]: resource for resources in overlays.values() for resource in resources}
    # A namespace is all head; its labels are anybody's.
    return {kind: resource for kind, resource in kinds.items() if kind != "Namespace"}


# --- Kubernetes -----------------------------------------------------------------------------------


def test_a_typo_in_any_builtin_kind_is_found(tools: Tools, overlays: dict[str, list[Resource]]) -> None:
    right = {k: r for k, r in one_of_each_kind(overlays).items() if manifests.is_builtin(r)}
    assert {"Deployment", "StatefulSet", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service"} <= set(right)
    assert manifests.against_kubernetes(tools, right.values(), "1.37") == []
    found = manifests.against_kubernetes(tools, [misspelt(resource) for resource in right.values()], "1.37")
    for resource in right.values():
        assert f"{manifests.name_of(resource)} is not valid for Kubernetes 1.37" in found


def test_a_typo_in_any_custom_resource_is_found(overlays: dict[str, list[Resource]]) -> None:
    right = {k: r for k, r in one_of_each_kind(overlays).items() if not manifests.is_builtin(r)}
    assert {"Cluster", "RabbitmqCluster", "ScaledObject", "HTTPRoute", "ExternalSecret", "PodMonitor"} <= set(right)
    for kind, resource in right.items():
        assert manifests.against_custom_resources([resource]) == []
        assert manifests.against_custom_resources([misspelt(resource)]), kind


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Cluster", ("spec", "primaryUpdateStrategy"), "sometimes"),
        ("Cluster", ("spec", "resources", "limits", "memory"), {"much": True}),
        ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "type"), "Prefix"),
        ("ScaledObject", ("spec", "maxReplicaCount"), "six"),
        ("RabbitmqCluster", ("spec", "rabbitmq", "additionalConfigs"), "x = y"),
        ("ExternalSecret", ("spec", "dataFrom", 0, "extract", "keys"), "sangam/identity"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "intervall"), "15s"),
    ],
)
def test_a_typo_deep_in_a_custom_resource_is_found(
    overlays: dict[str, list[Resource]], kind: str, path: tuple[str | int, ...], value: object
) -> None:
    wrong = copy.deepcopy(dict(next(each for each in overlays["production"] if each["kind"] == kind)))
    node: Any = wrong
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert manifests.against_custom_resources([wrong])


def test_an_unknown_kind_does_not_pass_for_lack_of_a_schema(overlays: dict[str, list[Resource]]) -> None:
    assert "no schema" in manifests.against_custom_resources([{"apiVersion": "keda.sh/v1", "kind": "Scaled"}])[0]


def test_a_typo_in_a_kustomization_is_found(tools: Tools, tmp_path: Path) -> None:
    copied = shutil.copytree(manifests.K8S, tmp_path / "k8s")
    kustomization = copied / "base" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("configMapGenerator:", "configMapGenerators:"))
    with pytest.raises(ValueError, match="configMapGenerators"):
        manifests.render(tools, copied / "overlays" / "kind")


LABELS = [
    ("NetworkPolicy", "app.kubernetes.io/name: edge", "app.kubernetes.io/name: egde"),
    ("NetworkPolicy", "- relay", "- relays"),
    ("Service", "app.kubernetes.io/name: search", "app.kubernetes.io/name: serach"),
    ("PodDisruptionBudget", "app.kubernetes.io/name: wealth", "app.kubernetes.io/name: welth"),
    ("ScaledObject", "name: notifier", "name: notifer"),
    ("HTTPRoute", "name: edge", "name: egde"),
    ("Deployment", "name: sangam-identity", "name: sangam-identiy"),
    ("PodMonitor", "cnpg.io/cluster: sangam-db", "cnpg.io/cluster: sangam"),
]


@pytest.mark.parametrize(("kind", "right", "wrong"), LABELS)
def test_a_name_that_means_nothing_is_found(
    overlays: dict[str, list[Resource]], kind: str, right: str, wrong: str
) -> None:
    resources = overlays["production"]
    assert references.dangling(resources, set()) == []
    index = next(i for i, each in enumerate(resources) if each["kind"] == kind and right in yaml.safe_dump(each))
    changed = yaml.safe_load(yaml.safe_dump(resources[index]).replace(right, wrong))
    assert references.dangling([*resources[:index], changed, *resources[index + 1 :]], set())


def test_a_secret_that_nobody_makes_is_found(overlays: dict[str, list[Resource]]) -> None:
    secrets = secrets_of_kind()
    assert references.dangling(overlays["kind"], secrets) == []
    assert references.dangling(overlays["kind"], secrets - {"sangam-relay"}) == [
        "StatefulSet/relay: there is no Secret/sangam-relay"
    ]


def test_a_careless_container_is_found(tools: Tools, overlays: dict[str, list[Resource]], tmp_path: Path) -> None:
    resources = copy.deepcopy([each for each in overlays["kind"] if each["kind"] in ("Deployment", "NetworkPolicy")])
    search: Any = next(each for each in resources if manifests.name_of(each) == "Deployment/search")
    search["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = True
    manifest, dockerfile = tmp_path / "kind.yaml", tmp_path / "Dockerfile"
    manifest.write_text(yaml.safe_dump_all(resources))
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    dockerfile.write_text(text.replace("USER 10001:10001\n", ""))
    found = manifests.against_policies(tools, [manifest, dockerfile])
    assert any(each.startswith("CKV_K8S_16 ") and each.endswith(".search") for each in found), found
    assert any(each.startswith("CKV_DOCKER_3 ") for each in found), found


# --- compose --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("read_only: true", "readonly: true", "readonly"),
        ("<<: *process\n    command: [python, -m, wealth]", "<<: *proces\n    command: [python, -m, wealth]", "proces"),
        ("condition: service_completed_successfully", "condition: service_complete", "condition"),
        ("      - search-index:/data", "      - search-indx:/data", "search-indx"),
        ("      postgres: {condition: service_healthy}", "      postgress: {condition: service_healthy}", "postgress"),
        ("networks: [servers]", "networks: [server]", "server"),
        ("source: rabbitmq.conf", "source: rabbit.conf", "rabbit.conf"),
    ],
)
def test_a_typo_in_compose_is_found(tools: Tools, tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert right in text
    (tmp_path / "docker-compose.yml").write_text(text.replace(right, wrong, 1))
    with pytest.raises(ValueError, match=complaint):
        compose.config(tools, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("  read_only: true", "  read_only: false"),
        ("  cap_drop: [ALL]", "  cap_drop: [CHOWN]"),
        ('["no-new-privileges:true"]', "[]"),
        ('"127.0.0.1:4111:8080"', '"4111:8080"'),
        ("nginx:1.28.0-bookworm", "nginx"),
        ('user: "10101:10101"', 'user: "0:0"'),
        ("POSTGRES_PASSWORD_FILE: /run/sangam/password", "POSTGRES_PASSWORD: postgres"),
        ("file: deploy/docker/rabbitmq.conf", "content: x = y"),
        ('"settings-wealth:/run/sangam:ro,nocopy"', '"settings-wealth:/run/sangam:ro"'),
    ],
)
def test_a_careless_line_in_compose_is_found(tools: Tools, tmp_path: Path, right: str, wrong: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert compose.loose(compose.config(tools)) == []
    (tmp_path / "docker-compose.yml").write_text(text.replace(right, wrong))
    assert compose.loose(compose.config(tools, tmp_path))


# --- the judges themselves ------------------------------------------------------------------------


def test_a_program_that_is_not_the_pinned_one_is_refused() -> None:
    with pytest.raises(judges.ToolMissing, match="not what was pinned"):
        judges.verified(b"something else", judges.COMPOSE)


def test_a_judge_that_says_nothing_has_found_something(tools: Tools, tmp_path: Path) -> None:
    silent = tmp_path / "checkov"
    for answer in ('{"passed": 0, "failed": 0}', "[]", "no answer"):
        silent.write_text(f"#!/bin/sh\necho '{answer}'\n")
        silent.chmod(0o755)
        assert manifests.against_policies(tools._replace(checkov=silent), [])
    resource = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}}
    assert manifests.against_kubernetes(tools._replace(kubernetes_validate=silent), [resource], "1.37")
