"""Where a request comes from. Only nginx may say so, in `X-Real-IP`; `X-Forwarded-For` is never read."""

from collections.abc import Collection

from chassis.request import AnyConnection

from identity.root_sessions import Device

USER_AGENT_LENGTH_MAX = 256


def device_of(connection: AnyConnection, trusted: Collection[str]) -> Device:
    """The client's address and user agent. `trusted` are the addresses that our own proxy connects from."""
    peer = connection.client.host if connection.client is not None else None
    claims = connection.headers.getall("x-real-ip", [])
    address = claims[0].strip()[:64] if peer in trusted and len(claims) == 1 else peer
    user_agent = connection.headers.get("user-agent")
    return Device(user_agent=user_agent[:USER_AGENT_LENGTH_MAX] if user_agent else None, address=address)
