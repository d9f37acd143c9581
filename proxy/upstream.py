"""The one HTTP client to the upstream.

Whatever the upstream or the network does comes out as an answer or as one of `errors`: UpstreamRefused (it said
no), UpstreamUnreachable (no connection), UpstreamBroken (the answer broke off), UpstreamSilent (nothing came).
Retries happen before the first byte only, for connections that fail and for the statuses in `_RETRIED`.
"""

import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import anyio
import httpx
from httpx_aiohttp import AiohttpTransport

from proxy.errors import (
    FloretteError,
    InvalidRequest,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamUnreachable,
)
from proxy.refusals import refusal
from proxy.sse import DONE, MAX_EVENT_BYTES, Decoder

#: What travels from the caller to the upstream; the rest is of the caller's own hop.
_FORWARDED = frozenset(("authorization", "content-type", "accept", "x-request-id", "traceparent", "tracestate"))

#: vLLM closes idle connections after exactly 5 s; ours must be gone before, or requests would race with that.
_KEEPALIVE_S = 3.0

_RETRIED = frozenset((429, 502, 503, 504))
#: A longer `Retry-After` is the caller's to wait for.
_LONGEST_WAIT_S = 2.0

#: An error's body is read up to here: enough for a sentence.
_MAX_ERROR_BYTES = 64 * 1024

#: What is longer is sent in pieces of this size; aiohttp warns above 1 MiB.
_SLICE_BYTES = 256 * 1024

#: How long the end of the body may take behind `[DONE]` before the connection is given up instead of kept.
_DRAIN_S = 0.1

logger = logging.getLogger(__name__)

_FAILURES = (httpx.HTTPError, aiohttp.ClientError, OSError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait and how often to try."""

    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 120.0
    answer_timeout_s: float = 600.0
    retries: int = 2
    retry_backoff_s: float = 0.2

    def timeout_s(self, *, streamed: bool) -> float:
        """The longest silence of an answer."""
        return self.idle_timeout_s if streamed else self.answer_timeout_s


def aiohttp_transport() -> httpx.AsyncBaseTransport:
    """Httpx on aiohttp: a quarter of the CPU of its own. No limit on connections, no cookies kept."""

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(client=session)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to make. `timeout_s` is the longest silence; `root`: the path is not below `/v1`.

    `is_json`: the content is Florette's own writing; else it is the caller's, and of the caller's content-type.
    `is_retried`: failures before the first byte are tried again.
    """

    method: str
    path: str
    content: bytes
    timeout_s: float
    root: bool = False
    is_json: bool = True
    is_retried: bool = True


class _Slices(httpx.AsyncByteStream):
    """A long body in slices: written whole, it would hold up every other answer."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._content), _SLICE_BYTES):
            yield self._content[start : start + _SLICE_BYTES]


class Upstream:
    """An OpenAI-compatible server at `url` (which ends in `/v1`). With `key`, that is sent instead of the caller's.

    `passes_keys`: without `key`, the caller's own is passed on.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        patience: Patience,
        transport: httpx.AsyncBaseTransport,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        *,
        passes_keys: bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._key_is_ours = key is not None or not passes_keys
        self.patience = patience
        self._sleep = sleep
        self._transport = transport
        self._urls: dict[str, httpx.URL] = {}

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    async def stream(self, body: dict[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[list[bytes], None]:
        """The payloads of a streamed chat completion, those that arrive together as one list."""
        call = self._chat_call(body, streamed=True)
        decoder = Decoder()
        async with self.send(call, headers) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise UpstreamBroken("The upstream did not stream although it was asked to.")
            with _telling(call.timeout_s):
                async for data in _body(response):
                    payloads = decoder.feed(data)
                    if payloads:
                        yield payloads
                        if payloads[-1] == DONE:
                            break
                else:
                    yield decoder.close()
            # Read to its end, the connection can be used again; what goes wrong now hurts nobody.
            with anyio.move_on_after(_DRAIN_S), suppress(*_FAILURES):
                async for _ in _body(response):
                    pass

    async def complete(
        self, body: dict[str, Any], headers: Mapping[str, str], *, within_s: float | None = None
    ) -> bytes:
        """The body of a chat completion that is not streamed; UpstreamBroken if it is longer than any answer.

        `within_s`: it is to come so soon, at the first try.
        """
        call = self._chat_call(body, streamed=False)
        if within_s is not None:
            call = replace(call, timeout_s=within_s, is_retried=False)
        return await self._whole(call, headers)

    async def _whole(self, call: Call, headers: Mapping[str, str]) -> bytes:
        said = bytearray()
        async with self.send(call, headers) as response:
            with _telling(call.timeout_s):
                async for data in _body(response):
                    said += data
                    if len(said) > MAX_EVENT_BYTES:
                        raise UpstreamBroken("The upstream sent a body that is too long to be an answer.")
        return bytes(said)

    async def ask(self, call: Call, headers: Mapping[str, str]) -> Any:
        """The JSON that the upstream answers with; UpstreamBroken if it is none, or longer than any answer."""
        said = await self._whole(call, headers)
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            raise UpstreamBroken("The upstream sent something that is not JSON.") from None

    async def check(self) -> None:
        """Returns if the upstream answers, be it that it wants a key; raises what it fails with otherwise."""
        probe = Call("GET", "/models", b"", self.patience.connect_timeout_s, is_retried=False)
        try:
            async with self.send(probe, {}):
                pass
        except UpstreamRefused as refused:
            if refused.status >= 500:
                raise

    @asynccontextmanager
    async def send(self, call: Call, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """A response with a good status, its body not read yet; `headers` are the caller's."""
        content = call.content
        timeout = httpx.Timeout(call.timeout_s, connect=self.patience.connect_timeout_s)
        request = httpx.Request(
            call.method,
            self._target(call),
            content=content if len(content) <= _SLICE_BYTES else _Slices(content),
            headers=self._headers(call, headers),
            extensions={"timeout": timeout.as_dict()},
        )
        response = await self._answered(request, call)
        try:
            yield response
        finally:
            await response.aclose()

    async def read(self, response: httpx.Response, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The bytes of the body as they come. UpstreamSilent or UpstreamBroken if they do not."""
        with _telling(timeout_s):
            async for data in _body(response):
                yield data

    def _chat_call(self, body: dict[str, Any], *, streamed: bool) -> Call:
        content = to_json(body | {"stream": streamed})
        return Call("POST", "/chat/completions", content, self.patience.timeout_s(streamed=streamed))

    def _target(self, call: Call) -> httpx.URL:
        # To parse one takes longer than to answer from a cache; there are as many as there are routes.
        url = (self._url.removesuffix("/v1") if call.root else self._url) + call.path
        if url not in self._urls:
            self._urls[url] = httpx.URL(url)
        return self._urls[url]

    def _headers(self, call: Call, headers: Mapping[str, str]) -> dict[str, str]:
        forwarded = {name: value for name, value in headers.items() if name in _FORWARDED}
        if self._key_is_ours:
            forwarded.pop("authorization", None)
        if wrong := next((name for name, value in forwarded.items() if not value.isascii()), None):
            raise InvalidRequest(f"The header '{wrong}' holds characters that are not ASCII; was it pasted?")
        forwarded["content-length"] = str(len(call.content))
        forwarded["accept-encoding"] = "identity"
        if call.is_json:
            forwarded["content-type"] = "application/json"
        if self._key is not None:
            forwarded["authorization"] = f"Bearer {self._key}"
        return forwarded

    async def _answered(self, request: httpx.Request, call: Call) -> httpx.Response:
        retries = self.patience.retries if call.is_retried else 0
        for attempt in range(retries + 1):
            last = attempt == retries
            wait_s = self.patience.retry_backoff_s * 2**attempt
            try:
                # Not through httpx's own client: it would follow redirects, keep cookies, and cost as much again.
                response = await self._transport.handle_async_request(request)
            except httpx.ReadTimeout:
                raise _silent(call.timeout_s) from None
            except _FAILURES as error:
                # The log has the reason: it names the upstream's address, which is the operator's affair.
                logger.warning("no connection to the upstream: %s", str(error) or type(error).__name__)
                if last:
                    raise UpstreamUnreachable("The upstream cannot be reached.") from error
            else:
                if response.status_code < 400:
                    return response
                refused = await self._refusal(response)
                wait_s = _seconds(response.headers.get("retry-after"), default=wait_s)
                if last or response.status_code not in _RETRIED or wait_s > _LONGEST_WAIT_S:
                    raise refused
            await self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _refusal(self, response: httpx.Response) -> FloretteError:
        said = bytearray()
        with suppress(*_FAILURES):
            async for data in _body(response):
                said += data[: _MAX_ERROR_BYTES - len(said)]
                if len(said) == _MAX_ERROR_BYTES:
                    break
        await response.aclose()
        return refusal(response.status_code, response.headers, bytes(said), key_is_ours=self._key_is_ours)


def _body(response: httpx.Response) -> httpx.AsyncByteStream:
    # Not `aiter_raw`: two generators less for each event.
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


@contextmanager
def _telling(timeout_s: float) -> Iterator[None]:
    # Whatever goes wrong while an answer is read, in our own words.
    try:
        yield
    except httpx.ReadTimeout:
        raise _silent(timeout_s) from None
    except _FAILURES as error:
        raise UpstreamBroken("The connection to the upstream broke off while it answered.") from error


def _silent(timeout_s: float) -> UpstreamSilent:
    return UpstreamSilent(f"The upstream sent nothing for {timeout_s:g} s.")


def to_json(body: Mapping[str, Any]) -> bytes:
    """A caller's body as JSON again. InvalidRequest if it holds what JSON has no way to write.

    Not orjson: a caller's integers may have more than 64 bits, and its strings half a surrogate pair.
    """
    try:
        return json.dumps(body, allow_nan=False).encode("ascii")
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except ValueError:
        raise InvalidRequest("The request body holds a number that is too large.") from None


def _seconds(retry_after: str | None, default: float) -> float:
    try:
        seconds = float(retry_after or default)
    except ValueError:
        return default
    return seconds if 0 <= seconds < math.inf else default
