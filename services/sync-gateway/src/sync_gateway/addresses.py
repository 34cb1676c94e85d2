"""Which addresses a webhook may be sent to: public ones, and what the settings name. Pure.

Judged is the address that a socket is about to connect to, in whatever form it comes: a host name says nothing, because
it may resolve to something else a moment later (DNS rebinding).
"""

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""RFC 6052 and RFC 8215: an IPv4 address behind a translator."""
_SPECIAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_SPECIAL_V6: Final = (IPv6Network("2001::/23"), IPv6Network("3fff::/20"))
"""Of the IANA special-purpose registries: what older versions of `ipaddress` take for global."""
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")
_ISATAP: Final = (0x5EFE, 0x0200_5EFE)
"""RFC 5214: the middle of an interface id that ends in an IPv4 address."""


class AllowedTargets:
    """Public addresses, and the ports of named hosts that the settings allow besides."""

    def __init__(self, named: Iterable[str] = ()) -> None:
        """`named`: `host:port` with a literal address, e.g. `127.0.0.1:4111`.

        Raises:
            ValueError: one of them is something else.
        """
        self._named: set[tuple[Address, int]] = set()
        for target in named:
            host, _, port = target.rpartition(":")
            address = ip_address(host.strip("[]"))
            self._named.add((address, int(port)))
            if address.is_loopback:
                # "localhost" may be either.
                self._named |= {(IPv4Address("127.0.0.1"), int(port)), (IPv6Address("::1"), int(port))}

    def allows(self, host: str, port: int) -> bool:
        """Whether a socket may connect to the literal address `host`; whatever is no address is refused."""
        try:
            address = ip_address(host.partition("%")[0])
        except (AddressValueError, ValueError):
            return False
        return (address, port) in self._named or is_public(address)

    def names(self, host: str, port: int) -> bool:
        """Whether the settings name this literal address and port."""
        try:
            return (ip_address(host.strip("[]")), port) in self._named
        except ValueError:
            return host == "localhost" and (IPv4Address("127.0.0.1"), port) in self._named


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet, also the IPv4 address that an IPv6 address wraps."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in network for network in _SPECIAL)
    if (wrapped := _wrapped(address)) is not None:
        return is_public(wrapped)
    if address.sixtofour is not None or address.teredo is not None or address in _IPV4_COMPATIBLE:
        # Transition mechanisms that are no more: nobody's webhook is there.
        return False
    if any(address in network for network in _SPECIAL_V6):
        return False
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return address in _GLOBAL_UNICAST and address.is_global and not address.is_multicast


def _wrapped(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
