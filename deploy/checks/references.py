"""Names in manifests that mean nothing: labels that select no pod, settings and targets that do not exist.

No schema sees them, and a cluster takes them without a word: a network policy with a misspelt label protects nobody.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manifests import Resource, name_of

_PODS_OF_OPERATORS = (
    {"cnpg.io/cluster": "sangam-db", "app.kubernetes.io/part-of": "sangam"},
    {"app.kubernetes.io/name": "sangam-mq"},
)
_MADE_BY_OPERATORS = {"sangam-db-ca", "sangam-mq-default-user"}


def dangling(resources: Sequence[Resource], secrets: set[str]) -> list[str]:
    """Everything that refers to nothing.

    Args:
        secrets: names of Secrets that come from elsewhere than `resources`.
    """
    pods = [*(template["metadata"]["labels"] for template in _templates(resources)), *_PODS_OF_OPERATORS]
    names = {name_of(resource) for resource in resources}
    names |= {f"Secret/{name}" for name in secrets | _MADE_BY_OPERATORS}
    names |= {
        f"Secret/{resource['spec']['target']['name']}" for resource in resources if resource["kind"] == "ExternalSecret"
    }
    findings = []
    for resource in resources:
        findings += [
            f"{name_of(resource)}: {selector} selects no pod"
            for selector in _selectors(resource)
            if not any(selects(selector, labels) for labels in pods)
        ]
        findings += [
            f"{name_of(resource)}: there is no {wanted}" for wanted in _wanted(resource) if wanted not in names
        ]
    return findings


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


def _templates(resources: Sequence[Resource]) -> Iterator[Mapping[str, Any]]:
    for resource in resources:
        if resource["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield resource["spec"]["template"]


def _selectors(resource: Resource) -> Iterator[Mapping[str, Any]]:
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Service":
            yield {"matchLabels": spec["selector"]}
        case "PodDisruptionBudget" | "Deployment" | "StatefulSet":
            yield spec["selector"]
        case "PodMonitor":
            # A selector over several values has to find each of them.
            yield from _one_by_one(spec["selector"])
        case "NetworkPolicy":
            yield from _one_by_one(spec["podSelector"])
            for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
                for peer in (*rule.get("from", []), *rule.get("to", [])):
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        yield from _one_by_one(peer["podSelector"])


def _one_by_one(selector: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    expressions = selector.get("matchExpressions", [])
    if not expressions:
        yield selector
    for expression in expressions:
        for value in expression["values"]:
            yield {"matchExpressions": [{**expression, "values": [value]}]}


def _wanted(resource: Resource) -> Iterator[str]:
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            pod = spec["template"]["spec"]
            yield f"ServiceAccount/{pod['serviceAccountName']}"
            for container in pod["containers"]:
                for source in container.get("envFrom", []):
                    field = "configMapRef" if "configMapRef" in source else "secretRef"
                    kind = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[field]
                    yield f"{kind}/{source[field]['name']}"
                for variable in container.get("env", []):
                    if "valueFrom" in variable:
                        yield f"Secret/{variable['valueFrom']['secretKeyRef']['name']}"
            for volume in pod.get("volumes", []):
                if "configMap" in volume:
                    yield f"ConfigMap/{volume['configMap']['name']}"
                if "secret" in volume:
                    yield f"Secret/{volume['secret']['secretName']}"
        case "ScaledObject":
            yield f"Deployment/{spec['scaleTargetRef']['name']}"
            for trigger in spec["triggers"]:
                if "authenticationRef" in trigger:
                    yield f"TriggerAuthentication/{trigger['authenticationRef']['name']}"
        case "TriggerAuthentication":
            for parameter in spec["secretTargetRef"]:
                yield f"Secret/{parameter['name']}"
        case "ExternalSecret":
            yield f"SecretStore/{spec['secretStoreRef']['name']}"
        case "HTTPRoute":
            for parent in spec["parentRefs"]:
                yield f"Gateway/{parent['name']}"
            for rule in spec["rules"]:
                for backend in rule.get("backendRefs", []):
                    yield f"Service/{backend['name']}"
        case "Cluster":
            yield f"Secret/{spec['bootstrap']['initdb']['secret']['name']}"
            for role in spec["managed"]["roles"]:
                yield f"Secret/{role['passwordSecret']['name']}"
        case "ScheduledBackup":
            yield f"Cluster/{spec['cluster']['name']}"
