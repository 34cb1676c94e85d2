"""What takes measurements."""

from collections.abc import Sequence
from typing import Protocol


class Meter(Protocol):
    """Takes what is measured (`measures.Measures`)."""

    def count(self, name: str, by: int = 1) -> None: ...

    def latency(self, name: str, latencies_ms: Sequence[float]) -> None: ...
