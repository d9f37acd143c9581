"""From a name to a connection: resolved once, every address checked, and one of the checked ones dialled.

It is a backend of httpcore's, below its pool and its TLS: these go by the name, and never see an address.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpcore

from tools.addresses import address_of
from tools.destinations import Allowed, Origin
from tools.errors import RetryableToolError, ToolError

#: A name and a port -> its IP addresses, the best first. OSError if there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

#: An IP address, a port, the seconds it may take -> a connection. OSError or an error of httpcore's if there is none.
Dial = Callable[[str, int, float | None], Awaitable[httpcore.AsyncNetworkStream]]

#: Of several addresses, so long is each tried: one that does not answer must not use up the time of those behind it.
_DIAL_S = 2.0


async def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses that the system knows, in the order in which it would try them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def dial_tcp(address: str, port: int, timeout_s: float | None) -> httpcore.AsyncNetworkStream:
    """A TCP connection."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout_s)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Dials for the requests of one scheme what `allowed` permits."""

    def __init__(self, scheme: str, allowed: Allowed, resolve: Resolve, dial: Dial) -> None:
        self._scheme = scheme
        self._allowed = allowed
        self._resolve = resolve
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - so httpcore calls it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The connection; ToolError if there must be none, or no such host."""
        origin = Origin(self._scheme, host, port)
        addresses = [host] if address_of(host) else await self._resolved(origin)
        if not all(self._allowed.permits(origin, address) for address in addresses):
            # Also if only one of them is private: it is no mistake that one makes with a public name.
            raise ToolError(f"{origin} cannot be fetched: it is not on the public internet.")
        *others, last = addresses
        for address in others:
            with contextlib.suppress(OSError, httpcore.NetworkError, httpcore.TimeoutException):
                return await self._dial(address, port, _DIAL_S)
        return await self._dial(last, port, timeout)

    async def _resolved(self, origin: Origin) -> Sequence[str]:
        try:
            if addresses := await self._resolve(origin.host, origin.port):
                return addresses
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise RetryableToolError(f"The name of {origin} cannot be resolved at the moment.") from None
        raise ToolError(f"{origin} cannot be fetched: there is no such host.")
