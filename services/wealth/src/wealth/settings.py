"""What wealth needs besides what every service needs."""

from typing import Annotated

import msgspec
from chassis.settings import Secret, ServiceSettings

from wealth.insights import Thresholds


class WealthSettings(ServiceSettings, frozen=True, kw_only=True):
    """Where no `prose_url` is set, insights are worded by their templates."""

    insight_thresholds: str = "{}"
    """`Thresholds` as JSON; what is not named keeps its default."""
    assess_after_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """How long after a change a customer's insights are looked for: changes come in bursts."""
    assess_duty_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    """The share of time spent on looking for insights, at most: requests come first."""
    prose_url: str | None = None
    """The base of an OpenAI-compatible API, e.g. `http://127.0.0.1:11434/v1`."""
    prose_model: str = "default"
    prose_key: Secret | None = None
    prose_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0

    def thresholds(self) -> Thresholds:
        """The thresholds of insights.

        Raises:
            msgspec.ValidationError: an unknown name, or a value of the wrong type.
        """
        return msgspec.json.decode(self.insight_thresholds, type=Thresholds)
