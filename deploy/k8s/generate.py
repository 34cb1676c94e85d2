"""What is in deploy/k8s because Kubernetes needs it there, and is said elsewhere: `generate.py write` writes it,
without an argument the program tells what is stale.

- `base/edge/nginx.conf` from `ROUTES` and the limits of deploy/local/nginx.py; docker-compose.yml mounts it as well.
- `components/monitoring/rules.yaml`, a PrometheusRule, from deploy/telemetry/rules.yaml.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "local"))

import yaml
from nginx import configuration
from rabbitmq import SERVICES

_REQUESTS_PER_S = 300
_HEADER = "# Written by deploy/k8s/generate.py; do not edit.\n"


def nginx_conf() -> str:
    """The origin in a container that may write to /tmp alone, with the services under their own names."""
    return _HEADER + configuration(
        Path("/tmp"),  # noqa: S108 - an empty folder of the container's own
        listen=["8080"],
        upstreams={service: [f"{service.replace('_', '-')}:8080"] for service in SERVICES},
        requests_per_s=_REQUESTS_PER_S,
        behind="/etc/nginx/proxies/*.conf",
    )


def prometheus_rule(rules: Path) -> str:
    """The alerts and recorded series as a resource of the Prometheus operator."""
    return _HEADER + yaml.safe_dump(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "sangam"},
            "spec": {"groups": yaml.safe_load(rules.read_text())["groups"]},
        },
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )


def generated() -> dict[Path, str]:
    """Content by path."""
    return {
        HERE / "base" / "edge" / "nginx.conf": nginx_conf(),
        HERE / "components" / "monitoring" / "rules.yaml": prometheus_rule(HERE.parent / "telemetry" / "rules.yaml"),
    }


def main(arguments: list[str]) -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if arguments == ["write"]:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(generated()[path])
        return 0
    for path in stale:
        print(f"{path.relative_to(HERE)} is stale: .venv/bin/python deploy/k8s/generate.py write", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
