"""What the service reads from the environment, besides what every service does."""

from typing import Annotated

import msgspec
from chassis.settings import SealingSettings


class LedgerSettings(SealingSettings, frozen=True, kw_only=True):
    step_up_threshold_minor: Annotated[int, msgspec.Meta(ge=0)] = 2_00_000_00
    """Transfers above it need a step-up token."""
