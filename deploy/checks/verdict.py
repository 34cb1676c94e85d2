"""`make check`'s part about docker-compose.yml and deploy/k8s: exit 1 with every finding."""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("docker", "local")]

import compose
import judges
import manifests
import references
from cell import kind_secrets
from credentials import load_or_create


def secrets_of_kind() -> set[str]:
    """What deploy/docker/cell.py makes for the overlay `kind`; production's come from ExternalSecrets."""
    with tempfile.TemporaryDirectory() as folder:
        return set(kind_secrets(load_or_create(Path(folder, "secrets.json"))))


def findings() -> list[str]:
    """Everything that is wrong."""
    have = judges.ensure()
    found = []
    try:
        found += [f"docker-compose.yml: {each}" for each in compose.loose(compose.config(have))]
    except ValueError as error:
        found.append(f"docker-compose.yml: {error}")
    rendered = {}
    for overlay in manifests.OVERLAYS:
        try:
            rendered[overlay] = manifests.render(have, manifests.K8S / "overlays" / overlay)
        except ValueError as error:
            found.append(f"{overlay}: {error}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        judged = [judges.ROOT / "deploy" / "docker" / "Dockerfile"]
        for overlay, resources in rendered.items():
            path = Path(folder, f"{overlay}.yaml")
            path.write_text(yaml.safe_dump_all(filter(manifests.is_builtin, resources)))
            judged.append(path)
        policies = pool.submit(manifests.against_policies, have, judged)
        for overlay, resources in rendered.items():
            secrets = secrets_of_kind() if overlay == "kind" else set()
            problems = [*manifests.against_custom_resources(resources), *references.dangling(resources, secrets)]
            for version in manifests.VERSIONS:
                problems += manifests.against_kubernetes(have, resources, version)
            found += [f"{overlay}: {problem}" for problem in problems]
        found += policies.result()
    return found


def main() -> int:
    started = time.monotonic()
    try:
        found = findings()
    except judges.ToolMissing as missing:
        found = [str(missing)]
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"docker-compose.yml and deploy/k8s are as they should be ({time.monotonic() - started:.0f} s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
