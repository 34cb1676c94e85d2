"""What every workload in a cluster has, whoever adds the next one."""

from typing import Any

import pytest
from chassis.health import operator_routes
from chassis.server import DRAIN_S_MAX, LINGER_S_MAX
from manifests import OVERLAYS, Resource, name_of
from references import selects

OURS = [
    "Deployment/edge",
    "Deployment/identity",
    "Deployment/ledger-transfer",
    "Deployment/notifier",
    "Deployment/search",
    "Deployment/sync-gateway",
    "Deployment/wealth",
    "StatefulSet/relay",
]


def named(resources: list[Resource], name: str) -> Any:
    return next(each for each in resources if name_of(each) == name)


def pod_of(resources: list[Resource], name: str) -> Any:
    return named(resources, name)["spec"]["template"]


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest, overlays: dict[str, list[Resource]]) -> list[Resource]:
    return overlays[request.param]


def test_every_workload_is_known(resources: list[Resource]) -> None:
    found = {name_of(each) for each in resources if each["kind"] in ("Deployment", "StatefulSet")}
    assert {name for name in found if "simulator" not in name} == set(OURS)


async def _ready() -> list[str]:
    return []


@pytest.mark.parametrize("name", OURS)
def test_probes_ask_what_is_there_and_only_readiness_asks_for_the_servers(resources: list[Resource], name: str) -> None:
    (container,) = pod_of(resources, name)["spec"]["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    if name == "Deployment/edge":
        assert set(paths.values()) == {"/-/health"}
        return
    assert paths == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
    routes = {path for route in operator_routes(_ready) for path in route.paths}
    assert set(paths.values()) <= routes
    # A pod of the default period and threshold would be restarted while it starts.
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 120


@pytest.mark.parametrize("name", OURS)
def test_a_pod_ends_in_order_and_in_time(resources: list[Resource], name: str) -> None:
    spec = pod_of(resources, name)["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]
    if name == "Deployment/edge":
        assert hook["exec"]["command"][-1].startswith("sleep 5; nginx")
    else:
        # Then for connections to close, as long for requests, and as long again for consumers.
        assert spec["terminationGracePeriodSeconds"] > hook["sleep"]["seconds"] + LINGER_S_MAX + 2 * DRAIN_S_MAX
    assert spec["terminationGracePeriodSeconds"] >= 30
    if name.startswith("Deployment/"):
        assert named(resources, name)["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@pytest.mark.parametrize("name", OURS)
def test_a_workload_outlives_a_node(resources: list[Resource], name: str) -> None:
    workload = named(resources, name)
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"] for each in resources if each["kind"] == "ScaledObject"
    }
    least = scaled.get(workload["metadata"]["name"], {}).get("minReplicaCount", workload["spec"].get("replicas"))
    assert least == 2
    # An apply must not undo what KEDA has done.
    assert (workload["metadata"]["name"] in scaled) != ("replicas" in workload["spec"])
    pod = workload["spec"]["template"]
    budgets = [each["spec"] for each in resources if each["kind"] == "PodDisruptionBudget"]
    (budget,) = [each for each in budgets if selects(each["selector"], pod["metadata"]["labels"])]
    assert budget["maxUnavailable"] == 1
    keys = [each["topologyKey"] for each in pod["spec"]["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for constraint in pod["spec"]["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"], pod["metadata"]["labels"])


def test_the_namespace_is_restricted_and_closed(resources: list[Resource]) -> None:
    labels = named(resources, "Namespace/sangam")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert named(resources, "NetworkPolicy/deny-all")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for each in resources:
        if each["kind"] not in ("Namespace", "ClusterRole"):
            assert each["metadata"].get("namespace") == "sangam", name_of(each)


@pytest.mark.parametrize(
    ("client", "server", "port", "allowed"),
    [
        ("Deployment/edge", "Deployment/identity", 8080, True),
        ("Deployment/edge", "Deployment/search", 8080, True),
        ("Deployment/search", "Deployment/identity", 8080, False),
        ("Deployment/wealth", "Deployment/ledger-transfer", 8080, False),
        ("StatefulSet/relay", "Deployment/wealth", 8080, False),
        ("Deployment/edge", "StatefulSet/relay", 8080, False),
        ("Deployment/wealth", "database", 5432, True),
        ("StatefulSet/relay", "database", 5432, True),
        ("Job/migrate", "database", 5432, True),
        ("Deployment/edge", "database", 5432, False),
        ("Deployment/wealth", "broker", 5672, True),
        ("Deployment/wealth", "broker", 15672, False),
        ("Job/migrate", "broker", 15672, True),
        ("Deployment/edge", "broker", 5672, False),
    ],
)
def test_who_reaches_whom(resources: list[Resource], client: str, server: str, port: int, allowed: bool) -> None:
    labels = {
        "database": {"cnpg.io/cluster": "sangam-db"},
        "broker": {"app.kubernetes.io/name": "sangam-mq"},
    }
    source = pod_of(resources, client)["metadata"]["labels"]
    target = labels.get(server) or pod_of(resources, server)["metadata"]["labels"]
    assert (
        _allows(resources, "egress", "to", source, target, port)
        and _allows(resources, "ingress", "from", target, source, port)
    ) is allowed


def _allows(
    resources: list[Resource], direction: str, side: str, own: dict[str, str], peer: dict[str, str], port: int
) -> bool:
    """Whether any policy that selects the labels `own` lets them through to or from `peer` of the namespace."""
    return any(
        any(each["port"] == port for each in rule["ports"])
        and any("podSelector" in each and selects(each["podSelector"], peer) for each in rule.get(side, []))
        for policy in resources
        if policy["kind"] == "NetworkPolicy" and selects(policy["spec"]["podSelector"], own)
        for rule in policy["spec"].get(direction, [])
    )
