"""The one HTTP client to the upstream.

Whatever the upstream or the network does comes out as an answer or as one of `errors`: UpstreamRefused (it said
no), UpstreamUnreachable (no connection), UpstreamBroken (the answer broke off), UpstreamSilent (nothing came).
Retries happen before the first byte only, for connections that fail and for the statuses in `_RETRIED`.
"""

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from proxy.errors import (
    FloretteError,
    InvalidRequest,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamUnreachable,
)
from proxy.sse import DONE, MAX_EVENT_BYTES, Decoder

#: What travels from the caller to the upstream; the rest is of the caller's own hop.
_FORWARDED = ("authorization", "content-type", "accept", "x-request-id", "traceparent", "tracestate")

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
    """

    method: str
    path: str
    content: bytes
    timeout_s: float
    root: bool = False
    is_json: bool = True


class _Slices(httpx.AsyncByteStream):
    """A long body in slices: written whole, it would hold up every other answer."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._content), _SLICE_BYTES):
            yield self._content[start : start + _SLICE_BYTES]


class Upstream:
    """An OpenAI-compatible server at `url` (which ends in `/v1`). With `key`, that is sent instead of the caller's."""

    def __init__(
        self,
        url: str,
        key: str | None,
        patience: Patience,
        transport: httpx.AsyncBaseTransport,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self.patience = patience
        self._sleep = sleep
        self._client = httpx.AsyncClient(transport=transport, headers={"accept-encoding": "identity"})

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    async def stream(self, body: dict[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[list[bytes], None]:
        """The payloads of a streamed chat completion, those that arrive together as one list."""
        call = Call(
            "POST", "/chat/completions", to_json(body | {"stream": True}), self.patience.timeout_s(streamed=True)
        )
        decoder = Decoder()
        async with self.send(call, headers) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise UpstreamBroken("The upstream did not stream although it was asked to.")
            async with aclosing(self.read(response)) as reads:
                async for data in reads:
                    payloads = decoder.feed(data)
                    if payloads:
                        yield payloads
                    if payloads and payloads[-1] == DONE:
                        break
                else:
                    yield decoder.close()
                # Read to its end, the connection can be used again; what goes wrong now hurts nobody.
                with anyio.move_on_after(_DRAIN_S), suppress(FloretteError):
                    async for _ in reads:
                        pass

    async def complete(self, body: dict[str, Any], headers: Mapping[str, str]) -> bytes:
        """The body of a chat completion that is not streamed."""
        call = Call(
            "POST", "/chat/completions", to_json(body | {"stream": False}), self.patience.timeout_s(streamed=False)
        )
        async with self.send(call, headers) as response:
            return await self.read_all(response)

    def _chat_call(self, body: dict[str, Any], *, streamed: bool) -> Call:
        content = to_json(body | {"stream": streamed})
        return Call("POST", "/chat/completions", content, self.patience.timeout_s(streamed=streamed))

    async def check(self) -> None:
        """Returns if the upstream answers, be it that it wants a key; raises what it fails with otherwise."""
        try:
            async with self.send(Call("GET", "/models", b"", self.patience.connect_timeout_s), {}) as response:
                await self.read_all(response)
        except UpstreamRefused as refusal:
            if refusal.status >= 500:
                raise

    @asynccontextmanager
    async def send(self, call: Call, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """A response with a good status, its body not read yet; `headers` are the caller's."""
        content = call.content
        request = self._client.build_request(
            call.method,
            (self._url.removesuffix("/v1") if call.root else self._url) + call.path,
            content=content if len(content) <= _SLICE_BYTES else _Slices(content),
            headers=self._headers(call, headers),
            timeout=httpx.Timeout(call.timeout_s, connect=self.patience.connect_timeout_s),
        )
        response = await self._answered(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def read(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The bytes of the body as they come. UpstreamSilent or UpstreamBroken if they do not."""
        try:
            async for data in response.aiter_raw():
                yield data
        except httpx.ReadTimeout:
            raise _silent(response.request) from None
        except _FAILURES as error:
            raise UpstreamBroken("The connection to the upstream broke off while it answered.") from error

    async def read_all(self, response: httpx.Response) -> bytes:
        """The whole body; UpstreamBroken if it is longer than any answer."""
        body = bytearray()
        async with aclosing(self.read(response)) as reads:
            async for data in reads:
                body += data
                if len(body) > MAX_EVENT_BYTES:
                    raise UpstreamBroken("The upstream sent a body that is too long to be an answer.")
        return bytes(body)

    def _headers(self, call: Call, headers: Mapping[str, str]) -> dict[str, str]:
        forwarded = {name: headers[name] for name in _FORWARDED if name in headers}
        if wrong := next((name for name, value in forwarded.items() if not value.isascii()), None):
            raise InvalidRequest(f"The header '{wrong}' holds characters that are not ASCII; was it pasted?")
        forwarded["content-length"] = str(len(call.content))
        if call.is_json:
            forwarded["content-type"] = "application/json"
        if self._key is not None:
            forwarded["authorization"] = f"Bearer {self._key}"
        return forwarded

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(self.patience.retries + 1):
            last = attempt == self.patience.retries
            wait_s = self.patience.retry_backoff_s * 2**attempt
            try:
                response = await self._client.send(request, stream=True)
            except httpx.ReadTimeout:
                raise _silent(request) from None
            except _FAILURES as error:
                if last:
                    raise UpstreamUnreachable(f"The upstream cannot be reached: {_reason(error)}.") from error
            else:
                if response.status_code < 400:
                    return response
                refusal = await self._refusal(response)
                wait_s = _seconds(response.headers.get("retry-after"), default=wait_s)
                if last or response.status_code not in _RETRIED or wait_s > _LONGEST_WAIT_S:
                    raise refusal
            await self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _refusal(self, response: httpx.Response) -> FloretteError:
        said = bytearray()
        try:
            async for data in response.aiter_raw():
                said += data[: _MAX_ERROR_BYTES - len(said)]
                if len(said) == _MAX_ERROR_BYTES:
                    break
        except _FAILURES:
            pass
        finally:
            await response.aclose()
        status = response.status_code
        if status in (401, 403) and self._key is not None:
            return UpstreamBroken(
                f"The upstream refused Florette's own key ({status}); the operator must check 'upstream_key'.",
                code="upstream_key_refused",
            )
        if status < 400 or status > 599:
            return UpstreamBroken(f"The upstream answered with the status {status}.")
        message, param, code = _error_in(bytes(said))
        kept = {name: response.headers[name] for name in ("retry-after",) if name in response.headers}
        code = code or _code_of(status, message)
        return UpstreamRefused(
            status, message or f"The upstream answered {status}.", param=param, code=code, headers=kept
        )


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


def _silent(request: httpx.Request) -> UpstreamSilent:
    timeout_s = request.extensions["timeout"]["read"]
    return UpstreamSilent(f"The upstream sent nothing for {timeout_s:g} s.")


def _error_in(said: bytes) -> tuple[str, str | None, str | None]:
    # Message, param and code out of {"error": {...}}, {"error": "..."}, {"detail": ...} or plain text.
    try:
        body = orjson.loads(said)
    except orjson.JSONDecodeError:
        return said.decode("utf-8", "replace").strip()[:500], None, None
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error or ""), None, None
    # vLLM's code is the status once more, a number.
    param, code = ((value if isinstance(value, str) else None) for value in (error.get("param"), error.get("code")))
    return str(error.get("message") or error), param, code


#: How vLLM's versions word a prompt that is too long.
_OVERFLOWS = ("maximum context length", "longer than the maximum", "context length is only")


def _code_of(status: int, message: str) -> str | None:
    if status == 400 and any(hint in message for hint in _OVERFLOWS):
        return "context_length_exceeded"
    if status == 404 and "model" in message.lower():
        return "model_not_found"
    return {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)


def _seconds(retry_after: str | None, default: float) -> float:
    try:
        seconds = float(retry_after or default)
    except ValueError:
        return default
    return seconds if 0 <= seconds < math.inf else default


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
