"""The judges of deploy/, and what they judge."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy" / part) for part in ("checks", "docker", "k8s", "local")]

import judges
import manifests
from manifests import Resource


@pytest.fixture(scope="session")
def tools() -> judges.Tools:
    return judges.ensure()


@pytest.fixture(scope="session")
def overlays(tools: judges.Tools) -> dict[str, list[Resource]]:
    """Resources by overlay."""
    return {name: manifests.render(tools, manifests.K8S / "overlays" / name) for name in manifests.OVERLAYS}
