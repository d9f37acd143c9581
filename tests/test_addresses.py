"""Which addresses are public, in whatever way they are written: asked of an Egress, which dials them or does not.

Source: IANA's special-purpose address registries, said here anew; inet_aton(3) for the spellings of IPv4.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolving import unreachable
from tools.addresses import is_public
from tools.errors import RetryableToolError, ToolError

SPECIAL_V4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
]
SPECIAL_V6 = [
    *("::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    *("5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "4000::/2"),
]


@st.composite
def inside(draw: st.DrawFn, networks: Sequence[str]) -> IPv4Address | IPv6Address:
    network = ip_network(draw(st.sampled_from(networks)))
    return network[draw(st.integers(0, network.num_addresses - 1))]


def v4_spellings(address: IPv4Address) -> list[str]:
    """How an IPv4 address can be written in a URL, by the rules of inet_aton and by those of IPv6."""
    number = int(address)
    a, b, c, d = address.packed
    quad = f"{number:08x}"
    return [
        *(str(address), f"{address}.", str(number), f"0x{number:x}", f"0{number:o}", f"0x{number:08X}"),
        *(f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{number & 0xFFFFFF}"),
        *(f"{a}.{b}.{number & 0xFFFF}", f"0{a}.{b}.{c}.{d}"),
        *(f"[::{address}]", f"[::ffff:{address}]", f"[64:ff9b::{address}]", f"[64:ff9b:1::{address}]"),
        *(f"[2002:{quad[:4]}:{quad[4:]}::1]", f"[2001:0:{quad[:4]}:{quad[4:]}::1]", f"[::ffff:0:{address}]"),
    ]


def v6_spellings(address: IPv6Address) -> list[str]:
    return [f"[{address}]", f"[{address.exploded}]", f"[{address.exploded.upper()}]", f"[{address}%25eth0]"]


async def is_refused(host: str) -> bool:
    """True if a URL with this host is refused, and nothing dialled; False if it is dialled."""
    egress, wires = unreachable(names={"answer.test": [host.strip("[]")]})
    dialled: list[int] = []
    for name in (host, "answer.test"):
        with pytest.raises(ToolError) as failed:
            await egress.get(f"http://{name}/")
        assert isinstance(failed.value, RetryableToolError) == bool(wires.dialled)
        dialled.append(len(wires.dialled))
        wires.dialled.clear()
    assert dialled in ([0, 0], [1, 1]), "a literal and an answer are not judged alike"
    return dialled == [0, 0]


@given(address=inside(SPECIAL_V4), data=st.data())
async def test_a_special_ipv4_address_is_refused_in_any_spelling(address: IPv4Address, data: st.DataObject) -> None:
    assert await is_refused(data.draw(st.sampled_from(v4_spellings(address))))


@given(address=inside(SPECIAL_V6), data=st.data())
async def test_a_special_ipv6_address_is_refused_in_any_spelling(address: IPv6Address, data: st.DataObject) -> None:
    assert await is_refused(data.draw(st.sampled_from(v6_spellings(address))))


@given(address=st.ip_addresses(v=4))
async def test_any_other_ipv4_address_can_be_reached(address: IPv4Address) -> None:
    special = any(address in ip_network(network) for network in SPECIAL_V4)
    assert await is_refused(str(address)) == special
    assert special or address.is_global, "Python knows of a special range that is not in the table"


@given(address=st.ip_addresses(v=6) | inside(["2000::/3", "64:ff9b::/96"]))
async def test_any_other_ipv6_address_can_be_reached(address: IPv6Address) -> None:
    embedded = IPv4Address(int(address) & 0xFFFFFFFF) if address in ip_network("64:ff9b::/96") else None
    if embedded:
        special = any(embedded in ip_network(network) for network in SPECIAL_V4)
    else:
        in_table = any(address in ip_network(network) for network in SPECIAL_V6)
        special = in_table or address not in ip_network("2000::/3")
    assert await is_refused(f"[{address}]") == special
    assert special or address.is_global, "Python knows of a special range that is not in the table"


@pytest.mark.parametrize("network", [*SPECIAL_V4, *SPECIAL_V6])
def test_a_special_range_is_special_from_its_first_address_to_its_last(network: str) -> None:
    first, last = ip_network(network)[0], ip_network(network)[-1]
    assert not is_public(first)
    assert not is_public(last)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.32.0.0"]
)
def test_what_lies_beside_a_special_range_is_public(address: str) -> None:
    assert is_public(ip_address(address))
