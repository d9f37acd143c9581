"""The one way from tools to the network: HTTP to the public internet, and to what the operator allows besides.

    read the URL -> check the port -> resolve -> check every address -> dial one of these -> TLS for the name
        -> a redirect? from the beginning -> check the type -> read the body within its bounds

What is checked is what is dialled: the names are resolved inside httpcore's network backend, once for each
connection. Connections are kept by name, so that a certificate is always that of the name in the URL. (Asking for the
checked IP instead, with the name as SNI, keeps them by IP: then one site is served over another's connection.)
Proxies that the environment names are not used: they would dial for us, and check nothing.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpcore

from tools.destinations import Allowed, Origin
from tools.dialling import CheckedBackend, Dial, Resolve, dial_tcp, resolve_by_system
from tools.errors import RetryableToolError, ToolError
from tools.fetched import Body, Fetched
from tools.outgoing import OutgoingRequest

#: A page needs one or two, to https and to its final name; browsers, which have users to look, follow 20.
_MAX_REDIRECTS = 5

#: Some servers close an idle connection after 5 s; one that is closed as we use it would cost a retry.
_IDLE_S = 4.0

#: So many idle connections are kept; a server's tools call a handful of services.
_MAX_IDLE = 20


class Egress:
    """Sends requests. `allow` names what is reached besides the public internet; see `Allowed.of`.

    ValueError for an entry that is none. The seams: `resolve` and `dial`, and the `ssl_context` that says which
    certificates are good.
    """

    def __init__(
        self,
        allow: Sequence[str] = (),
        *,
        resolve: Resolve = resolve_by_system,
        dial: Dial = dial_tcp,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allow = tuple(allow)
        self._allowed = Allowed.of(allow)
        self._resolve = resolve
        self._dial = dial
        self._ssl_context = ssl_context
        # A pool for each scheme, since a backend is not told of it. None is shared with an Egress that allows other
        # things: a connection that is there already is not checked again.
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        self._wider: dict[Allowed, Egress] = {}

    def allowing(self, origins: Sequence[str]) -> "Egress":
        """The same, with these allowed, too; equal ones give the same Egress. It is closed with this one."""
        allow = (*self._allow, *origins)
        allowed = Allowed.of(allow)
        if allowed == self._allowed:
            return self
        if allowed not in self._wider:
            self._wider[allowed] = Egress(allow, resolve=self._resolve, dial=self._dial, ssl_context=self._ssl_context)
        return self._wider[allowed]

    async def get(self, url: str, **options: Any) -> Fetched:
        """GET; the options are those of `request`."""
        return await self.request("GET", url, **options)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        timeout_s: float = 20.0,
        max_bytes: int = 5_000_000,
        types: Sequence[str] = (),
        follow_redirects: bool = True,
    ) -> Fetched:
        """The answer, whatever its status; `raise_for_status` makes an error of it.

        All of it, redirects included, takes at most `timeout_s`. The body, as sent and as unpacked, has at most
        `max_bytes`, and is of one of the `types` ("application/json", or "text/" for all that begin so); where the
        status is no success, a body that cannot be had is empty instead. A redirect to another site is sent neither
        the headers that may hold keys nor a body, and none leads from https to http.

        ToolError for what is forbidden or of no use, RetryableToolError for what may go well the next time. They name
        scheme, host and port, and nothing else of a URL.
        """
        request = OutgoingRequest.of(method, url, params=params, headers=headers, json=json, content=content)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._followed(request, max_bytes, types, follow_redirects)
        except TimeoutError:
            raise RetryableToolError(f"{request.origin} did not answer within {timeout_s:g} s.") from None

    async def aclose(self) -> None:
        """Closes all connections, also those of what `allowing` gave."""
        pools, self._pools = self._pools, {}
        wider, self._wider = self._wider, {}
        for pool in pools.values():
            await pool.aclose()
        for egress in wider.values():
            await egress.aclose()

    async def _followed(self, request: OutgoingRequest, max_bytes: int, types: Sequence[str], follow: bool) -> Fetched:
        first = request.origin
        for _ in range(_MAX_REDIRECTS + 1):
            fetched = await self._fetched(request, max_bytes, types)
            onward = request.redirected(fetched.status, fetched.headers.get("location")) if follow else None
            if onward is None:
                return fetched
            request = onward
        raise ToolError(f"{first} redirects more than {_MAX_REDIRECTS} times.")

    async def _fetched(self, request: OutgoingRequest, max_bytes: int, types: Sequence[str]) -> Fetched:
        origin = request.origin
        self._allowed.check_port(origin)
        try:
            async with self._sent(request) as response:
                headers = _joined(response.headers)
                fetched = Fetched(str(request.url), response.status, headers, b"")
                succeeded = 200 <= response.status < 300
                try:
                    if succeeded:
                        fetched.check_type(types)
                    return replace(fetched, body=await _read(response, origin, headers, max_bytes))
                except ToolError:
                    if succeeded:
                        raise
                    return fetched
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise _failure(origin, error) from None

    @contextlib.asynccontextmanager
    async def _sent(self, request: OutgoingRequest) -> AsyncIterator[httpcore.Response]:
        opened: list[httpcore.AsyncNetworkStream] = []

        async def watch(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"])

        asked = httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=request.origin.scheme,
                host=request.origin.host,
                port=request.origin.port,
                target=request.url.raw_path,
            ),
            headers=request.raw_headers(),
            content=request.content,
            extensions={"trace": watch},
        )
        try:
            response = await self._pool(request.origin.scheme).handle_async_request(asked)
        except BaseException:
            # httpcore itself forgets a connection whose request is cancelled during TLS, or between two of its steps.
            for stream in opened:
                await stream.aclose()
            raise
        try:
            yield response
        finally:
            # A cancellation in the middle of it would leave the connection open, and in nobody's hands.
            await asyncio.shield(response.aclose())

    def _pool(self, scheme: str) -> httpcore.AsyncConnectionPool:
        # Not before it is needed: an Egress is made where no loop runs, and certificates take 20 ms to load.
        if scheme not in self._pools:
            self._pools[scheme] = httpcore.AsyncConnectionPool(
                ssl_context=(self._ssl_context or httpcore.default_ssl_context()) if scheme == "https" else None,
                max_connections=None,  # how many calls run is the executor's to say
                max_keepalive_connections=_MAX_IDLE,
                keepalive_expiry=_IDLE_S,
                network_backend=CheckedBackend(scheme, self._allowed, self._resolve, self._dial),
            )
        return self._pools[scheme]


async def _read(response: httpcore.Response, origin: Origin, headers: Mapping[str, str], max_bytes: int) -> bytes:
    body = Body(origin, headers.get("content-encoding", "").strip().lower(), max_bytes)
    async for data in response.aiter_stream():
        body.feed(data)
    return body.close()


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "replace")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _failure(origin: Origin, error: Exception) -> ToolError:
    # What the error says is not passed on: it may name an address.
    if isinstance(error, httpcore.LocalProtocolError):
        return ToolError(f"The request to {origin} has a header that cannot be sent.")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
        return ToolError(f"{origin} cannot be fetched: its certificate is not valid.")
    if isinstance(error, httpcore.ProtocolError):
        return RetryableToolError(f"{origin} broke off, or does not speak HTTP.")
    return RetryableToolError(f"{origin} cannot be reached.")
