"""What is wrong with rendered Kubernetes manifests. Each function returns findings, none if all is well."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from judges import ROOT, Tools

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("kind", "production")
VERSIONS = ("1.33", "1.37")
"""Of Kubernetes: the oldest we support, and the newest there is a schema of."""

NOT_OURS_TO_FOLLOW = {
    "CKV_K8S_15": "tags are never moved: pulling an image that is there again only makes starts depend on the registry",
    "CKV_K8S_35": "settings come as environment (docs/decisions/0059); no child inherits what it should not",
    "CKV_K8S_43": "digests are pinned by whoever releases: `images` of the production overlay",
}
"""Policies of checkov that we do not follow, and why."""

Resource = Mapping[str, Any]


def render(tools: Tools, folder: Path) -> list[Resource]:
    """The resources of a kustomization.

    Raises:
        ValueError: it cannot be built; the message is kustomize's.
    """
    done = subprocess.run([tools.kubectl, "kustomize", folder], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip())
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource is not None]


def is_builtin(resource: Resource) -> bool:
    group = str(resource["apiVersion"]).rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway."))


def name_of(resource: Resource) -> str:
    return f"{resource['kind']}/{resource.get('metadata', {}).get('name', '?')}"


def against_kubernetes(tools: Tools, resources: Iterable[Resource], version: str) -> list[str]:
    """Built-in kinds that `kubernetes-validate --strict` refuses, each with its reason."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, resource in enumerate(filter(is_builtin, resources)):
            path = Path(folder, f"{number}.yaml")
            path.write_text(yaml.safe_dump(resource))
            paths[str(path)] = resource
        done = subprocess.run(
            [tools.kubernetes_validate, "--strict", "--kubernetes-version", version, *paths],
            capture_output=True,
            text=True,
        )
    lines = (done.stdout + done.stderr).splitlines()
    # It says of each file that it passed, or why not: one that it says nothing about was not judged.
    passed = {path for path in paths if any(path in line and " passed " in line for line in lines)}
    failed = [name_of(resource) for path, resource in paths.items() if path not in passed]
    reasons = [line for line in lines if " passed " not in line]
    return [f"{name} is not valid for Kubernetes {version}" for name in failed] + (reasons if failed else [])


@cache
def _schema(kind: str) -> Any:
    return json.loads((K8S / "schemas" / f"{kind}.json").read_text())


def against_custom_resources(resources: Iterable[Resource]) -> list[str]:
    """Custom resources that the schema of their kind refuses, or that have none."""
    findings = []
    for resource in resources:
        if is_builtin(resource):
            continue
        if not (K8S / "schemas" / f"{resource['kind']}.json").exists():
            findings.append(f"{name_of(resource)}: deploy/k8s/schemas has no schema of this kind")
            continue
        validator = jsonschema.Draft7Validator(_schema(resource["kind"]))
        findings += [
            f"{name_of(resource)}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
            for error in validator.iter_errors(resource)
        ]
    return findings


def against_policies(tools: Tools, files: Sequence[Path]) -> list[str]:
    """Checkov's policies for Kubernetes and Dockerfiles, less those of `NOT_OURS_TO_FOLLOW`."""
    command: list[str | Path] = [tools.checkov, "--quiet", "--compact", "--skip-download", "--output", "json"]
    command += ["--framework", "kubernetes", "dockerfile", "--skip-check", ",".join(NOT_OURS_TO_FOLLOW)]
    for file in files:
        command += ["--file", file]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        reports = json.loads(done.stdout)
    except json.JSONDecodeError:
        return [f"checkov failed: {(done.stdout + done.stderr)[-2000:]}"]
    findings = []
    judged = 0
    for report in reports if isinstance(reports, list) else [reports]:
        judged += report.get("summary", report).get("passed", 0)
        findings += [
            f"{check['check_id']} {check['check_name']}: {check['resource']}"
            for check in report.get("results", {}).get("failed_checks", [])
        ]
    return findings if judged else ["checkov judged nothing"]
