"""Where a request may go: how URLs are read, and what the operator allows beyond the public internet.

A URL is read once, by httpx, and what is checked is what is sent. Hosts that resolvers and browsers read in ways of
their own (0177.1, 0x7f000001, 2130706433, %31%32%37.0.0.1) are refused as they stand.

Source: RFC 3986; WHATWG URL, "ends in a number", for which hosts some take for an IPv4 address.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import httpx

from tools.addresses import Network, address_of, is_public
from tools.errors import ToolError

_DEFAULT_PORTS = {"http": 80, "https": 443}

#: A name as DNS takes it (RFC 1035 for the 63); underscores are in use though no standard has them.
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_MAX_NAME_CHARS = 253

#: The last label of what some resolvers take for an IPv4 address; there is no such top-level domain.
_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: all of a URL that anybody is told, since keys may stand in the rest."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> "Origin":
        """The origin of a URL of `read_url`."""
        return cls(url.scheme, _host(url), _DEFAULT_PORTS[url.scheme] if url.port is None else url.port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def read_url(text: str, params: Mapping[str, Any] | None = None, *, base: httpx.URL | None = None) -> httpx.URL:
    """The URL `text`, seen from `base`, with `params` added to its query. ToolError if it is none that may be fetched.

    The host is lower-case ASCII, without a dot at its end; an IP address is in its usual spelling.
    """
    try:
        url = base.join(text) if base else httpx.URL(text)
        url = url.copy_merge_params(params) if params else url
    except (httpx.InvalidURL, UnicodeError):
        raise ToolError("The URL is malformed.") from None
    if url.scheme not in _DEFAULT_PORTS:
        raise ToolError("The URL cannot be fetched: it must begin with http:// or https://.")
    if url.userinfo:
        raise ToolError("The URL cannot be fetched: there must be no user name or password in it.")
    host = _host(url)
    if not address_of(host) and (not _NAME.fullmatch(host) or len(host) > _MAX_NAME_CHARS or _NUMBER.fullmatch(host)):
        raise ToolError("The URL cannot be fetched: its host is no name, and no IP address in its usual spelling.")
    if not 0 < Origin.of(url).port < 65536:
        raise ToolError("The URL cannot be fetched: there is no such port.")
    return url.copy_with(host=host)


def _host(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii").removesuffix(".")
    address = address_of(host)
    return str(address) if address else host


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the operator allows although it is not on the public internet, or not on the web's ports."""

    origins: frozenset[Origin] = frozenset()
    networks: frozenset[Network] = frozenset()

    @classmethod
    def of(cls, entries: Iterable[str]) -> "Allowed":
        """Reads URLs (each for its whole origin), hosts with or without a port (for both schemes), and CIDRs.

        A CIDR allows addresses, but no further ports. ValueError says what is wrong with an entry.
        """
        origins: set[Origin] = set()
        networks: set[Network] = set()
        for entry in entries:
            try:
                if "/" in entry and "://" not in entry:
                    networks.add(ip_network(entry))
                else:
                    origins.update(_origins(entry))
            except (ToolError, ValueError):
                raise ValueError(
                    f"{entry.rpartition('@')[2]!r} cannot be allowed: write an origin (http://10.0.0.5:9000), "
                    "a host (search.internal:9000) or a network (10.0.0.0/24)"
                ) from None
        return cls(frozenset(origins), frozenset(networks))

    def check_port(self, origin: Origin) -> None:
        """ToolError for ports on which there are no websites, but other services that misread HTTP."""
        if origin.port not in _DEFAULT_PORTS.values() and origin not in self.origins:
            raise ToolError(f"{origin} cannot be fetched: only the ports 80 and 443 can.")

    def permits(self, origin: Origin, address: str) -> bool:
        """True if `address` may be dialled for `origin`."""
        found = address_of(address)
        return found is not None and (
            origin in self.origins or is_public(found) or any(found in network for network in self.networks)
        )


def _origins(entry: str) -> list[Origin]:
    if "://" in entry:
        return [Origin.of(read_url(entry))]
    if set(entry) & set("?#"):
        raise ValueError("there is more than a host and its port")
    host = f"[{entry}]" if address_of(entry) and ":" in entry else entry
    return [Origin.of(read_url(f"{scheme}://{host}")) for scheme in _DEFAULT_PORTS]
