"""Which IP addresses are on the public internet.

Python's own `ipaddress.is_global` depends on its version: that of 3.11 takes 192.0.0.192, fec0::/10 and 192.88.99.0/24
for public. The tables here are stricter than IANA's, too: what it lists as globally reachable inside 192.0.0.0/24 and
2001::/23 serves protocols, and no website.

Source: IANA's "IPv4 Special-Purpose Address Registry" (RFC 6890), "IPv6 Special-Purpose Address Registry" and
"IPv6 Global Unicast Address Assignments", as of October 2025; RFC 6052 for NAT64.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a carrier's customers; 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own services, as every virtual machine there sees them
        "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

#: All of IPv6 that is routed as unicast. Loopback, v4-mapped, link-local, site-local, unique local, multicast: outside.
_UNICAST_V6 = IPv6Network("2000::/3")

_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3fff::/20",  # documentation
    )
)

#: How a network without IPv4 reaches it: the last 32 bits are the IPv4 address. Its resolvers make these up.
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """True if the address is one that anybody on the internet could mean.

    >>> is_public(ip_address("93.184.216.34")), is_public(ip_address("::ffff:127.0.0.1"))
    (True, False)
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _UNICAST_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def address_of(text: str) -> Address | None:
    """The address that is written so; None for all else: IPv4 in another spelling than the usual, IPv6 with a zone."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None
