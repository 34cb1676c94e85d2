"""Further services for what is critical, through Apprise (https://github.com/caronc/apprise): the operators' choice.

Apprise makes its own connections, which nobody judges as `chassis.egress` judges those to customers' addresses. So no
customer names such a service, the settings do, as they name the mail server; redirects are not followed; and an address
of our own network is refused unless `allowed_targets` has it, so that it is never reached by mistake
(docs/decisions/0054).
"""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Protocol

from chassis.egress import is_public

from notifier.channels import Message
from notifier.deliveries import Outcome


class Further(Protocol):
    async def send(self, message: Message) -> Outcome: ...


class AppriseServices:
    """The services that the settings name; a message is delivered when all of them took it.

    Args:
        urls: joined by spaces, as Apprise writes them.
        allowed: `address:port` of our own network that may be among them.

    Raises:
        ModuleNotFoundError: the extra `apprise` is not installed.
        ValueError: a URL is none that Apprise knows, or leads into our own network. The URL is not named: it may hold
            a secret.
    """

    def __init__(self, urls: str, *, allowed: Collection[str]) -> None:
        import apprise

        self._services = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
        for number, url in enumerate(urls.split(), start=1):
            if not self._services.add(url):
                raise ValueError(f"apprise_urls: number {number} is no service that Apprise knows")
        for number, service in enumerate(self._services.services, start=1):
            port = service.port or (443 if service.secure else 80)
            if _is_ours(service.host or "") and f"{service.host}:{port}" not in allowed:
                raise ValueError(f"apprise_urls: number {number} is in our own network, and not in allowed_targets")

    async def send(self, message: Message) -> Outcome:
        """One attempt. Which services refused is not known apart, so a retry may tell the others again."""
        told = await self._services.async_notify(title=message.title, body=message.body or message.title)
        return Outcome("delivered") if told else Outcome("retry", "apprise_failed")


def _is_ours(host: str) -> bool:
    """Whether a host is by its looks in our own network. Of many services it is no host but a token."""
    try:
        return not is_public(ip_address(host.strip("[]")))
    except ValueError:
        return host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost")
