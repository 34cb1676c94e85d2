"""Choosing loopback ports that stay the same from one start to the next."""

import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path

# Below the range from which the kernel takes ports for outgoing connections.
_FREE = range(20_000, 32_000)


class PortTaken(Exception):
    """A port that this stack must have belongs to somebody else."""


def assign(path: Path, preferred: Mapping[str, int | None]) -> dict[str, int]:
    """A free port for every name, kept in `path`: as last time, else the preferred one, else any."""
    last: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    chosen: dict[str, int] = {}
    for name, wish in preferred.items():
        candidates = [port for port in (last.get(name), wish) if port is not None]
        taken = set(chosen.values())
        chosen[name] = next((port for port in candidates if port not in taken and is_free(port)), None) or _any_free(
            taken
        )
    path.write_text(json.dumps(chosen, indent=1))
    return chosen


def is_free(port: int) -> bool:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _any_free(taken: set[int]) -> int:
    for port in random.sample(_FREE, k=len(_FREE)):
        if port not in taken and is_free(port):
            return port
    raise PortTaken(f"no free port between {_FREE.start} and {_FREE.stop}")
