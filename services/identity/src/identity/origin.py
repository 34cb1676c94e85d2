"""Where a request comes from. Only nginx may say so, in `X-Real-IP`; `X-Forwarded-For` is never read."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from chassis.request import AnyConnection

from identity.root_sessions import Device

USER_AGENT_LENGTH_MAX = 256

Networks = Sequence[IPv4Network | IPv6Network]


def networks(text: str) -> Networks:
    """Addresses and networks (`127.0.0.1`, `10.244.0.0/16`), separated by commas.

    Raises:
        ValueError: one is neither.
    """
    return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())


def device_of(connection: AnyConnection, trusted: Networks) -> Device:
    """The client's address and user agent. `trusted` is where our own proxy connects from."""
    peer = connection.client.host if connection.client is not None else None
    claims = connection.headers.getall("x-real-ip", [])
    address = claims[0].strip()[:64] if len(claims) == 1 and _is_in(peer, trusted) else peer
    user_agent = connection.headers.get("user-agent")
    return Device(user_agent=user_agent[:USER_AGENT_LENGTH_MAX] if user_agent else None, address=address)


def _is_in(peer: str | None, trusted: Networks) -> bool:
    try:
        return peer is not None and any(ip_address(peer) in network for network in trusted)
    except ValueError:
        return False  # a socket of this machine has no address
