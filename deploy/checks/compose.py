"""What is wrong with docker-compose.yml, as Docker's own parser sees it."""

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from judges import ROOT, Tools


def config(tools: Tools, directory: Path = ROOT) -> dict[str, Any]:
    """The file as compose understands it, all defaults filled in.

    Raises:
        ValueError: compose refuses it; the message is its own.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SANGAM_", "COMPOSE_"))}
    done = subprocess.run(
        [tools.compose, "--profile", "*", "config", "--format", "json"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr.strip())
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def loose(project: dict[str, Any]) -> list[str]:
    """Containers with more rights than they need, and ports that more than this machine can reach."""
    findings = _taken_over(project)
    for name, service in project["services"].items():
        if not service.get("read_only"):
            findings.append(f"{name}: its root file system can be written to")
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add") or service.get("privileged"):
            findings.append(f"{name}: it keeps capabilities")
        if "no-new-privileges:true" not in service.get("security_opt", []):
            findings.append(f"{name}: it may gain privileges")
        if "build" not in service and service.get("user", "0").startswith("0"):
            findings.append(f"{name}: it runs as root")
        if any("content" in project["configs"][each["source"]] for each in service.get("configs", [])):
            findings.append(f"{name}: compose cannot write a config's content into a read-only container")
        if ":" not in service["image"] or service["image"].endswith(":latest"):
            findings.append(f"{name}: its image has no version")
        findings += [
            f"{name}: port {port['target']} is open to the network"
            for port in service.get("ports", [])
            if port.get("host_ip") != "127.0.0.1"
        ]
        for variable, value in (service.get("environment") or {}).items():
            if any(word in variable for word in ("PASSWORD", "SECRET", "_KEY")) and not variable.endswith("_FILE"):
                findings.append(f"{name}: {variable}={value} is a secret in the file")
    return findings


def _taken_over(project: dict[str, Any]) -> list[str]:
    """Volumes that more than one path of an image may give its owner and its files to.

    Docker does that whenever a container is created and the volume is still empty; compose creates all containers
    before the first one writes. So only the path of whoever writes may: the others are mounted with `nocopy`.
    """
    paths: dict[str, set[str]] = defaultdict(set)
    for service in project["services"].values():
        for mount in service.get("volumes", []):
            if mount["type"] == "volume" and not (mount.get("volume") or {}).get("nocopy"):
                paths[mount["source"]].add(mount["target"])
    return [
        f"volume {name}: taken from {' and '.join(sorted(found))}" for name, found in paths.items() if len(found) > 1
    ]
